# SPDX-License-Identifier: MIT
"""What the commands of one call of rnx share: its surroundings, the global options, the client."""

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from rnx import config
from rnx.output import Environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rnx.client import Client


@dataclasses.dataclass(slots=True)
class Session:
    """The global options are set as they are met, the last one counting."""

    env: Environment
    config_file: str | None = None
    node: str = config.DEFAULT_NODE
    json: bool = False
    following: bool = False  # the job's end becomes the exit code

    def configuration(self) -> config.Config:
        """Raises ConfigError."""
        env = self.env
        return config.load(config.find(self.config_file, env.environ, env.cwd, env.home))

    @contextlib.contextmanager
    def client(self) -> "Iterator[Client]":
        """The chosen node's client. Raises ConfigError before anything slow is imported."""
        node = self.configuration().node(self.node)
        from rnx.client import Client

        with Client(node) as client:
            yield client
