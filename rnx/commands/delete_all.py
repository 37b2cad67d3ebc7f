# SPDX-License-Identifier: MIT
"""rnx job delete-all."""

import click

from rnx.exits import Exit
from rnx.options import global_options
from rnx.output import harmless
from rnx.session import Session


@click.command("delete-all")
@global_options
@click.pass_obj
def command(session: Session) -> int:
    """Delete all jobs that have ended.

    Their records and their logs go; there is no way back. Jobs that run are skipped. If some
    cannot be deleted, the others are, the message says why, and the exit code is 1.
    """
    with session.client() as client:
        answer = client.delete_all_jobs()
    env = session.env
    if session.json:
        counts = {"deleted_count": answer.deleted_count, "skipped_count": answer.skipped_count}
        more = {key: value for key, value in counts.items() if value}
        env.print_json({"success": answer.success, "message": answer.message, **more})
    else:
        done = "Jobs deleted successfully:" if answer.success else "Not all jobs were deleted:"
        env.print(done)
        env.print(f"Deleted: {answer.deleted_count}")
        env.print(f"Skipped: {answer.skipped_count}")
        env.print(f"Message: {harmless(answer.message)}")
    return Exit.OK if answer.success else Exit.FAILED
