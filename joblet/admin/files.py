# SPDX-License-Identifier: MIT
"""The files that hold certificates: what stands in them, who owns them, and how they are written.

A file is either the old one or the new one, whole and on disk, at every moment; private keys are
never in a file that more than its readers could open, not even while it is written.
"""

import contextlib
import dataclasses
import grp
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from joblet.config.reading import ConfigurationError, document, mapping
from joblet.errors import FailedPrecondition

SERVER_CONFIG: Final = "joblet-config.yml"
CLIENT_CONFIG: Final = "rnx-config.yml"

NEW_SERVER_CONFIG: Final = """\
# Configuration of the Joblet server. What is not set here has its default.
# The server reads it when it starts: systemctl restart joblet
version: "3.0"

server:
  address: "0.0.0.0"  # every IPv4 address of this machine; "::" is IPv6 too
  port: 50051

joblet:  # what a job gets when its client asks for nothing; 0 is no limit
  defaultCpuLimit: 0  # percent of one core
  defaultMemoryLimit: 0  # MiB
  defaultIoLimit: 0  # bytes a second, each way

cgroup:
  cleanupTimeout: "5s"  # from SIGTERM to SIGKILL when a job is stopped

logging:
  level: "INFO"  # DEBUG, INFO, WARN, ERROR

"""


# -- text ------------------------------------------------------------------------------------------


def with_security(text: str, blocks: Mapping[str, str], source: str) -> str:
    """A server configuration with the PEM texts `blocks` in its section `security`, in place of
    what it has under these keys; every other line stays as it is.

    Raises ConfigurationError for text that is no configuration, FailedPrecondition where the
    section cannot be edited by lines: what comes out is parsed again, and must be what is meant.
    """
    before = document(text, source)
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    start = next((i for i, line in enumerate(lines) if _SECURITY.match(line)), None)
    if start is None:
        lines += ["\n"] if lines and lines[-1].strip() else []
        lines += ["security:\n", *_entries(blocks, "  ")]
    else:
        lines[start] = _EMPTY_SECURITY.sub(r"\1\3", lines[start])
        end = next(
            (
                i
                for i in range(start + 1, len(lines))
                if not lines[i].isspace() and lines[i][0] not in " #"
            ),
            len(lines),
        )
        lines[start + 1 : end] = _replace_entries(lines[start + 1 : end], blocks)
    edited = "".join(lines)
    meant = {**_security(before, source), **blocks}
    after = _parsed(edited, source)
    if {**before, "security": meant} != {**after, "security": _security(after, source)}:
        raise FailedPrecondition(
            "put the certificates into the configuration",
            f"the section security of {source} is not written as one key a line",
            hint="remove the section, and run this again",
        )
    return edited


_SECURITY: Final = re.compile(r"""(?:security|"security"|'security')\s*:(?=\s|$)""")
_EMPTY_SECURITY: Final = re.compile(r"^([^:]*:)(\s*(?:\{\s*\}|~|null))(\s*(?:#.*)?)$", re.DOTALL)


def _replace_entries(lines: list[str], blocks: Mapping[str, str]) -> list[str]:
    """The lines of a section with its entries of these keys replaced."""
    keys = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    indent = keys[0][: len(keys[0]) - len(keys[0].lstrip())] if keys else "  "
    entry = re.compile(rf"""{indent}(["']?)(?:{"|".join(blocks)})\1\s*:(?:\s|$)""")
    kept: list[str] = []
    place = None
    inside = False
    blank: list[str] = []  # they belong to the entry only if more of it follows
    for line in lines:
        if inside and line.isspace():
            blank.append(line)
            continue
        deeper = line.startswith(indent) and line[len(indent) :][:1] in {" ", "\t"}
        inside = bool(entry.match(line)) or (inside and deeper)
        if inside and place is None:
            place = len(kept)
        if not inside:
            kept += [*blank, line]
        blank = []
    kept += blank
    if place is None:
        place = len(kept)
        while place and kept[place - 1].isspace():
            place -= 1
    kept[place:place] = _entries(blocks, indent)
    return kept


def _parsed(text: str, source: str) -> dict[str, object]:
    try:
        return document(text, source)
    except ConfigurationError:
        return {}


def _security(parsed: Mapping[str, object], source: str) -> dict[str, object]:
    return mapping(parsed.get("security"), "security", source)


def _entries(blocks: Mapping[str, str], indent: str) -> list[str]:
    """Lines of a YAML mapping to literal blocks."""
    lines = []
    for key, pem in blocks.items():
        lines.append(f"{indent}{key}: |\n")
        lines += [f"{indent}  {line}\n" for line in pem.splitlines()]
    return lines


def client_config(nodes: Mapping[str, Mapping[str, str]], address: str) -> str:
    """A client configuration: `nodes` has cert, key and ca (PEM) by the node's name."""
    text = (
        "# Configuration of rnx. Whoever can read it can do what its certificates allow.\n"
        'version: "3.0"\n\nnodes:\n'
    )
    for name, blocks in nodes.items():
        text += f'  {name}:\n    address: "{address}"\n{"".join(_entries(blocks, "    "))}'
    return text


# -- files -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """Who gets a file, and with which mode; -1 keeps the user or group of the process."""

    uid: int
    gid: int
    mode: int


def group_id(name: str) -> int | None:
    """The id of a group, None if there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


@dataclasses.dataclass(slots=True)
class Owners:
    """Finds owners for files, and keeps what to tell the operator about those it could not give."""

    root: bool  # whether this process is root
    group: Callable[[str], int | None] = group_id
    warnings: list[str] = dataclasses.field(default_factory=list)

    def private(self) -> Owner:
        """Root's alone (or ours, without root)."""
        return Owner(0, 0, 0o600) if self.root else Owner(-1, -1, 0o600)

    def for_group(self, name: str, path: Path, reader: str) -> Owner:
        """Root's, readable for a group; private where there is no such group, or no root."""
        if not self.root:
            self.warnings.append(f"{path} is yours alone: only root can give it to group {name}")
            return self.private()
        gid = self.group(name)
        if gid is None:
            self.warnings.append(
                f"{path} is root's alone, so {reader} cannot read it: there is no group {name}; "
                f"once there is: chgrp {name} {path} && chmod 0640 {path}"
            )
            return self.private()
        return Owner(0, gid, 0o640)


def make_directory(path: Path, owner: Owner) -> None:
    """A directory with exactly this owner and mode; one that is there keeps its own."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    os.chown(path, owner.uid, owner.gid)
    path.chmod(owner.mode)


def write(path: Path, text: str, owner: Owner) -> None:
    """Make or replace a file, atomically and durably. Raises OSError."""
    # Beside it, because only within one filesystem is a rename atomic.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchown(file.fileno(), owner.uid, owner.gid)
            os.fchmod(file.fileno(), owner.mode)
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def keep_old(path: Path) -> bool:
    """Give a file a second name, FILE.old, under which it stays when FILE is replaced; says whether
    there was one. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.hardlink_to(path)
    except FileNotFoundError:
        return False
    temporary.rename(path.with_name(f"{path.name}.old"))
    return True


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
