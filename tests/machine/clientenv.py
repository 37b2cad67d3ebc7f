# SPDX-License-Identifier: MIT
"""Clients as people install them, on the host: virtual environments with releases of PyPI.

    rnx_command(cache, NEWEST)     the words that start rnx of this tree's wheel
    with Sdk(cache, "2.5.1", config) as sdk:
        sdk.jobs.run_job("echo", ["hi"])

The releases are named here, so that a run tells something about this tree and not about the day;
raise them now and then. An environment is kept in the rig's cache by all that goes into it: the
first one takes half a minute, an unchanged one nothing, and rnx's own some seconds after a change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import select
import subprocess
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.machine.rig import Cache, RigError
from tests.machine.rig.cache import key_of
from tools.wheel import copy_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DRIVER = Path(__file__).with_name("sdk_driver.py")
PYTHON = "/usr/bin/python3"

GRPC = ("grpcio==1.85.3", "protobuf==7.36.2")
SDK = "joblet-sdk-python"
NEWEST_SDK = f"{SDK}==2.5.2"

NEWEST = (*GRPC, "click==8.5.1", "PyYAML==6.0.4", NEWEST_SDK)
"""What rnx meets in an environment made today, beside the published SDK."""

OLDEST = {
    (3, 11): ("grpcio==1.51.1", "protobuf==4.21.12", "click==8.1.3", "PyYAML==6.0"),
    (3, 13): ("grpcio==1.66.2", "protobuf==4.21.12", "click==8.1.3", "PyYAML==6.0.2"),
}
"""The oldest that rnx says it works with, as far as there are wheels of it for this Python."""

INSTALL_S = 300
CALL_S = 30.0
KIND = "client"
NO_PROTOC = "/nonexistent"
"""A PATH for building the wheel as on a machine that has no protoc, which is most of them."""


def oldest() -> tuple[str, ...]:
    """OLDEST for the Python that environments are made of."""
    code = "import sys; print(*sys.version_info[:2])"
    major, minor = _run([PYTHON, "-c", code]).split()
    return OLDEST[int(major), int(minor)]


def rnx_command(cache: Cache, requirements: Sequence[str] = NEWEST) -> list[str]:
    """rnx of this tree's wheel in an environment with these requirements."""
    with tempfile.TemporaryDirectory(prefix="joblet-wheel-") as name:
        tree = Path(name) / "tree"
        digest = _copy_sources(tree)
        venv = _venv(
            cache, requirements, "this tree's rnx", digest, lambda: [_wheel(cache, tree, digest)]
        )
    # An entry of the cache is renamed when it is finished, and scripts name their interpreter.
    return [str(venv / "bin/python"), str(venv / "bin/rnx")]


class Sdk:
    """One client of the published SDK, in a process of its own that makes one call after another.

    An attribute path that is called is a method of its JobletClient: sdk.jobs.list_jobs(). What
    that raises there is raised here as SdkError. Iterators come as lists, bytes as bytes. Of a call
    through a stub, sdk.jobs.stub.StopJob(uuid=...), the arguments are the request's fields, and
    the answer comes as its fields.
    """

    def __init__(self, cache: Cache, version: str, config: Path, node: str = "default") -> None:
        venv = _venv(cache, (f"{SDK}=={version}", *GRPC), f"the SDK {version}")
        # No home: the SDK would take a CA from there before the configuration's own.
        self._process = subprocess.Popen(
            [venv / "bin/python", "-I", "-W", "ignore", DRIVER, str(config), node],
            env={"HOME": "/nonexistent", "GRPC_VERBOSITY": "NONE"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.seconds = 0.0
        """How long the last call took in the client."""

    def __getattr__(self, name: str) -> _Path:
        return _Path(self, (name,))

    def ask(self, path: Sequence[str], words: Sequence[Any], fields: dict[str, Any]) -> None:
        """Sends a call and does not wait for its answer."""
        assert self._process.stdin is not None
        asked = {"path": path, "args": words, "kwargs": fields}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, timeout: float = CALL_S) -> Any:
        """The answer to what was asked. Raises SdkError, and RigError if none comes."""
        out = self._process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], timeout)
        line = out.readline() if ready else b""
        if not line:
            why = f"none in {timeout:g} s" if not ready else "the SDK's process ended"
            raise RigError("get an answer of the SDK", why)
        answer = json.loads(line, object_hook=_bytes)
        self.seconds = answer["seconds"]
        if "raised" in answer:
            raise SdkError(answer["raised"], answer["text"])
        return answer["value"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()


class SdkError(Exception):
    """`kind` is the name of the exception's class, `text` what it says."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


@dataclasses.dataclass(frozen=True)
class _Path:
    sdk: Sdk
    names: tuple[str, ...]

    def __getattr__(self, name: str) -> _Path:
        return _Path(self.sdk, (*self.names, name))

    def __call__(self, *words: Any, **fields: Any) -> Any:
        self.sdk.ask(self.names, words, fields)
        return self.sdk.answer()


def _bytes(value: dict[str, Any]) -> Any:
    return bytes.fromhex(value["bytes"]) if value.keys() == {"bytes"} else value


# ------------------------------------------------------------------------------------ environments


def _venv(
    cache: Cache,
    requirements: Sequence[str],
    what: str,
    digest: str = "",
    wheels: Callable[[], Sequence[Path]] = tuple,
) -> Path:
    """The environment with these requirements, and with the wheels whose sources have `digest`."""
    cache.prune(KIND)

    def build(target: Path) -> None:
        more = [str(wheel) for wheel in wheels()]
        _run([PYTHON, "-m", "venv", "--without-pip", str(target)])
        pip = [*_pip(cache), "--python", str(target / "bin/python")]
        _run([*pip, "install", "--quiet", *requirements, *more])

    key = key_of(_python(), requirements, digest)
    return cache.entry(KIND, key, f"an environment for {what}", build)


def _wheel(cache: Cache, tree: Path, digest: str) -> Path:
    """The wheel, built in the tree with what pyproject.toml names as its requirements."""
    with (tree / "pyproject.toml").open("rb") as file:
        requires = tomllib.load(file)["build-system"]["requires"]
    python = cache.entry(
        KIND,
        key_of("build", _python(), requires),
        "an environment to build wheels in",
        lambda target: _build_venv(target, requires),
    )

    def build(target: Path) -> None:
        words = [str(python / "bin/python"), "-m", "pip", "wheel", "--quiet", "--no-deps"]
        _run([*words, "--no-build-isolation", f"--wheel-dir={target}", str(tree)], PATH=NO_PROTOC)

    key = key_of("wheel", _python(), requires, digest)
    (wheel,) = cache.entry(KIND, key, "this tree's wheel", build).iterdir()
    return wheel


def _build_venv(target: Path, requires: Sequence[str]) -> None:
    _run([PYTHON, "-m", "venv", str(target)])
    _run([str(target / "bin/python"), "-m", "pip", "install", "--quiet", "wheel", *requires])


def _pip(cache: Cache) -> list[str]:
    """pip, from an environment that has it: to put it into each would cost more than all else."""

    def build(target: Path) -> None:
        _run([PYTHON, "-m", "venv", str(target)])

    python = cache.entry(KIND, key_of("pip", _python()), "an environment with pip", build)
    return [str(python / "bin/python"), "-m", "pip"]


def _python() -> str:
    """The interpreter that environments are made of: the one that Debian's python3 leads to."""
    return f"{Path(PYTHON).resolve()} {_run([PYTHON, '-V'])}"


def _run(words: Sequence[str], **environ: str) -> str:
    """A command's output; RigError with what it said if it fails."""
    env = {**os.environ, **environ}
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        env.pop(name, None)
    begun = time.monotonic()
    done = subprocess.run(
        words, env=env, check=False, capture_output=True, text=True, timeout=INSTALL_S
    )
    if done.returncode != 0:
        why = f"exit code {done.returncode} after {time.monotonic() - begun:.0f} s"
        raise RigError(f"run {' '.join(words)}", why, f"{done.stdout}{done.stderr}")
    return done.stdout.strip()


def _copy_sources(tree: Path) -> str:
    """Copies what the wheel is made of, and returns its hash: what is hashed must be what is built,
    and pip leaves things in the tree that it builds."""
    digest = hashlib.sha256()
    for path in copy_sources(tree):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(tree)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
