# SPDX-License-Identifier: MIT
"""How a job ended: from what its PID 1, the server and systemd know to one End. Pure."""

import dataclasses
import signal
from typing import Final

from joblet.launch.protocol import ExitRecord
from joblet.model import End, Job, Reason

MIB: Final = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Witness:
    """What the server saw besides the record.

    stopping: systemd is stopping the unit, which we did not ask for. blind: systemd could not be
    asked,
    so that nothing is known of it. While PID 1 waits for its acknowledgement such a stop is not
    over:
    asked then, systemd cannot have forgotten it.
    """

    stopping: bool = False
    blind: bool = True


def from_record(job: Job, record: ExitRecord, witness: Witness) -> End:
    """The end that an exit record tells.

    A client's stop wins over whatever the record says: a job's exit never overwrites STOPPED. A
    SIGTERM from outside is `systemctl stop` unless the server watched and saw no such job.
    """
    code, number = record.code, record.signal
    if job.stop_by:
        return End(Reason.STOPPED, code=code, signal=number, by=job.stop_by)
    match record.ended_by:
        case "":
            return _plain(code, number)
        case "ctl":
            return End(Reason.STOPPED, code=code, signal=number)
        case "timeout":
            return End(Reason.TIMEOUT, code=code, signal=number)
        case "oom" if record.oom_own:
            return End(Reason.OOM, signal=signal.SIGKILL, detail=_memory(record))
        case "oom":
            detail = "the kernel's OOM killer, for memory of the host or of joblet.slice"
            return End(Reason.SIGNALLED, signal=signal.SIGKILL, detail=detail)
        case "launch":
            return End(
                Reason.LAUNCH_FAILED, step=record.step, errno=record.errno, detail=record.detail
            )
        case "signal" if witness.stopping or witness.blind:
            return End(Reason.UNIT_STOPPED, code=code, signal=number)
        case "signal":
            number = number or signal.SIGTERM
            return End(Reason.SIGNALLED, signal=number, detail="systemctl kill")
        case other:
            return End(Reason.LOST, detail=f"its exit record says {other!r:.40}")


def without_record(job: Job, *, same_boot: bool, went: bool, stopping: bool) -> End:
    """The end of a job whose PID 1 is gone and left no record.

    went: it had got its go. stopping: systemd was seen stopping its unit.
    """
    if job.stop_by:
        return End(Reason.STOPPED, by=job.stop_by)
    if not same_boot:
        return End(Reason.LOST, detail="the machine went away under it")
    if not went:
        return End(Reason.LAUNCH_FAILED, step="go", detail="the launch was cut short")
    if stopping:
        return End(
            Reason.UNIT_STOPPED, signal=signal.SIGKILL, detail="killed by systemd's time-out"
        )
    return End(Reason.SIGNALLED, signal=signal.SIGKILL, detail="unit killed")


def _memory(record: ExitRecord) -> str:
    """How far it came; a kernel before 5.19 tells no peak, a PID 1 of before no limit."""
    said = {"memory_peak": "memory peak", "memory_limit": "limit"}
    found = {text: record.usage.get(name, 0) for name, text in said.items()}
    return ", ".join(f"{text} {value / MIB:.1f} MiB" for text, value in found.items() if value)


def _plain(code: int, number: int) -> End:
    return End(Reason.SIGNALLED, signal=number) if number else End(Reason.EXITED, code=code)
