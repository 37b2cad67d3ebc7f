# SPDX-License-Identifier: MIT
"""rnx job log: a job's output, from its first byte or from an offset, until its end."""

import click

from rnx.exits import Exit
from rnx.options import global_options, job_argument
from rnx.session import Session


@click.command("log")
@job_argument()
@click.option(
    "-f",
    "--follow/--no-follow",
    default=True,
    help="Wait for more until the job ends, which is the default, or stop at what there is now.",
)
@click.option(
    "--from-offset",
    type=click.IntRange(min=0),
    default=0,
    metavar="BYTES",
    help="Leave out the log's first bytes.",
)
@click.option("--split", is_flag=True, help="What the job wrote to stderr goes to stderr.")
@global_options
@click.pass_obj
def command(session: Session, uuid: str, *, follow: bool, from_offset: int, split: bool) -> int:
    """Show a job's output, and follow it.

    It comes byte for byte, from the first on until the job ends. A lost connection is taken up
    again where it broke. Bytes that are gone for good are told on stderr.

    With --json there is one object a chunk: data, timestamp, offset_end, stream, and data_base64
    where data is not UTF-8 text. Ctrl-C stops showing, not the job.
    """
    from rnx.follow import Log, Patience
    from rnx.show_log import show

    env = session.env
    patience = Patience(
        lambda why: env.note(f"rnx: {why}; trying again"),
        monotonic=env.monotonic,
        sleep=env.sleep,
    )
    try:
        with session.client() as client:
            # Asked first, so that a wrong id or a dead server is told at once and not waited for.
            job = client.job_status(uuid)
            log = Log(client, job.uuid or uuid, patience, from_offset=from_offset)
            pieces = log.pieces(no_follow=not follow)
            show(pieces, env, as_json=session.json, split=split)
    except KeyboardInterrupt:
        env.note("Stopping log stream...")
    return Exit.OK
