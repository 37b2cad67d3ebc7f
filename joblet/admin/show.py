# SPDX-License-Identifier: MIT
"""`joblet cert show`: each configured certificate, and whether it works."""

import datetime
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509

from joblet import config
from joblet.admin.cert import alternative_names
from joblet.admin.files import CLIENT_CONFIG, SERVER_CONFIG
from joblet.config.reading import document, mapping, read
from joblet.errors import FailedPrecondition, JobletError
from joblet.server import access

Say = Callable[[str], None]


def show_directory(directory: Path, *, now: datetime.datetime, say: Say) -> int:
    """Print the certificates in a directory's configuration files, line by line. Returns 1 if one
    of them does not work, else 0. Raises FailedPrecondition if there are none.
    """
    shown = [
        *_show_server(directory / SERVER_CONFIG, now, say),
        *_show_clients(directory / CLIENT_CONFIG, now, say),
    ]
    if not shown:
        raise FailedPrecondition(
            "show certificates",
            f"there are none in {directory}",
            hint="make some with: joblet cert init",
        )
    return 0 if all(shown) else 1


def _show_server(path: Path, now: datetime.datetime, say: Say) -> Iterator[bool]:
    if not os.path.lexists(path):
        return
    security = config.load(path, environ={}).config.security
    ca = security.ca_cert
    say(str(path))
    yield _show("security.caCert", ca, None, ca, now, say)
    yield _show("security.serverCert", security.server_cert, security.server_key, ca, now, say)


def _show_clients(path: Path, now: datetime.datetime, say: Say) -> Iterator[bool]:
    if not os.path.lexists(path):
        return
    nodes = mapping(document(read(path)[0], str(path)).get("nodes"), "nodes", str(path))
    say(str(path))
    for name, raw in nodes.items():
        node = mapping(raw, f"nodes.{name}", str(path))
        pem, key, ca = (str(node.get(part, "")) for part in ("cert", "key", "ca"))
        yield _show(f"nodes.{name}.cert", pem, key, ca, now, say, client=True)


def _show(
    where: str,
    pem: str,
    key: str | None,
    ca: str,
    now: datetime.datetime,
    say: Say,
    *,
    client: bool = False,
) -> bool:
    """Print one certificate; says whether it works."""
    if not pem:
        say(f"  {where}  is missing")
        return False
    try:
        certificate = access.certificates(pem)[0]
        problems = list(_problems(certificate, key, ca, now))
    except JobletError as error:
        say(f"  {where}  {error}")
        return False
    end = access.validity(certificate)[1]
    say(f"  {where}  CN={access.common_name(certificate.subject)}")
    say(f"    until   {end:%Y-%m-%d %H:%M} UTC ({(end - now).days} days)")
    if client:
        try:
            say(f"    role    {access.role_of(certificate.subject)}")
        except JobletError as error:
            problems.append(error.why)
    if names := alternative_names(certificate):
        say(f"    names   {', '.join(names)}")
    say(f"    serial  {certificate.serial_number:x}")
    if not problems and (soon := access.expiry(certificate, now)):
        say(f"    NOTE: it {soon}")
    for problem in problems:
        say(f"    PROBLEM: {problem}")
    return not problems


def _problems(
    certificate: x509.Certificate, key: str | None, ca: str, now: datetime.datetime
) -> Iterator[str]:
    begin, end = access.validity(certificate)
    if not begin <= now <= end:
        yield f"it {access.expiry(certificate, now)}"
    if key is not None and not access.owns(key, certificate):
        yield "its key is another certificate's"
    if not any(access.signed_by(certificate, authority) for authority in access.certificates(ca)):
        yield "the configured CA did not sign it"
