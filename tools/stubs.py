# SPDX-License-Identifier: MIT
"""Makes the package joblet_pb from proto/joblet.proto: `python3 tools/stubs.py build/stubs`.

The package is made by the build and never committed. It must import with Debian 12's grpcio 1.51
and protobuf 3.21 as well as with today's releases, and only a protoc of the 3.21 generation writes
such code: the distribution's (protobuf-compiler, protobuf-compiler-grpc), or grpcio-tools of the
same age, as pyproject.toml pins it. A protoc of another age on PATH is passed over.

The messages get a descriptor pool of their own. The published SDK describes messages of the same
names, and in the pool that all share only the first to be imported would be taken.

The .proto is handed to protoc under the virtual path joblet_pb/joblet.proto, so that the generated
modules import each other from inside the package. Standard library only: setup.py runs this too.
"""

import filecmp
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = Path("proto") / "joblet.proto"
PACKAGE = "joblet_pb"

INIT = '"""The wire contract of Joblet, generated from proto/joblet.proto: never edit it."""\n'

# protoc types the messages (--pyi_out), but nobody types the services.
GRPC_STUB_HEAD = '''\
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from joblet_pb import joblet_pb2 as pb

_Request = TypeVar("_Request", contravariant=True)

class _Method(Protocol[_Request]):
    """Called on a sync channel or an aio one, and what comes back is that channel's."""

    def __call__(
        self,
        request: _Request,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any: ...
'''
GENERATION = "libprotoc 3.21."
SHARED_POOL = "_descriptor_pool.Default()"
OWN_POOL = "_descriptor_pool.DescriptorPool()"

SERVICE = re.compile(r"^service (\w+) \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
METHOD = re.compile(r"^  rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\);$", re.MULTILINE)


class StubsError(Exception):
    """protoc is missing or refuses; the text says what to do."""


def protoc() -> list[str]:
    """The command that compiles, Debian's if it is complete, else grpcio-tools of this Python."""
    plugin = shutil.which("grpc_python_plugin")
    if shutil.which("protoc") and plugin:
        version = ["protoc", "--version"]
        said = subprocess.run(version, check=False, capture_output=True, text=True).stdout
        if said.startswith(GENERATION):
            return ["protoc", f"--plugin=protoc-gen-grpc_python={plugin}"]
    return [sys.executable, "-m", "grpc_tools.protoc"]


def own_pool(code: str) -> str:
    """The text of joblet_pb2.py with a descriptor pool of its own. Raises StubsError."""
    if code.count(SHARED_POOL) != 1:
        raise StubsError(f"cannot make {PACKAGE}: protoc wrote no {SHARED_POOL}, or several")
    return code.replace(SHARED_POOL, OWN_POOL)


def service_stubs(proto: str) -> str:
    """joblet_pb2_grpc.pyi for the text of the .proto."""
    parts = [GRPC_STUB_HEAD]
    for name, body in SERVICE.findall(proto):
        methods = METHOD.findall(body)
        if len(methods) != body.count(" rpc "):
            raise StubsError(f"cannot type {name}: an rpc of it is not written on one line")
        parts.append(f"\nclass {name}Stub:\n")
        parts.append(
            "    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...\n"
        )
        parts += [f"    {method}: _Method[pb.{request}]\n" for method, request, _, _ in methods]
        parts.append(f"\nclass {name}Servicer:\n")
        for method, request, stream, response in methods:
            both = ("Iterator[{0}] | AsyncIterator[{0}]", "{0} | Awaitable[{0}]")[not stream]
            result = both.format(f"pb.{response}")
            parts.append(f"    def {method}(\n        self, request: pb.{request}, context: Any\n")
            parts.append(f"    ) -> {result}: ...\n")
        parts.append(f"\ndef add_{name}Servicer_to_server(\n    servicer: {name}Servicer, ")
        parts.append("server: grpc.Server | grpc.aio.Server\n) -> None: ...\n")
    return "".join(parts)


def generate(out: Path) -> None:
    """Writes OUT/joblet_pb. Files that would not change are left alone, the others replaced whole,
    so that a test run beside it never sees half a module. Raises StubsError."""
    package = out / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".stubs-") as name:
        made = Path(name)
        outputs = [f"--{kind}_out={made}" for kind in ("python", "pyi", "grpc_python")]
        mapping = f"-I{PACKAGE}={ROOT / PROTO.parent}"
        command = [*protoc(), mapping, *outputs, f"{PACKAGE}/{PROTO.name}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise StubsError(
                f"cannot make {PACKAGE}: {' '.join(command)}: {done.stderr.strip()}; install "
                "protobuf-compiler and protobuf-compiler-grpc, or grpcio-tools for this Python"
            )
        messages = made / PACKAGE / "joblet_pb2.py"
        messages.write_text(own_pool(messages.read_text()))
        (made / PACKAGE / "__init__.py").write_text(INIT)
        (made / PACKAGE / "py.typed").write_text("")
        typed = service_stubs((ROOT / PROTO).read_text())
        (made / PACKAGE / "joblet_pb2_grpc.pyi").write_text(typed)
        for path in (made / PACKAGE).iterdir():
            target = package / path.name
            if not (target.exists() and filecmp.cmp(path, target, shallow=False)):
                path.replace(target)


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: stubs.py DIRECTORY  (makes DIRECTORY/joblet_pb)", file=sys.stderr)
        return 2
    try:
        generate(Path(sys.argv[1]))
    except (StubsError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
