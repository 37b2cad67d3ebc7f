# SPDX-License-Identifier: MIT
"""rnx nodes: what the configuration has. Asks no server."""

from typing import Any

import click

from rnx.config import DEFAULT_NODE, Config, Node
from rnx.errors import ConfigError
from rnx.options import global_options
from rnx.output import one_line
from rnx.session import Session


@click.command("nodes")
@global_options
@click.pass_obj
def command(session: Session) -> None:
    """List the nodes of the configuration. `*` marks the one that is used without --node."""
    config = session.configuration()
    nodes = {name: _look(config, name) for name in sorted(config.nodes)}
    if session.json:
        session.env.print_json([_json(name, node) for name, node in nodes.items()])
    else:
        session.env.print("\n\n".join(["Available nodes from configuration:", *_blocks(nodes)]))


def _look(config: Config, name: str) -> Node | ConfigError:
    try:
        return config.node(name)
    except ConfigError as error:
        return error


def _json(name: str, node: Node | ConfigError) -> dict[str, Any]:
    if isinstance(node, ConfigError):
        return {
            "name": name,
            "address": "",
            "status": "error",
            "default": name == DEFAULT_NODE,
            "error": node.text,
        }
    shown = {"name": name, "address": node.address}
    if node.node_id:
        shown["nodeId"] = node.node_id
    return {**shown, "status": "active", "default": name == DEFAULT_NODE}


def _blocks(nodes: dict[str, Node | ConfigError]) -> list[str]:
    """A block a node; keys are never shown."""
    blocks = []
    for name, node in nodes.items():
        mark = "* " if name == DEFAULT_NODE else "  "
        lines = [f"{mark}{one_line(name)}"]
        if isinstance(node, ConfigError):
            lines.append(f"   Error: {one_line(node.text)}")
        else:
            lines.append(f"   Address: {one_line(node.address)}")
            lines.append(f"   Node ID: {one_line(node.node_id) or '-'}")
            lines += ["   Cert:    ***", "   Key:     ***", "   CA:      ***"]
        blocks.append("\n".join(lines))
    return blocks
