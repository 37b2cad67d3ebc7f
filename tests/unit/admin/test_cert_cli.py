# SPDX-License-Identifier: MIT
"""`joblet cert init` and `joblet cert show`: what they write, refuse and say."""

import datetime
import io
import os
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from joblet import config
from joblet.admin import cert, cli
from joblet.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from joblet.server import access
from joblet.server.access import Role

NOW = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)


def machine(
    *, days: int = 0, root: bool = False, groups: dict[str, int] | None = None
) -> cli.Machine:
    return cli.Machine(
        source=cert.Source(NOW + datetime.timedelta(days=days)),
        out=io.StringIO(),
        hostname="worker-7",
        root=root,
        group=(groups or {}).get,
    )


def run(there: cli.Machine, *argv: str) -> tuple[int, str]:
    assert isinstance(there.out, io.StringIO)
    code = cli.main(argv, there)
    return code, there.out.getvalue()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "joblet"


def init(directory: Path, *argv: str, there: cli.Machine | None = None) -> str:
    code, text = run(there or machine(), "init", "--dir", str(directory), *argv)
    assert code == 0
    return text


def server_names(directory: Path) -> list[str]:
    loaded = config.load(directory / "joblet-config.yml", environ={})
    return cert.alternative_names(access.certificates(loaded.config.security.server_cert)[0])


def test_init_makes_all_that_both_ends_need(directory: Path) -> None:
    text = init(
        directory,
        "--address",
        "build.example.org:6000",
        "--names",
        "a,b.example",
        "--names",
        "10.1.1.1",
    )
    loaded = config.load(directory / "joblet-config.yml", environ={})
    config.require_certificates(loaded)
    assert loaded.warnings == ()
    security = loaded.config.security
    assert (
        access.check_server(security.server_cert, security.server_key, security.ca_cert, now=NOW)
        == ()
    )
    nodes = yaml.safe_load((directory / "rnx-config.yml").read_text())["nodes"]
    assert list(nodes) == ["default", "viewer"]
    for name, role in (("default", Role.ADMIN), ("viewer", Role.VIEWER)):
        node = nodes[name]
        assert node["address"] == "build.example.org:6000"
        assert node["ca"] == security.ca_cert
        certificate = access.certificates(node["cert"])[0]
        assert access.identify(node["cert"].encode()).role is role
        assert access.owns(node["key"], certificate)
        assert access.signed_by(certificate, access.certificates(node["ca"])[0])
    assert set(server_names(directory)) == {
        "joblet", "localhost", "joblet-server", "127.0.0.1", "::1", "worker-7",
        "build.example.org", "a", "b.example", "10.1.1.1",
    }  # fmt: skip
    for word in (
        "rnx-config.yml",
        "build.example.org:6000",
        "until 2027-03-01",
        "until 2036-02-27",
    ):
        assert word in text
    assert "PRIVATE KEY" not in text


def test_every_certificate_is_recorded_by_its_serial_number(directory: Path) -> None:
    init(directory)
    issued = sorted((directory / "ca" / "issued").iterdir())
    names = set()
    for path in issued:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        assert path.name == f"{certificate.serial_number:x}.crt"
        names.add(access.common_name(certificate.subject))
    assert names == {"joblet-server", "admin-client", "viewer-client"}


def modes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode)
        for path in (directory, *directory.rglob("*"))
        if "issued/" not in str(path)
    }


def test_modes_without_root(directory: Path) -> None:
    text = init(directory)
    assert modes(directory) == {
        ".": 0o755, "ca": 0o700, "ca/issued": 0o700, "ca/ca.key": 0o600, "ca/ca.crt": 0o600,
        "joblet-config.yml": 0o600, "rnx-config.yml": 0o600,
    }  # fmt: skip
    assert text.count("is yours alone") == 2


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Who was given which file, by its final name; nothing changes hands, so anyone can run it."""
    owners = {}

    def fchown(fd: int, uid: int, gid: int) -> None:
        temporary = Path(f"/proc/self/fd/{fd}").readlink().name
        owners[temporary.strip(".").rpartition(".")[0]] = (uid, gid)

    def chown(path: Path, uid: int, gid: int) -> None:
        owners[path.name] = (uid, gid)

    monkeypatch.setattr(os, "fchown", fchown)
    monkeypatch.setattr(os, "chown", chown)
    return owners


def test_owners_and_modes_for_root(directory: Path, given: dict[str, tuple[int, int]]) -> None:
    text = init(directory, there=machine(root=True, groups={"joblet": 4321, "rnx": 4322}))
    found = modes(directory)
    assert found["joblet-config.yml"] == found["rnx-config.yml"] == 0o640
    assert found["ca"] == 0o700
    assert found["ca/ca.key"] == 0o600
    assert given["joblet-config.yml"] == (0, 4321)
    assert given["rnx-config.yml"] == (0, 4322)
    assert given["ca.key"] == given["ca"] == given["joblet"] == (0, 0)
    assert "Warning" not in text


def test_without_the_groups_root_keeps_the_files(
    directory: Path, given: dict[str, tuple[int, int]]
) -> None:
    text = init(directory, there=machine(root=True))
    assert set(given.values()) == {(0, 0)}
    assert modes(directory)["joblet-config.yml"] == 0o600
    assert "there is no group joblet" in text
    assert "chgrp rnx" in text


def test_an_existing_configuration_keeps_its_lines(directory: Path) -> None:
    directory.mkdir(parents=True)
    path = directory / "joblet-config.yml"
    mine = (
        "# mine\nserver:\n  port: 7000  # odd\n  address: 10.9.8.7\njoblet: {defaultCpuLimit: 50}\n"
    )
    path.write_text(mine)
    text = init(directory)
    assert path.read_text().startswith(mine)
    loaded = config.load(path, environ={})
    assert loaded.config.joblet.default_cpu_limit == 50
    config.require_certificates(loaded)
    assert "127.0.0.1:7000" in text
    assert "10.9.8.7" in server_names(directory)


def test_nothing_is_replaced_without_force(directory: Path) -> None:
    init(directory)
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(AlreadyExists, match="there are some in") as info:
        init(directory)
    assert "--force" in info.value.hint
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    for name in ("ca/ca.key", "ca/ca.crt", "joblet-config.yml", "rnx-config.yml"):
        for other in before:
            if str(other.relative_to(directory)) != name:
                other.unlink(missing_ok=True)
        with pytest.raises(AlreadyExists, match=name):
            init(directory)
        for path, content in before.items():
            path.write_bytes(content)


def test_force_keeps_the_old_files_and_makes_a_new_authority(directory: Path) -> None:
    init(directory)
    before = {
        name: (directory / name).read_text()
        for name in ("ca/ca.key", "ca/ca.crt", "joblet-config.yml", "rnx-config.yml")
    }
    text = init(directory, "--force")
    for name, content in before.items():
        assert (directory / f"{name}.old").read_text() == content
        assert (directory / name).read_text() != content
        assert f"Kept: {directory / name}.old" in text
    old = yaml.safe_load(before["rnx-config.yml"])["nodes"]["default"]["cert"]
    new_ca = config.load(directory / "joblet-config.yml", environ={}).config.security.ca_cert
    assert not access.signed_by(access.certificates(old)[0], access.certificates(new_ca)[0])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--address", "a b"], "'a b' is no host name and no IP address"),
        (["--address", "host:0"], "'host:0' has no port from 1 to 65535"),
        (["--address", "host:x"], "has no port"),
        (["--address", ""], "no host name"),
        (["--names", "*.example.org"], "no host name"),
        (["--days", "0"], "0 days are not from 1 to 36500"),
        (["--ca-days", "99999"], "99999 days are not"),
    ],
)
def test_bad_arguments_write_nothing(directory: Path, argv: list[str], words: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot ") as info:
        init(directory, *argv)
    assert words in str(info.value)
    assert not directory.exists()


def test_a_broken_configuration_is_not_touched(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "joblet-config.yml").write_text("server: {port: x}")
    with pytest.raises(config.ConfigurationError, match=r"server\.port"):
        init(directory)
    assert [path.name for path in directory.iterdir()] == ["joblet-config.yml"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match=r"cannot make certificates: .*file") as info:
        init(tmp_path / "file" / "joblet")
    assert "as root" in info.value.hint


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", ("host", 50051)),
        ("host:1", ("host", 1)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("::1", ("::1", 50051)),
        ("[::1]", ("::1", 50051)),
        ("[2001:db8::1]:7", ("2001:db8::1", 7)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert cli.split_address(text, 50051) == address
    assert cli.split_address(cli.join_address(*address), 1) == address


def test_the_command_line_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in (
        ([], "COMMAND"),
        (["init", "--nonsense"], "--nonsense"),
        (["x"], "invalid choice"),
    ):
        with pytest.raises(SystemExit) as info:
            cli.main(argv)
        assert info.value.code == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit) as info:
        cli.main(["init", "--help"])
    assert info.value.code == 0
    assert "--ca-days" in capsys.readouterr().out


def test_the_real_machine(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--dir", str(directory)]) == 0
    assert cli.main(["show", "--dir", str(directory)]) == 0
    assert "CN=joblet-server" in capsys.readouterr().out


# -- show ------------------------------------------------------------------------------------------


def show(directory: Path, **there: int) -> tuple[int, str]:
    return run(machine(**there), "show", "--dir", str(directory))  # type: ignore[arg-type]


def test_show(directory: Path) -> None:
    init(directory, "--names", "extra")
    code, text = show(directory)
    assert code == 0
    for words in ("CN=Joblet-CA", "CN=joblet-server", "CN=admin-client", "role    viewer", "extra",
                  "until   2027-03-01 12:00 UTC (365 days)", "nodes.default.cert"):  # fmt: skip
        assert words in text
    assert "PRIVATE" not in text


def test_show_says_what_expires_and_what_expired(directory: Path) -> None:
    init(directory)
    code, text = show(directory, days=350)
    assert code == 0
    assert text.count("NOTE: it expires on 2027-03-01") == 3
    code, text = show(directory, days=400)
    assert code == 1
    assert text.count("PROBLEM: it expired on 2027-03-01") == 3


def test_show_says_what_does_not_fit(directory: Path, tmp_path: Path) -> None:
    init(directory)
    init(tmp_path / "other")
    other = yaml.safe_load((tmp_path / "other" / "rnx-config.yml").read_text())["nodes"]
    path = directory / "rnx-config.yml"
    nodes = yaml.safe_load(path.read_text())["nodes"]
    nodes["default"]["key"] = nodes["viewer"]["key"]
    nodes["viewer"]["ca"] = other["viewer"]["ca"]
    nodes["empty"] = {"address": "x"}
    nodes["broken"] = {**other["default"], "key": "nonsense"}
    path.write_text(yaml.safe_dump({"nodes": nodes}))
    code, text = show(directory)
    assert code == 1
    assert "PROBLEM: its key is another certificate's" in text
    assert "PROBLEM: the configured CA did not sign it" in text
    assert "nodes.empty.cert  is missing" in text
    assert "nodes.broken.cert  cannot read a private key" in text


def test_show_says_that_a_role_is_missing(directory: Path) -> None:
    init(directory)
    source = cert.Source(NOW)
    authority = cert.make_authority(source, days=10)
    server = cert.make_server(source, authority, ["x"], days=5)
    node = {"cert": server.certificate_pem, "key": server.key_pem, "ca": authority.certificate_pem}
    (directory / "rnx-config.yml").write_text(yaml.safe_dump({"nodes": {"default": node}}))
    code, text = show(directory)
    assert code == 1
    assert "PROBLEM: its certificate has no OU" in text


def test_show_without_anything(directory: Path) -> None:
    with pytest.raises(FailedPrecondition, match="there are none") as info:
        show(directory)
    assert "joblet cert init" in info.value.hint
