# SPDX-License-Identifier: MIT
"""What of a job's log is asked for. Pure; the words are those of GetJobLogsRequest."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The defaults are the whole log, and what comes. Times are µs since the epoch, 0 for none."""

    from_offset: int = 0
    from_cursor: str = ""  # in place of an offset, where the log is in the journal
    no_follow: bool = False
    since_us: int = 0
    until_us: int = 0
    tail_lines: int | None = None
    stream: int = 0
    arrivals: bool = False

    @property
    def narrow(self) -> bool:
        """Whether only servers that know how to select can serve it."""
        return bool(self.unknown_to_others) or self.tail_lines is not None

    @property
    def unknown_to_others(self) -> list[str]:
        """Options of rnx that need such a server, whatever the client does."""
        options = {
            "--since": self.since_us,
            "--until": self.until_us,
            "--stdout": self.stream == 1,
            "--stderr": self.stream == 2,
            "--timestamps": self.arrivals,
        }
        return [name for name, wanted in options.items() if wanted]

    def resumed(self, offset: int, cursor: str = "") -> "Selection":
        """The rest of it, from an offset or a cursor in it on: where it begins is decided."""
        return dataclasses.replace(
            self, from_offset=offset, from_cursor=cursor, since_us=0, tail_lines=None
        )


WHOLE = Selection()
