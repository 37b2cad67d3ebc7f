# SPDX-License-Identifier: MIT
"""Times, spans, sizes and reasons as rnx writes them, where it can as the published one. Pure."""

import datetime
from typing import TYPE_CHECKING

from rnx.output import one_line

if TYPE_CHECKING:
    from joblet_pb.joblet_pb2 import GetJobStatusResponse


EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def parse_time(text: str) -> datetime.datetime | None:
    """RFC 3339, with its own zone; None for anything else."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def list_time(text: str) -> str:
    """In the zone that it is written in: "2006-01-02 15:04:05"."""
    moment = parse_time(text)
    if moment is None:
        return one_line(text) or "N/A"
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def status_time(text: str) -> str:
    """With the zone behind it: "2006-01-02 15:04:05 UTC", "2006-01-02 15:04:05 +0200"."""
    moment = parse_time(text)
    if moment is None:
        return one_line(text) or "Not available"
    zone = f"{moment:%z}" if moment.utcoffset() else "UTC"
    return f"{moment:%Y-%m-%d %H:%M:%S} {zone}"


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as UTC, to the second."""
    # added, because fromtimestamp() takes fewer years on Windows than elsewhere
    moment = EPOCH + datetime.timedelta(seconds=int(seconds))
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def rfc3339_us(us: int) -> str:
    """Microseconds since the epoch as UTC, to the microsecond."""
    moment = EPOCH + datetime.timedelta(microseconds=us)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"


def span(seconds: float) -> str:
    """How long, in the published form: "1.5s", "2.5m", "3h20m", "4d2h"."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{seconds / 60:.1f}m"
    minutes = int(seconds // 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"


def size(count: int) -> str:
    """Bytes for people: "512 bytes", "64 MB" (of 1024² bytes), "1.5 GB"."""
    value, unit = float(count), "bytes"
    for unit_above in ("KB", "MB", "GB", "TB"):
        if value < 1024:
            break
        value, unit = value / 1024, unit_above
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def plain(text: str) -> str:
    """Text of others: no control characters, and nothing that a script takes for the status."""
    return one_line(text).replace("Status:", "Status :")


def reason(job: "GetJobStatusResponse") -> str:
    """Why it ended, for people."""
    word, text = plain(job.reason), plain(job.reason_text)
    if not text.startswith(word):
        text = f"{word}: {text}" if text else word
    if job.stopped_by and job.stopped_by not in text:
        text += f" (by {plain(job.stopped_by)})"
    return text
