# SPDX-License-Identifier: MIT
"""rnx job run: starts a job; with --follow or --wait stays to its end and takes over its code."""

from typing import TYPE_CHECKING, Any

import click

from rnx import complete, exits
from rnx.errors import Unreachable, UsageError
from rnx.exits import Exit
from rnx.formats import reason
from rnx.output import Environment, harmless, one_line
from rnx.run_args import FLAGS, RunArgs, next_word, option, parse
from rnx.session import Session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from joblet_pb import joblet_pb2 as pb
    from rnx.client import Client


class RunCommand(click.Command):
    """Its words are rnx.run_args' to read: click would take the job's own flags for rnx's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["words"] = list(args)
        ctx.args = []
        return []

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Flags and their values. The command and what follows it are the job's: its files are not
        those of this machine."""
        from click.shell_completion import CompletionItem

        words: list[str] = ctx.params["words"]
        awaiting, may_be_flag = next_word(words)
        if awaiting is not None and awaiting.name == "--node":
            session: Session = ctx.obj
            session.config_file = option(words, "--config") or session.config_file
            return complete.node_items(session, incomplete)
        if awaiting is not None and awaiting.values:
            return [CompletionItem(v) for v in awaiting.values if v.startswith(incomplete)]
        if awaiting is not None:
            return [complete.file_item(incomplete)] if awaiting.name == "--config" else []
        if not (may_be_flag and incomplete.startswith("-")):
            return []
        flags = [flag for flag in FLAGS if flag.name.startswith(incomplete)]
        return [CompletionItem(flag.name, help=flag.help) for flag in flags]

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[FLAGS]", "COMMAND", "[ARGUMENTS]..."]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for flag in FLAGS:
            names = f"{flag.short}, {flag.name}" if flag.short else flag.name
            value = f"={flag.metavar}" if flag.metavar else ""
            rows.append((names + value, flag.help + (" Several times." if flag.many else "")))
        with formatter.section("Flags"):
            formatter.write_dl(rows)
        with formatter.section("Exit codes with --follow or --wait"):
            of_jobs = [("n", "the job exited with n"), ("128+n", "signal n ended it")]
            formatter.write_dl(of_jobs + [(f"{code:d}", code.meaning) for code in exits.OF_RUN])


@click.pass_context
def _run(context: click.Context, words: list[str]) -> int:
    """Run a command as a job.

    Flags stand before the command; everything behind the command's name belongs to the job. A
    value follows its flag as --flag=value or as the next word; -- ends the flags.

    Without --follow or --wait this returns when the job has begun, with 0, and prints its id.
    Ctrl-C while following leaves the job running.
    """
    session: Session = context.obj
    try:
        run = parse(words)
    except UsageError as error:
        error.command = context.command_path
        raise
    env = session.env
    if run.help:
        env.print(context.get_help())
        return Exit.OK
    session.following = run.following
    session.json |= run.json
    session.config_file = run.config or session.config_file
    session.node = run.node or session.node
    for warning in run.warnings():
        env.note(warning)
    with session.client() as client:
        try:
            answer = client.run_job(_request(run))
        except KeyboardInterrupt:
            env.note("rnx: interrupted before the server answered; see rnx job list for the job")
            return Exit.INTERRUPTED
        if not run.follow:
            _show(answer, run, session)
        if run.following:
            return _stay(client, answer.job_uuid, run, session)
        return _begun(client, answer, env)


command = RunCommand("run", callback=_run, help=_run.__doc__)


def _request(run: RunArgs) -> "pb.RunJobRequest":
    from joblet_pb import joblet_pb2 as pb

    return pb.RunJobRequest(
        command=run.command,
        args=run.args,
        name=run.name,
        environment=run.env,
        secret_environment=run.secret_env,
        work_dir=run.work_dir,
        max_cpu=run.max_cpu,
        max_memory=run.max_memory,
        max_io_bps=run.max_iobps,
        cpu_cores=run.cpu_cores,
        max_tasks=run.max_tasks,
        cpu_weight=run.cpu_weight,
        memory_high_bytes=run.memory_high,
        max_swap_bytes=run.max_swap,
        max_read_bps=run.max_read_bps,
        max_write_bps=run.max_write_bps,
        io_weight=run.io_weight,
        timeout=run.timeout,
        network=run.network,
        rlimits=run.rlimits,
        profile=run.profile,
        merge=run.merge,
        log_driver=run.log_driver,
        overflow_strategy=run.overflow,
        on_full=run.on_full,
    )


def _show(answer: "pb.RunJobResponse", run: RunArgs, session: Session) -> None:
    if session.json:
        session.env.print_json(run_json(answer, run))
    else:
        session.env.print(run_text(answer, run, session.env))


def _begun(client: "Client", answer: "pb.RunJobResponse", env: Environment) -> Exit:
    """A job that the server took and could not begin is no success; one that ran and has failed
    by now is."""
    if answer.status != "FAILED":
        return Exit.OK
    job = client.job_status(answer.job_uuid)
    if exits.of_job(job) != Exit.FAULT:
        return Exit.OK
    env.note(f"Error: job {answer.job_uuid} did not begin: {reason(job)}")
    return Exit.FAILED


def _stay(client: "Client", uuid: str, run: RunArgs, session: Session) -> int:
    """Follows or waits; the exit code is the job's."""
    from rnx.follow import Log, Patience, wait_for_end
    from rnx.show_log import show

    env = session.env
    patience = Patience(
        lambda why: env.note(f"rnx: {why}; trying again"),
        monotonic=env.monotonic,
        sleep=env.sleep,
    )
    try:
        if run.follow:
            env.note(f"rnx: job {uuid}")
            log = Log(client, uuid, patience)
            show(log.pieces(), env, as_json=session.json, split=run.split)
        job = wait_for_end(client, uuid, patience)
    except KeyboardInterrupt:
        env.note(
            f"rnx: job {uuid} keeps running; "
            f"show it again with: rnx job log {uuid}, end it with: rnx job stop {uuid}"
        )
        return Exit.INTERRUPTED
    except Unreachable:
        env.note(f"rnx: how job {uuid} ends is not known; ask later with: rnx job status {uuid}")
        raise
    if job.reason not in ("", "exited"):
        env.note(f"rnx: job {uuid} ended: {reason(job)}")
    return exits.of_job(job)


def run_text(answer: "pb.RunJobResponse", run: RunArgs, env: Environment) -> str:
    """In the published shape. Scripts look for "ID:" and "Status:" anywhere in it, and both stand
    on one line each: so arguments are not repeated, nor a command with these words in its name."""
    begun = "Job failed:" if answer.status == "FAILED" else "Job is running:"
    lines = [begun, f"ID: {harmless(answer.job_uuid)}"]
    if "ID:" not in run.command and "Status:" not in run.command:
        lines.append(f"Command: {one_line(run.command)}")
    lines.append(f"Status: {env.status(answer.status)}")
    if answer.scheduled_time:
        lines.append(f"Scheduled Time: {one_line(answer.scheduled_time)}")
    else:
        lines.append(f"StartTime: {one_line(answer.start_time)}")
    if run.env:
        lines.append(f"Environment: {len(run.env)} variables set")
    if run.secret_env:
        lines.append(f"Secret Environment: {len(run.secret_env)} variables set")
    return "\n".join(lines)


def run_json(answer: "pb.RunJobResponse", run: RunArgs) -> dict[str, Any]:
    """Published keys; `id` is what published documentation calls job_uuid."""
    more = {
        "start_time": answer.start_time,
        "scheduled_time": answer.scheduled_time,
        "env_vars": len(run.env),
        "secret_env_vars": len(run.secret_env),
    }
    return {
        "job_uuid": answer.job_uuid,
        "id": answer.job_uuid,
        "command": answer.command or run.command,
        "args": list(answer.args) or run.args,
        "status": answer.status,
        **{key: value for key, value in more.items() if value},
    }
