# SPDX-License-Identifier: MIT
"""What every part of the bench is given."""

import dataclasses

from tests.bench.guest.measure import Row, broken
from tests.bench.guest.peers import Joblet, Peer, Process
from tests.bench.guest.podman import Podman


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """`no_podman`: why there is none to compare with. `rounds` of `megabytes` each are what the
    log engine is measured with."""

    runs: int
    rounds: int
    megabytes: int
    podman: Podman | None
    no_podman: str

    def scaled(self, count: int) -> int:
        """`count` at the usual 60 runs, fewer for a machine that is emulated."""
        return max(3, count * self.runs // 60)

    def total(self, share: float = 1.0) -> int:
        """Bytes of a run."""
        return int(self.megabytes * 1_000_000 * share)

    def peers(self, *others: Process) -> list[Peer]:
        return [Joblet(), *others, *([self.podman.peer] if self.podman else [])]

    def rows(self, made: list[Row]) -> list[Row]:
        """With the word that podman is missing, where it would stand."""
        return made if self.podman else [*made, broken("podman run --rm", self.no_podman)]
