# SPDX-License-Identifier: MIT
"""The wheel that `make wheel` builds: what is in it, what it says of itself, and that it comes out
the same. What it does once it is installed, tests/machine/test_clients.py shows."""

import email.message
import email.parser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.stubs import OWN_POOL, StubsError, own_pool

TREE = Path(__file__).resolve().parents[2]
EPOCH = 1_700_000_000


def built(out: Path, *, umask: int) -> Path:
    environ = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    words = [sys.executable, str(TREE / "tools" / "wheel.py"), str(out)]
    done = subprocess.run(words, env=environ, umask=umask, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"), umask=0o022)


@pytest.fixture
def files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


def of_info(files: dict[str, bytes], name: str) -> str:
    (path,) = [path for path in files if path.endswith(f".dist-info/{name}")]
    return files[path].decode()


def test_it_holds_rnx_and_the_wire_contract_alone(files: dict[str, bytes]) -> None:
    tops = {name.partition("/")[0] for name in files if ".dist-info/" not in name}
    assert tops == {"rnx", "joblet_pb"}
    assert of_info(files, "top_level.txt").split() == ["joblet_pb", "rnx"]
    sources = {
        str(path.relative_to(TREE)) for path in (TREE / "rnx").rglob("*.py") if path.is_file()
    }
    assert {name for name in files if name.startswith("rnx/")} == {*sources, "rnx/py.typed"}
    stubs = {name for name in files if name.startswith("joblet_pb/")}
    assert {"joblet_pb/joblet_pb2.py", "joblet_pb/joblet_pb2.pyi", "joblet_pb/py.typed"} <= stubs


def test_it_is_for_every_system(wheel: Path, files: dict[str, bytes]) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "Root-Is-Purelib: true" in of_info(files, "WHEEL")
    # what a newer protoc writes, and an older protobuf has not
    assert b"import runtime_version" not in files["joblet_pb/joblet_pb2.py"]
    assert OWN_POOL.encode() in files["joblet_pb/joblet_pb2.py"]


def test_what_it_says_of_itself(files: dict[str, bytes]) -> None:
    said: email.message.Message = email.parser.Parser().parsestr(of_info(files, "METADATA"))
    assert (said["Name"], said["License"]) == ("joblet-rnx", "MIT")
    assert said["Requires-Python"] == ">=3.11"
    assert said["Description-Content-Type"] == "text/markdown"
    assert "rnx run --follow" in said.get_payload()
    needs = [need.replace(" ", "").replace("(", "").replace(")", "")
             for need in said.get_all("Requires-Dist", [])]  # fmt: skip
    # lower bounds are what Debian 12 has, and nothing is bound above
    assert sorted(needs) == ["PyYAML>=6.0", "click>=8.1.3", "grpcio>=1.51", "protobuf>=4.21.12"]
    assert "MIT License" in of_info(files, "LICENSE")
    assert of_info(files, "entry_points.txt").split() == [
        "[console_scripts]", "rnx", "=", "rnx.entry:main"
    ]  # fmt: skip


def test_the_same_sources_give_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    again = built(tmp_path, umask=0o077)
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_stubs_that_share_a_pool_are_noticed() -> None:
    with pytest.raises(StubsError, match="cannot make joblet_pb: protoc wrote no"):
        own_pool("DESCRIPTOR = pool.AddSerializedFile(b'')\n")
