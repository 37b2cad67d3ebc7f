# SPDX-License-Identifier: MIT
"""A server, a configuration for it, and a way to run rnx in this process."""

import dataclasses
import datetime
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rnx.cli import main
from rnx.output import Environment
from tests.unit.rnx.certs import Authority, Pair
from tests.unit.rnx.scripted import Script, Server

NOW = datetime.datetime(2025, 11, 24, 15, 5, 5, tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run of rnx did."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Rnx = Callable[..., Result]


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority(datetime.datetime.now(datetime.UTC))


@pytest.fixture(scope="session")
def admin(authority: Authority) -> Pair:
    return authority.client("admin")


@pytest.fixture(scope="session")
def server_pair(authority: Authority) -> Pair:
    return authority.server("127.0.0.1", "localhost")


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def server(script: Script, authority: Authority, server_pair: Pair) -> Iterator[Server]:
    with Server(script, authority, server_pair) as running:
        yield running


def node(port: int, pair: Pair, authority: Authority, **more: Any) -> dict[str, Any]:
    """A node of a configuration."""
    address = f"127.0.0.1:{port}"
    return {"address": address, "cert": pair.cert, "key": pair.key, "ca": authority.cert, **more}


def write_config(path: Path, nodes: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"version": "3.0", "nodes": nodes}))
    return path


@pytest.fixture
def config_file(tmp_path: Path, server: Server, admin: Pair, authority: Authority) -> Path:
    """For the running server, in the home directory."""
    nodes = {"default": node(server.port, admin, authority, nodeId="n-1")}
    return write_config(tmp_path / "home" / ".rnx" / "rnx-config.yml", nodes)


@pytest.fixture
def environ(config_file: Path) -> dict[str, str]:
    """Of a process that finds this rnx, this joblet_pb and the configuration."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return {
        "PYTHONPATH": paths,
        "PATH": os.environ["PATH"],
        "RNX_CONFIG": str(config_file),
        "HOME": str(config_file.parent),
    }


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    """No colour, no variables, an empty working directory; time stands still, sleeps are short."""
    (tmp_path / "cwd").mkdir()
    return Environment(
        out=io.BytesIO(),
        err=io.BytesIO(),
        environ={},
        cwd=tmp_path / "cwd",
        home=tmp_path / "home",
        now=NOW.timestamp,
    )


@pytest.fixture
def rnx(env: Environment) -> Rnx:
    """Runs rnx; the configuration is the caller's to make (config_file)."""

    def run(*words: str) -> Result:
        out, err = io.BytesIO(), io.BytesIO()
        env.out, env.err = out, err
        code = main(words, env)
        return Result(code, out.getvalue(), err.getvalue().decode())

    return run
