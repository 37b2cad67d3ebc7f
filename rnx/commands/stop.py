# SPDX-License-Identifier: MIT
"""rnx job stop."""

import click

from rnx.exits import UNENDED
from rnx.options import global_options, job_argument
from rnx.output import harmless
from rnx.session import Session


@click.command("stop")
@job_argument(*sorted(UNENDED - {"STOPPING"}))
@global_options
@click.pass_obj
def command(session: Session, uuid: str) -> None:
    """Stop a running job.

    It gets SIGTERM, a grace period, then SIGKILL. Returns when it has ended.
    """
    with session.client() as client:
        answer = client.stop_job(uuid)
    job, env = answer.uuid or uuid, session.env
    if session.json:
        more = {
            "status": answer.status,
            "endTime": answer.end_time,
            "exitCode": answer.exit_code,
            "end_time": answer.end_time,
            "exit_code": answer.exit_code,
        }
        env.print_json({"uuid": job, **{key: value for key, value in more.items() if value}})
        return
    env.print("Job stopped successfully:")
    env.print(f"ID: {harmless(job)}")
    env.print(f"Status: {env.status(answer.status)}")
