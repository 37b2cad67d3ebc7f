# SPDX-License-Identifier: MIT
"""What a server does with what it finds at its start. Pure: records + job directories -> actions.

Idempotent: carried out or not, the same function gives the same truth the next time. The cases, by
record and by the state of the job's directory (link.LIVE, GONE, NEVER, or none at all):

    unfinished  LIVE   TakeBack       its PID 1 is there: hold it, read on at the byte where the
    log ends
    unfinished  GONE   ReadResults    it ended without a server: exit record and rests are in the
    directory
    unfinished  NEVER  ReadResults    it never got to its go: the launch failed with the server
    unfinished  none   Vanished       the directory is removed last, after the record: the machine
    lost it
    finished    LIVE   Acknowledge    the record is safe and PID 1 does not know: tell it
    finished    other  CleanUp        all that is left to do
    none        LIVE   Abandon        its record was never committed, so no client ever heard of it,
                                      or was deleted while its PID 1 still waited to be told
    none        other  CleanUp
"""

import dataclasses
from collections.abc import Iterable, Mapping

from joblet import link
from joblet.model import Job


@dataclasses.dataclass(frozen=True, slots=True)
class TakeBack:
    job: Job


@dataclasses.dataclass(frozen=True, slots=True)
class ReadResults:
    job: Job


@dataclasses.dataclass(frozen=True, slots=True)
class Vanished:
    job: Job


@dataclasses.dataclass(frozen=True, slots=True)
class Acknowledge:
    job_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class CleanUp:
    job_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Abandon:
    job_id: str


Action = TakeBack | ReadResults | Vanished | Acknowledge | CleanUp | Abandon


def actions(
    unfinished: Iterable[Job], finished: Iterable[str], directories: Mapping[str, str]
) -> list[Action]:
    """unfinished: records that are not final. finished: ids of final records that have a directory.
    directories: job id -> state of its directory. In order of the job ids."""
    todo: dict[str, Action] = {}
    for job in unfinished:
        state = directories.get(job.id)
        if state is None:
            todo[job.id] = Vanished(job)
        elif state == link.LIVE:
            todo[job.id] = TakeBack(job)
        else:
            todo[job.id] = ReadResults(job)
    known = set(finished)
    for job_id, state in directories.items():
        if job_id in todo:
            continue
        if state != link.LIVE:
            todo[job_id] = CleanUp(job_id)
        elif job_id in known:
            todo[job_id] = Acknowledge(job_id)
        else:
            todo[job_id] = Abandon(job_id)
    return [todo[job_id] for job_id in sorted(todo)]
