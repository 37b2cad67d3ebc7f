# SPDX-License-Identifier: MIT
"""Reading a configuration file: one regular file, YAML, into frozen dataclasses of settings.

Every error is a ConfigurationError that names the file, the key and what is allowed, and never
shows a secret or the text around a mistake, which may be a private key.
Imports yaml when there is something to parse.
"""

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from joblet.errors import FailedPrecondition

if TYPE_CHECKING:
    from joblet.config.kinds import Kind

_Settings = TypeVar("_Settings")

MAX_FILE_BYTES: Final = 1 << 20

_HINTS: Final = {
    errno.ENOENT: "make one with: joblet cert init",
    errno.EACCES: "it belongs to root:joblet, mode 0640; the server runs as user joblet",
    errno.ELOOP: "it must be a file, not a link",
}


class ConfigurationError(FailedPrecondition):
    """The configuration cannot be used. Trying again does not help, which is why a caller that
    restarts things wants to know.
    """

    def __init__(self, why: str, *, hint: str = "") -> None:
        super().__init__("read the configuration", why, hint=hint)


def read(path: Path) -> tuple[str, os.stat_result]:
    """The text and the status of a regular file."""
    try:
        return _contents(os.open(path, _FLAGS), path)
    except OSError as error:
        raise _unreadable(path, error) from None


def read_owned(path: Path, owner: int) -> str | None:
    """The text of a file that only user `owner` can have written, None if there is no such file.
    Neither it nor its directory may be a link.
    """
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, directory)
            _check_owner(os.fstat(directory), owner, path.parent, "0755")
            text, status = _contents(
                os.open(path.name, _FLAGS | os.O_NOFOLLOW, dir_fd=directory), path
            )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    _check_owner(status, owner, path, "0600")
    return text


_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hang us


def _contents(fd: int, path: Path) -> tuple[str, os.stat_result]:
    """Takes `fd`."""
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path} is not a regular file")
        data = b""
        while len(data) <= MAX_FILE_BYTES and (piece := os.read(fd, MAX_FILE_BYTES + 1)):
            data += piece
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode(), status
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text (byte {error.start})") from None


def _check_owner(status: os.stat_result, owner: int, path: Path, mode: str) -> None:
    if status.st_uid != owner or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            f"{path} can be written by others than root",
            hint=f"after a look at what it says: chown root:root {path} && chmod {mode} {path}",
        )


def _unreadable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{path}: {error.strerror}", hint=_HINTS.get(error.errno or 0, ""))


def document(text: str, source: str) -> dict[str, Any]:
    """The mapping that YAML text holds; empty for no text."""
    if not text.strip():
        return {}
    import yaml  # costs 20 ms, and the defaults need no file

    try:
        parsed = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        where = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigurationError(f"{source} is not YAML{where}: {error.problem}") from None
    except yaml.YAMLError:
        raise ConfigurationError(
            f"{source} is not YAML: it has a character that YAML forbids"
        ) from None
    except RecursionError:
        raise ConfigurationError(f"{source} is nested too deeply") from None
    except ValueError as error:  # from PyYAML's constructors: a date with a 13th month, for one
        raise ConfigurationError(
            f"{source} has a value that YAML does not allow: {error}"
        ) from None
    return mapping(parsed, "", source)


def mapping(raw: object, name: str, source: str) -> dict[str, Any]:
    """`raw` as a mapping with text for keys. A key without a value counts as not there."""
    if raw is None:
        return {}
    what = f"{name} in {source}" if name else source
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{what} is {shown(raw)}, not a mapping of keys to values")
    for key in raw:
        if not isinstance(key, str):
            raise ConfigurationError(f"{what} has the key {shown(key)}, which is not text")
    return {key: value for key, value in raw.items() if value is not None}


def fill(kind: type[_Settings], raw: dict[str, Any], prefix: str, source: str) -> _Settings:
    """An instance of the dataclass `kind`; takes the keys it knows out of `raw`."""
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        key = field.metadata["key"]
        if key in raw:
            values[field.name] = value(field.metadata, raw.pop(key), f"{prefix}{key} in {source}")
    return kind(**values)


def value(metadata: Mapping[str, Any], raw: object, name: str) -> Any:
    """One setting, by its field's metadata; `name` says which it is."""
    kind: Kind = metadata["kind"]
    try:
        return kind(raw)
    except ValueError:
        given = "something else" if metadata["secret"] else shown(raw)
        raise ConfigurationError(f"{name} is {given}, not {kind.allowed}") from None


def unknown(key: str, known: Sequence[str], prefix: str, source: str) -> str:
    """What to say of a key that nobody knows."""
    import difflib  # only for a slip of the hand

    near = difflib.get_close_matches(key, known, n=1)
    guess = f" (is it {prefix}{near[0]}?)" if near else ""
    return f"{prefix}{key[:60]} in {source} is not a known key{guess}"


def shown(raw: object) -> str:
    """A value in a message: short, on one line, and no PEM text."""
    text = repr(raw)
    if "-----BEGIN" in text:
        return "PEM text"
    return text if len(text) <= 60 else f"{text[:57]}…"
