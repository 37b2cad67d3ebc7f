# SPDX-License-Identifier: MIT
"""rnx job log: a job's output, or a part of it, until its end."""

from typing import TYPE_CHECKING

import click

from rnx import moments
from rnx.errors import RnxError, UsageError
from rnx.exits import Exit
from rnx.options import global_options, job_argument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rnx.follow import Log, Piece
    from rnx.session import Session

INT64_MAX = 2**63 - 1  # what a request can say


@click.command("log")
@job_argument()
@click.option(
    "-f",
    "--follow/--no-follow",
    default=True,
    help="Wait for more until the job ends, which is the default, or stop at what there is now.",
)
@click.option(
    "-n",
    "--tail",
    type=click.IntRange(min=0),
    metavar="LINES",
    help="Begin with the last lines of what there is now; 0: with what comes.",
)
@click.option("--since", metavar="TIME", help="Leave out what arrived before.")
@click.option("--until", metavar="TIME", help="End where something arrived then or later.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its arrival.")
@click.option("--stdout", "only_stdout", is_flag=True, help="Only what the job wrote to stdout.")
@click.option("--stderr", "only_stderr", is_flag=True, help="Only what the job wrote to stderr.")
@click.option("--split", is_flag=True, help="What the job wrote to stderr goes to stderr.")
@click.option(
    "--from-offset",
    type=click.IntRange(min=0),
    default=0,
    metavar="BYTES",
    help="Leave out the log's first bytes.",
)
@click.option(
    "--from-cursor",
    default="",
    metavar="CURSOR",
    help="Of a job with --log-driver=journald: begin behind this position.",
)
@click.option(
    "--strict", is_flag=True, help=f"Exit with {Exit.INCOMPLETE:d} if bytes of it are missing."
)
@global_options
@click.pass_context
def command(
    context: click.Context,
    uuid: str,
    *,
    follow: bool,
    tail: int | None,
    since: str | None,
    until: str | None,
    timestamps: bool,
    only_stdout: bool,
    only_stderr: bool,
    split: bool,
    from_offset: int,
    from_cursor: str,
    strict: bool,
) -> int:
    """Show a job's output, and follow it.

    It comes byte for byte, from the first on until the job ends. A lost connection is taken up
    again where it broke. Bytes that are gone for good are told on stderr, where they are missing.

    A TIME is as 2025-11-24T15:04:05Z, a local time if the zone is left out, or how long ago: 90s,
    10m, 1h30m, 2d. Times are those at which the server got the output, by its clock. --tail counts
    the lines of both streams, or those of the one that is shown.

    With --timestamps a line is shown when it is whole, with the time at which it began.

    With --json there is one object a chunk: data, timestamp, offset_end, stream, and data_base64
    where data is not UTF-8 text; with --timestamps one for all that arrived at a time. Ctrl-C
    stops showing, not the job.
    """
    from rnx.follow import Log, Patience
    from rnx.selection import Selection
    from rnx.show_log import show

    session: Session = context.obj
    env = session.env
    if only_stdout and only_stderr:
        raise _wrong(context, "cannot use --stdout with --stderr: both are shown without them")
    now = env.now()
    selection = Selection(
        from_offset=min(from_offset, INT64_MAX),
        from_cursor=from_cursor,
        no_follow=not follow,
        since_us=_moment(context, "--since", since, now),
        until_us=_moment(context, "--until", until, now),
        tail_lines=None if tail is None else min(tail, INT64_MAX),
        stream=only_stdout * 1 or only_stderr * 2,
        arrivals=timestamps,
    )
    if 0 < selection.until_us < selection.since_us:
        raise _wrong(context, f"cannot use --until {until!r}: it is before --since {since!r}")
    patience = Patience(
        lambda why: env.note(f"rnx: {why}; trying again"),
        monotonic=env.monotonic,
        sleep=env.sleep,
    )
    gaps = 0

    def watched(log: "Log") -> "Iterator[Piece]":
        nonlocal gaps
        for piece in log.pieces():
            if strict and not log.numbered:
                raise RnxError("cannot be strict: the server does not tell what is missing")
            gaps += bool(piece.gap)
            yield piece

    try:
        with session.client() as client:
            # Asked first, so that a wrong id or a dead server is told at once and not waited for.
            job = client.job_status(uuid)
            pieces = watched(Log(client, job.uuid or uuid, patience, selection))
            show(pieces, env, as_json=session.json, split=split, timestamps=timestamps)
    except KeyboardInterrupt:
        env.note("Stopping log stream...")
    return Exit.INCOMPLETE if strict and gaps else Exit.OK


def _moment(context: click.Context, option: str, text: str | None, now: float) -> int:
    """µs since the epoch, 0 if nothing was asked. Raises UsageError."""
    if text is None:
        return 0
    try:
        return moments.parse(text, now=now)
    except ValueError as error:
        raise _wrong(context, f"cannot use {option} {text!r}: {error}") from None


def _wrong(context: click.Context, text: str) -> UsageError:
    error = UsageError(text)
    error.command = context.command_path
    return error
