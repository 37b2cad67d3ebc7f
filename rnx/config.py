# SPDX-License-Identifier: MIT
"""rnx-config.yml: where it is looked for, what a node is.

    nodes:
      NAME:
        address: host:port       # 50051 without a port; IPv6 as [::1]:50051
        cert, key, ca: PEM text  # of the client, and of who signed the server's certificate
        nodeId: text             # optional, for people
        serverName: text         # optional: the name to expect in the server's certificate

Other keys are ignored, as published clients do. Certificates are embedded, never paths. The file is
UTF-8; Windows' editors and shells put a mark before it or write UTF-16, and that is read as well.
"""

import codecs
import dataclasses
import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rnx.errors import ConfigError
from rnx.output import quoted

DEFAULT_NODE = "default"
DEFAULT_PORT = 50051
FILE = "rnx-config.yml"

# Read in this order; RNX_CONFIG is rnx's, RNX_CONFIG_PATH that of the Python SDK.
VARIABLES = ("RNX_CONFIG", "RNX_CONFIG_PATH")


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A server and how to reach it; `cert`, `key` and `ca` are PEM text."""

    name: str
    host: str
    port: int
    cert: str = dataclasses.field(repr=False)
    key: str = dataclasses.field(repr=False)
    ca: str = dataclasses.field(repr=False)
    node_id: str = ""
    server_name: str = ""

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """A configuration file. Nodes are checked when they are asked for, so that a broken one does
    not stand in the way of the others."""

    path: Path
    nodes: Mapping[str, Any] = dataclasses.field(repr=False)

    def node(self, name: str) -> Node:
        """Raises ConfigError: not there, or not usable."""
        if name not in self.nodes:
            have = ", ".join(sorted(self.nodes))
            raise ConfigError(
                f"node {quoted(name)} not found in configuration {self.path}; "
                f"it has {have}: choose one with --node"
            )
        return _node(self.path, name, self.nodes[name])


def candidates(environ: Mapping[str, str], cwd: Path, home: Path) -> Iterator[Path]:
    """Where a configuration is looked for when none is named, in order."""
    yield from (Path(environ[name]) for name in VARIABLES if environ.get(name))
    yield cwd / FILE
    yield cwd / "config" / FILE
    yield home / ".rnx" / FILE
    if os.name == "nt":  # there /etc is a directory of the current drive that any user may make
        return
    yield Path("/etc/joblet") / FILE
    yield Path("/opt/joblet/config") / FILE


def find(explicit: str | None, environ: Mapping[str, str], cwd: Path, home: Path) -> Path:
    """The file to use: `explicit` if given, else the first candidate that is there.

    A variable that names no file is passed over, as published clients do. Raises ConfigError.
    """
    if explicit is not None:
        if not explicit:
            raise ConfigError("cannot use --config: it names no file")
        return Path(explicit)
    tried = list(candidates(environ, cwd, home))
    for path in tried:
        if _is_there(path):
            return path
    raise ConfigError(
        "client configuration file not found; looked for "
        f"{', '.join(map(str, tried))}: name one with --config or {VARIABLES[0]}"
    )


def load(path: Path) -> Config:
    """Raises ConfigError."""
    try:
        text = _decode(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"client configuration file not found: {path}; check the path, or leave it out"
        ) from None
    except PermissionError:
        raise ConfigError(
            f"cannot read {path}: permission denied; what `joblet cert` writes is for root and the "
            "group rnx: join the group, or name a file of your own with --config"
        ) from None
    except UnicodeError:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    document = _parse(path, text)
    nodes = document.get("nodes") if isinstance(document, dict) else None
    if not nodes:
        raise ConfigError(f"no nodes configured in {path}")
    if not isinstance(nodes, dict):
        raise ConfigError(f"cannot read {path}: `nodes` is not a mapping of names to nodes")
    return Config(path, {str(name): node for name, node in nodes.items()})


def _decode(content: bytes) -> str:
    """Raises UnicodeError."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a directory on the way that we may not enter
        return False


def _parse(path: Path, text: str) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506  (both are safe loaders)
    except yaml.YAMLError as error:
        # str(error) quotes the text around the mistake, which may be a private key.
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise ConfigError(f"cannot read {path}: {problem}{where}") from None


def _node(path: Path, name: str, raw: Any) -> Node:
    what = f"cannot use node {name!r} of {path}"
    if not isinstance(raw, dict):
        raise ConfigError(f"{what}: it is not a mapping with address, cert, key and ca")

    def text(key: str, *, required: bool) -> str:
        value = raw.get(key)
        if value is None or value == "":
            if required:
                raise ConfigError(f"{what}: {key} is missing")
            return ""
        if not isinstance(value, (str, int, float)):
            raise ConfigError(f"{what}: {key} is not text")
        return str(value)

    def pem(key: str) -> str:
        value = text(key, required=True)
        if "-----BEGIN " not in value:
            raise ConfigError(
                f"{what}: {key} is not PEM text; put the certificate itself there, not its path"
            )
        return value

    try:
        host, port = _address(text("address", required=True))
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None
    return Node(
        name=name,
        host=host,
        port=port,
        cert=pem("cert"),
        key=pem("key"),
        ca=pem("ca"),
        node_id=text("nodeId", required=False),
        server_name=text("serverName", required=False),
    )


def _address(text: str) -> tuple[str, int]:
    """Host without brackets, and port."""
    host, _, port = text.rpartition(":")
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"address {text!r} is not [host]:port")
        host, port = inner, rest.removeprefix(":")
    elif text.count(":") > 1:
        try:
            host, port = str(ipaddress.ip_address(text)), ""
        except ValueError:
            raise ValueError(f"address {text!r} is not host:port") from None
    elif not host:
        host, port = (text, "") if ":" not in text else ("", port)
    if not host:
        raise ValueError(f"address {text!r} names no host")
    if not port:
        return host, DEFAULT_PORT
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"address {text!r} has no valid port: {port!r}")
    return host, int(port)
