# SPDX-License-Identifier: MIT
"""rnx job delete."""

import click

from rnx.errors import RnxError
from rnx.options import global_options, job_argument
from rnx.output import harmless
from rnx.session import Session

ENDED = ("CANCELED", "COMPLETED", "FAILED", "STOPPED")


@click.command("delete")
@job_argument(*ENDED)
@global_options
@click.pass_obj
def command(session: Session, uuid: str) -> None:
    """Delete a job that has ended: its record and its log.

    There is no way back. A job that runs is refused; stop it first.
    """
    with session.client() as client:
        answer = client.delete_job(uuid)
    job, env = answer.uuid or uuid, session.env
    if not answer.success:
        raise RnxError(f"cannot delete job {job}: {answer.message or 'the server gives no reason'}")
    if session.json:
        env.print_json({"uuid": job, "success": answer.success, "message": answer.message})
        return
    env.print("Job deleted successfully:")
    env.print(f"ID: {harmless(job)}")
    env.print(f"Message: {harmless(answer.message)}")
