# SPDX-License-Identifier: MIT
"""A thread of the log store: started once, stopped once, and it does not die unseen.

Must not import anything of joblet but joblet.errors.
"""

import abc
import threading
from collections.abc import Callable
from typing import ClassVar

from joblet.errors import Internal, JobletError


class Worker(abc.ABC):
    """`purpose`: what cannot be done without it, as in "store output".

    `on_death(error)`: it is gone by a bug. Called in the thread, once.
    """

    hint: ClassVar[str] = "restart joblet.service: jobs wait meanwhile, nothing they say is lost"

    def __init__(self, name: str, purpose: str, on_death: Callable[[JobletError], None]) -> None:
        self._purpose = purpose
        self._on_death = on_death
        # A daemon thread: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Raises RuntimeError if the system has no thread to give."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, which was started, and wait for it. Blocking."""
        self._leave()
        self._thread.join()

    @abc.abstractmethod
    def _leave(self) -> None:
        """Let `_work` come to its end, soon. Any thread."""

    @abc.abstractmethod
    def _work(self) -> None:
        """What the thread does, until it is to leave."""

    def _died(self, failure: JobletError) -> None:
        """The last that the thread does if `_work` raises anything."""
        self._on_death(failure)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as exc:  # whatever it was: a thread must not die unseen
            why = f"the thread {self._thread.name} ended: {exc!r}"
            failure = Internal(self._purpose, why, hint=self.hint)
            failure.__cause__ = exc
            self._died(failure)
