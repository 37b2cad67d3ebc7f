# SPDX-License-Identifier: MIT
"""rnx version, and rnx --version: rnx's, and the server's if there is one to ask."""

import platform
import sys

import click

from rnx import __version__
from rnx.errors import RnxError
from rnx.options import global_options
from rnx.output import one_line
from rnx.session import Session

DEADLINE_S = 2.0  # the published rnx's


@click.command("version")
@global_options
@click.pass_obj
def command(session: Session) -> None:
    """Show the versions of rnx and the server.

    A server that does not answer within two seconds is left out.
    """
    show(session)


def show(session: Session) -> None:
    """Works without a configuration and without a server; asks one for at most two seconds."""
    env, server = session.env, _server_version(session)
    if not session.json:
        env.print(f"rnx {__version__}")
        if server:
            env.print(f"joblet {one_line(server)}")
        return
    python = ".".join(map(str, sys.version_info[:3]))
    shown = {
        "rnx": {
            "version": __version__,
            "git_commit": "",
            "git_tag": "",
            "build_date": "",
            "go_version": "",  # published; rnx is written in Python
            "python_version": python,
            "platform": f"{platform.system().lower()}/{platform.machine()}",
            "proto_commit": "",
        }
    }
    if server:
        shown["joblet"] = {"version": server}
    env.print_json(shown)


def _server_version(session: Session) -> str:
    try:
        with session.client() as client:
            return client.system_status(deadline_s=DEADLINE_S).server_version.version
    except RnxError:
        return ""
