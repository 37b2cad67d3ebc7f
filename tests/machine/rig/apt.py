# SPDX-License-Identifier: MIT
"""The host's own apt configuration, as far as a root for another suite needs it.

Mirror and proxy come from the host, so a site with a mirror of its own is served by it;
$JOBLET_MIRROR and $JOBLET_SECURITY_MIRROR say otherwise. Nothing here is written to the host.
"""

from __future__ import annotations

import os
import re
import subprocess

from .errors import RigError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# What concerns reaching and trusting a mirror. The rest of Acquire:: is the host's own taste.
PASSED_ON = re.compile(
    r"Acquire::(http|https|ftp)::|Acquire::(Check-Valid-Until|Check-Date|Retries|ForceIPv\d) "
)


def _lines(*argv: str) -> list[str]:
    """Output lines of an apt tool; none where it fails (no apt at all, a broken source list)."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.decode(errors="replace").splitlines()


def options() -> list[str]:
    """apt.conf lines to hand on, such as a proxy."""
    return [line for line in _lines("apt-config", "dump", "Acquire") if PASSED_ON.match(line)]


def mirrors() -> tuple[str, str]:
    """URIs of the archive and of the security archive that this host uses.

    Only plain http and https URIs of Debian suites count: mirror+file: and the like name files
    of the host that would be missing elsewhere. A host without security fixes has them beside the
    archive, as Debian lays it out. Raises RigError on a host that knows no archive.
    """
    archive, security = "", ""
    target = "$(REPO_URI) $(RELEASE)"
    for line in _lines("apt-get", "indextargets", "--format", target, "Created-By: Packages"):
        uri, _, release = line.partition(" ")
        uri = uri.rstrip("/")
        if not re.match(r"https?://", uri):
            continue
        if re.fullmatch(r"(bookworm|trixie)", release):
            archive = uri
        elif re.fullmatch(r"(bookworm|trixie)-security", release):
            security = uri
    archive = os.environ.get("JOBLET_MIRROR") or archive
    security = os.environ.get("JOBLET_SECURITY_MIRROR") or security
    if not archive:
        why = "apt on this host has no source of bookworm or trixie"
        raise RigError("find a Debian mirror", f"{why}; set JOBLET_MIRROR to one")
    return archive, security or f"{archive}-security"


def sources(suite: str) -> list[str]:
    """sources.list lines for one suite with its updates and security fixes."""
    archive, security = mirrors()
    signed = f"[signed-by={KEYRING}]"
    return [
        f"deb {signed} {archive} {suite} main",
        f"deb {signed} {archive} {suite}-updates main",
        f"deb {signed} {security} {suite}-security main",
    ]
