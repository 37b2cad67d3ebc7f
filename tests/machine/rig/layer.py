# SPDX-License-Identifier: MIT
"""A prepared layer: what some commands change on a machine's disk, kept for other machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from . import roots
from .cache import Cache, key_of
from .machine import Command
from .nspawn import Nspawn

if TYPE_CHECKING:
    from pathlib import Path

KIND = "layer"

# What is the machine's own and must not reach the next one: identity, logs, randomness.
OWN = (
    "etc/hostname",
    "etc/hosts",
    "etc/machine-id",
    "var/log/journal/*",
    "var/tmp/*",
    "root/.bash_history",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/timers",
)

Setup = Callable[[Nspawn], object] | Sequence[Command]


def build_layer(
    suite: str,
    layers: Sequence[Path],
    setup: Setup,
    key: object,
    *,
    what: str = "",
    binds_ro: Mapping[Path, str] | None = None,
    cache: Cache | None = None,
    recipe: roots.Recipe = roots.MACHINE,
) -> Path:
    """The layer that `setup` makes on top of the suite's root of this recipe and `layers`.

    Boots a machine, runs `setup` (commands that must succeed, or a function given the machine),
    powers it off and keeps what changed. `key` must name everything that `setup` depends on: with
    the same root, layers and key the layer is taken from the cache.
    """
    cache = cache or Cache()
    name = key_of(roots.key(suite, recipe), [layer.name for layer in layers], key)

    def build(aside: Path) -> None:
        with Nspawn(suite, layers=layers, binds_ro=binds_ro, cache=cache, recipe=recipe) as machine:
            if callable(setup):
                setup(machine)
            else:
                for command in setup:
                    machine.run(command, check=True, timeout=300)
            machine.poweroff()
            machine.take_disk(aside, without=OWN)

    title = what or f"layer {name}"
    suffix = ".tar" if cache.on_overlay else ""
    return cache.entry(KIND, f"{suite}-{name}{suffix}", f"{title} for {suite}", build)
