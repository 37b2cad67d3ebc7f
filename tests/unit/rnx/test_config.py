# SPDX-License-Identifier: MIT
"""Where a configuration is found, and what is said about one that cannot be used."""

import types
from pathlib import Path
from typing import Any

import pytest
import yaml

import rnx.config
from rnx.config import Config, candidates, find, load
from rnx.errors import ConfigError
from tests.unit.rnx.certs import Authority, Pair
from tests.unit.rnx.conftest import Rnx, node, write_config

PEM = "-----BEGIN X-----\nabc\n-----END X-----\n"
NODE = {"address": "host:1234", "cert": PEM, "key": PEM, "ca": PEM}


def one(**changes: Any) -> Config:
    raw = {**NODE, **changes}
    return Config(
        Path("f.yml"), {"n": {key: value for key, value in raw.items() if value is not None}}
    )


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Path]:
    """A file at each place that can be had in a test, in the order of the search."""
    places = {
        "variable": tmp_path / "a.yml",
        "sdk variable": tmp_path / "b.yml",
        "cwd": tmp_path / "cwd" / "rnx-config.yml",
        "cwd/config": tmp_path / "cwd" / "config" / "rnx-config.yml",
        "home": tmp_path / "home" / ".rnx" / "rnx-config.yml",
    }
    for path in places.values():
        write_config(path, {"default": NODE})
    return places


def test_the_search_goes_in_order(tree: dict[str, Path], tmp_path: Path) -> None:
    environ = {"RNX_CONFIG": str(tree["variable"]), "RNX_CONFIG_PATH": str(tree["sdk variable"])}
    for place in list(tree.values()):
        assert find(None, environ, tmp_path / "cwd", tmp_path / "home") == place
        place.unlink()


def test_system_wide_places_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rnx.config, "os", types.SimpleNamespace(name="posix"))
    *_, etc, opt = candidates({}, Path("/c"), Path("/h"))
    assert (etc, opt) == (
        Path("/etc/joblet/rnx-config.yml"),
        Path("/opt/joblet/config/rnx-config.yml"),
    )


def test_the_option_beats_all_and_is_not_searched_for(tree: dict[str, Path]) -> None:
    environ = {"RNX_CONFIG": str(tree["variable"])}
    assert find("x.yml", environ, Path(), Path()) == Path("x.yml")


def test_a_variable_that_names_no_file_is_passed_over(
    tree: dict[str, Path], tmp_path: Path
) -> None:
    environ = {"RNX_CONFIG": str(tmp_path / "gone")}
    assert find(None, environ, tmp_path / "cwd", tmp_path) == tree["cwd"]


def test_none_found_says_where_it_looked() -> None:
    paths = [Path("/nowhere/x.yml")]
    with pytest.raises(ConfigError, match="client configuration file not found") as caught:
        find(None, {"RNX_CONFIG": str(paths[0])}, Path("/nowhere/c"), Path("/nowhere/h"))
    for path in candidates(
        {"RNX_CONFIG": "/nowhere/x.yml"}, Path("/nowhere/c"), Path("/nowhere/h")
    ):
        assert str(path) in caught.value.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no nodes configured in"),
        ("nodes: {}", "no nodes configured in"),
        ("nodes:", "no nodes configured in"),
        ("- a\n", "no nodes configured in"),
        ("nodes: [a]", "not a mapping"),
        ("nodes: {a: [}", "in line 1"),
        ("a:\n\tb: 1", "in line 2"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(path)
    assert str(path) in caught.value.text


def test_a_mistake_in_yaml_does_not_show_the_key_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text('nodes:\n  default:\n    key: "hunter2\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "hunter2" not in caught.value.text


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    for path, said in [
        (tmp_path / "gone.yml", "not found"),
        (tmp_path, "cannot read"),
        (tmp_path / "binary.yml", "not UTF-8"),
    ]:
        with pytest.raises(ConfigError, match=said):
            load(path)


def test_a_file_of_others_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """root reads everything, so the refusal is made here."""

    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"permission denied; .*group rnx"):
        load(tmp_path / "c.yml")


def test_a_node() -> None:
    found = one(nodeId="i", serverName="joblet").node("n")
    assert (found.host, found.port, found.address) == ("host", 1234, "host:1234")
    assert (found.cert, found.node_id, found.server_name) == (PEM, "i", "joblet")


def test_keys_are_not_in_a_nodes_repr() -> None:
    config = one()
    assert "BEGIN" not in repr(config.node("n"))
    assert "BEGIN" not in repr(config)


@pytest.mark.parametrize(
    ("address", "host", "port", "dialled"),
    [
        ("h", "h", 50051, "h:50051"),
        ("h:", "h", 50051, "h:50051"),
        ("10.0.0.1:1", "10.0.0.1", 1, "10.0.0.1:1"),
        ("[::1]:9", "::1", 9, "[::1]:9"),
        ("[::1]", "::1", 50051, "[::1]:50051"),
        ("::1", "::1", 50051, "[::1]:50051"),
    ],
)
def test_addresses(address: str, host: str, port: int, dialled: str) -> None:
    found = one(address=address).node("n")
    assert (found.host, found.port, found.address) == (host, port, dialled)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"address": None}, "address is missing"),
        ({"address": ":1"}, "names no host"),
        ({"address": "h:x"}, "no valid port: 'x'"),
        ({"address": "h:0"}, "no valid port"),
        ({"address": "h:65536"}, "no valid port"),
        ({"address": "[::1"}, r"not \[host\]:port"),
        ({"address": "a:b:c"}, "not host:port"),
        ({"address": ["h"]}, "address is not text"),
        ({"cert": None}, "cert is missing"),
        ({"key": ""}, "key is missing"),
        ({"ca": "/etc/ca.pem"}, "ca is not PEM text; .*not its path"),
        ({"ca": {"a": 1}}, "ca is not text"),
    ],
)
def test_nodes_that_cannot_be_used(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        one(**changes).node("n")
    assert caught.value.text.startswith("cannot use node 'n' of f.yml: ")


def test_a_node_that_is_no_mapping() -> None:
    with pytest.raises(ConfigError, match="not a mapping"):
        Config(Path("f"), {"n": "host:1"}).node("n")


def test_an_unknown_node_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"node 'x' not found in configuration .* it has n"):
        one().node("x")


# ------------------------------------------------------------------------------------- through rnx


def test_nodes_lists_them_without_asking_a_server(rnx: Rnx, tmp_path: Path) -> None:
    path = write_config(
        tmp_path / "c.yml",
        {"viewer": {**NODE, "nodeId": "v-1"}, "default": NODE, "broken": {"address": "x"}},
    )
    listed = rnx("nodes", "--config", str(path))
    assert listed.code == 0
    assert "* default\n   Address: host:1234\n   Node ID: -\n   Cert:    ***\n" in listed.text
    assert "  viewer\n   Address: host:1234\n   Node ID: v-1\n" in listed.text
    assert "  broken\n   Error: cannot use node 'broken'" in listed.text
    assert "BEGIN" not in listed.text
    broken, default, viewer = rnx("nodes", "--json", "--config", str(path)).json
    assert broken["status"] == "error"
    assert default == {
        "name": "default",
        "address": "host:1234",
        "status": "active",
        "default": True,
    }
    assert viewer["nodeId"] == "v-1"


def test_a_missing_configuration_is_one_line(rnx: Rnx) -> None:
    for words in (["list"], ["run", "x"], ["nodes"], ["log", "x"]):
        result = rnx(*words)
        assert (result.code, result.out, result.err.count("\n")) == (1, b"", 1)
        assert result.err.startswith("Error: client configuration file not found")


def test_another_node_is_another_connection(
    rnx: Rnx, config_file: Path, authority: Authority, admin: Pair
) -> None:
    nodes = yaml.safe_load(config_file.read_text())["nodes"]
    nodes["dead"] = node(1, admin, authority)
    write_config(config_file, nodes)
    assert rnx("list").code == 0
    dead = rnx("--node", "dead", "list")
    assert dead.code == 1
    assert "node 'dead' at 127.0.0.1:1: connection refused" in dead.err
    assert "node 'x' not found in configuration" in rnx("list", "--node=x").err
    assert r"node '\xff' not found in configuration" in rnx("list", "--node=\udcff").err


def test_rnx_config_is_read_from_the_environment(
    rnx: Rnx, config_file: Path, tmp_path: Path, env: Any
) -> None:
    moved = tmp_path / "elsewhere.yml"
    config_file.replace(moved)
    env.environ = {"RNX_CONFIG": str(moved)}
    assert rnx("list").code == 0
    env.environ = {"RNX_CONFIG_PATH": str(moved)}
    assert rnx("list").code == 0
