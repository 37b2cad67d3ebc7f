# SPDX-License-Identifier: MIT
"""`joblet cert`: certificates for a server and its clients, and the files that hold them.

    joblet cert init    a certificate authority, what it signs, and both configuration files
    joblet cert show    what is configured: names, roles, dates

A command is a function of its arguments and a Machine; main() makes the real one. Everything that
can fail for the operator's reasons fails before the first file is written.
"""

import argparse
import contextlib
import dataclasses
import datetime
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

from joblet import config
from joblet.admin import cert, files
from joblet.admin.show import show_directory
from joblet.config.reading import read
from joblet.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from joblet.server import access
from joblet.server.access import Role

DIRECTORY: Final = "/etc/joblet"
CA_DAYS: Final = 3650
DAYS: Final = 365


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What a command finds outside its arguments."""

    source: cert.Source
    out: TextIO
    hostname: str
    root: bool
    group: Callable[[str], int | None] = files.group_id

    def say(self, line: str = "") -> None:
        self.out.write(f"{line}\n")


def main(argv: Sequence[str], machine: Machine | None = None) -> int:
    """Run `joblet cert ARGV`. Returns the exit code; raises JobletError, which the caller prints.
    A wrong command line ends the process with 2, as argparse does.
    """
    arguments = parser().parse_args(argv)
    if machine is None:
        machine = Machine(
            source=cert.Source(datetime.datetime.now(datetime.UTC)),
            out=sys.stdout,
            hostname=socket.gethostname(),
            root=os.geteuid() == 0,
        )
    run: Callable[[argparse.Namespace, Machine], int] = arguments.run
    try:
        return run(arguments, machine)
    except OSError as error:
        raise FailedPrecondition(
            f"{arguments.verb} certificates",
            f"{error.filename or arguments.dir}: {error.strerror}",
            hint="" if machine.root else "try it as root",
        ) from None


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="joblet cert", description="Certificates for the Joblet server and its clients."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    make = commands.add_parser(
        "init",
        help="make a certificate authority, certificates and both configuration files",
        description="Make a certificate authority, certificates for the server, an admin and a"
        " viewer, and write them into joblet-config.yml and rnx-config.yml.",
    )
    make.add_argument(
        "--address",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="where clients reach the server; may be given several times, the first one goes into"
        " rnx-config.yml (default: 127.0.0.1 and the configured port)",
    )
    make.add_argument(
        "--names",
        action="append",
        default=[],
        metavar="NAME[,NAME...]",
        help="more host names and IP addresses for the server's certificate",
    )
    make.add_argument(
        "--force",
        action="store_true",
        help="replace what is there (kept as FILE.old); no old client certificate works any more",
    )
    make.add_argument(
        "--days", type=int, default=DAYS, help="validity of the certificates (default: %(default)s)"
    )
    make.add_argument(
        "--ca-days",
        type=int,
        default=CA_DAYS,
        help="validity of the certificate authority (default: %(default)s)",
    )
    make.set_defaults(run=init, verb="make")
    look = commands.add_parser(
        "show",
        help="show the configured certificates; exits with 1 if one of them does not work",
        description="Show the configured certificates. Exits with 1 if one of them does not work.",
    )
    look.set_defaults(run=show, verb="show")
    for command in (make, look):
        command.add_argument(
            "--dir",
            default=DIRECTORY,
            help="directory of the configuration files (default: %(default)s)",
        )
    return top


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """What one authority signed."""

    authority: cert.Credential
    server: cert.Credential
    admin: cert.Credential
    viewer: cert.Credential


def init(arguments: argparse.Namespace, machine: Machine) -> int:
    """Make everything in memory, then write it."""
    directory = Path(arguments.dir).absolute()
    server_file, client_file = directory / files.SERVER_CONFIG, directory / files.CLIENT_CONFIG
    text = _server_text(server_file)
    loaded = config.parse(text, str(server_file), environ={})
    _refuse_existing(directory / "ca", loaded, server_file, client_file, force=arguments.force)

    port = loaded.config.server.port
    addresses = [split_address(address, port) for address in arguments.address]
    given = [name for names in arguments.names for name in names.split(",") if name]
    names = cert.unique(
        [*cert.SERVER_NAMES, *_own_names(machine, loaded), *(host for host, _ in addresses), *given]
    )
    dialled = join_address(*(addresses[0] if addresses else ("127.0.0.1", port)))

    source, days = machine.source, arguments.days
    authority = cert.make_authority(source, days=arguments.ca_days)
    made = Made(
        authority,
        cert.make_server(source, authority, names, days=days),
        cert.make_client(source, authority, Role.ADMIN, days=days),
        cert.make_client(source, authority, Role.VIEWER, days=days),
    )
    owners = files.Owners(machine.root, machine.group)
    contents = _contents(made, text, directory, dialled, owners)
    _make_directories(directory, owners)
    kept = [path for path, *_ in contents if arguments.force and files.keep_old(path)]
    for path, content, owner in contents:
        files.write(path, content, owner)
    _report(machine, directory, made, names, dialled, kept, owners.warnings)
    return 0


def _contents(
    made: Made, server_text: str, directory: Path, dialled: str, owners: files.Owners
) -> list[tuple[Path, str, files.Owner]]:
    """The files to write, in their order: the authority first, because what it signed is worth
    nothing without it, and it can sign again.
    """
    ca_directory, private = directory / "ca", owners.private()
    ca = made.authority.certificate_pem
    contents = [
        (ca_directory / "ca.key", made.authority.key_pem, private),
        (ca_directory / "ca.crt", ca, private),
    ]
    # A copy of each certificate by its serial number, without its key: who may come in, and what
    # could be revoked.
    for one in (made.server, made.admin, made.viewer):
        name = f"{one.certificate.serial_number:x}.crt"
        contents.append((ca_directory / "issued" / name, one.certificate_pem, private))
    blocks = {
        "serverCert": made.server.certificate_pem,
        "serverKey": made.server.key_pem,
        "caCert": ca,
    }
    server_file = directory / files.SERVER_CONFIG
    owner = owners.for_group("joblet", server_file, "the server")
    contents.append(
        (server_file, files.with_security(server_text, blocks, str(server_file)), owner)
    )
    nodes = {
        name: {"cert": one.certificate_pem, "key": one.key_pem, "ca": ca}
        for name, one in (("default", made.admin), ("viewer", made.viewer))
    }
    client_file = directory / files.CLIENT_CONFIG
    owner = owners.for_group("rnx", client_file, "rnx")
    contents.append((client_file, files.client_config(nodes, dialled), owner))
    return contents


def _make_directories(directory: Path, owners: files.Owners) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    private = owners.private()
    files.make_directory(directory, dataclasses.replace(private, mode=0o755))
    for path in (directory / "ca", directory / "ca" / "issued"):
        files.make_directory(path, dataclasses.replace(private, mode=0o700))


def show(arguments: argparse.Namespace, machine: Machine) -> int:
    """Print what is configured."""
    return show_directory(Path(arguments.dir).absolute(), now=machine.source.now, say=machine.say)


def _server_text(path: Path) -> str:
    """The server's configuration as it is, or a new one."""
    if not os.path.lexists(path):
        return files.NEW_SERVER_CONFIG
    return read(path)[0]


def _refuse_existing(
    ca_directory: Path, loaded: config.Loaded, server_file: Path, client_file: Path, *, force: bool
) -> None:
    security = loaded.config.security
    there = [path for path in (ca_directory / "ca.key", ca_directory / "ca.crt") if path.exists()]
    if security.server_cert or security.server_key or security.ca_cert:
        there.append(server_file)
    if os.path.lexists(client_file):
        there.append(client_file)
    if there and not force:
        raise AlreadyExists(
            "make certificates",
            f"there are some in {', '.join(map(str, there))}",
            hint="--force replaces them, and then no client certificate made before works any more",
        )


def _own_names(machine: Machine, loaded: config.Loaded) -> Iterator[str]:
    """This machine's name, and the address that the server listens on, as far as they are names."""
    for name in (machine.hostname, loaded.config.server.address):
        with contextlib.suppress(InvalidArgument):
            (usable,) = cert.unique([name])
            if usable not in {"0.0.0.0", "::"}:  # noqa: S104 - these are every address, so none
                yield usable


def split_address(text: str, port: int) -> tuple[str, int]:
    """Host and port of HOST, HOST:PORT, an IPv6 address, or [IPv6]:PORT; `port` unless given.
    Raises InvalidArgument.
    """
    host, colon, digits = text.rpartition(":")
    if not colon or text.endswith("]") or (text.count(":") > 1 and not host.endswith("]")):
        host, digits = text, str(port)
    if not (digits.isascii() and digits.isdigit() and 1 <= int(digits) <= 65535):
        raise InvalidArgument("use the address", f"{text!r:.80} has no port from 1 to 65535")
    (name,) = cert.unique([host])
    return name, int(digits)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _report(
    machine: Machine,
    directory: Path,
    made: Made,
    names: Sequence[str],
    dialled: str,
    kept: Sequence[Path],
    warnings: Sequence[str],
) -> None:
    def until(one: cert.Credential) -> str:
        return f"until {access.validity(one.certificate)[1]:%Y-%m-%d}"

    say = machine.say
    say(f"Made in {directory}:")
    say(f"  ca/ca.key, ca/ca.crt   the authority, {until(made.authority)}; keep ca.key safe")
    say(f"  {files.SERVER_CONFIG}      the server's certificate, {until(made.server)}, good for")
    say(f"                         {', '.join(names)}")
    say(f"  {files.CLIENT_CONFIG}         nodes default (admin) and viewer, for {dialled}")
    for path in kept:
        say(f"Kept: {path}.old")
    for warning in warnings:
        say(f"Warning: {warning}")
    say("Next:")
    say("  systemctl restart joblet    the server reads its certificate when it starts")
    say("  usermod -aG rnx USER        lets USER run jobs from this machine")
    say("  On another machine, copy rnx-config.yml to ~/.rnx/ and set its address to one of the")
    say("  names above.")
