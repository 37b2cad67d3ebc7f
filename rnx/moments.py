# SPDX-License-Identifier: MIT
"""Moments as people write them: a time, or how long ago. Pure.

This is the one place where rnx reads them.
"""

import datetime
import re

from rnx.formats import EPOCH

_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?",
    re.IGNORECASE,
)
_AGO = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
_PART = re.compile(r"([0-9.]+)(ms|s|m|h|d)")
_UNITS_US = {"ms": 10**3, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "d": 86_400 * 10**6}

HOW = "write a time as in 2025-11-24T15:04:05Z, or how long ago as in 90s, 10m, 1h30m or 2d"


def parse(text: str, *, now: float, zone: datetime.tzinfo | None = None) -> int:
    """µs since the epoch of an RFC 3339 time, or of as long before `now` (seconds) as it says.

    A time may lack its seconds, its time of day (then it is midnight) and its zone: then it is in
    `zone`, the system's if that is None. Raises ValueError with the reason.
    """
    text = text.strip()
    if _AGO.fullmatch(text):
        ago = sum(float(number) * _UNITS_US[unit] for number, unit in _PART.findall(text))
        moment_us = round(now * 1e6 - ago)
    elif _TIME.fullmatch(text):
        try:
            moment = datetime.datetime.fromisoformat(text.upper())
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=zone) if zone else moment.astimezone()
            moment_us = (moment - EPOCH) // datetime.timedelta(microseconds=1)
        except (ValueError, OverflowError, OSError):  # Windows knows no local time before 1970
            raise ValueError(f"there is no such time; {HOW}") from None
    else:
        raise ValueError(HOW)
    if moment_us <= 0:
        raise ValueError("it is before 1970")
    return moment_us
