# SPDX-License-Identifier: MIT
"""proto <-> model. Pure. Units of the wire: MiB, percent of a core, RFC 3339 to the second."""

import datetime
from collections.abc import Mapping
from typing import Final

from joblet.config import duration_us
from joblet.errors import InvalidArgument, Unimplemented
from joblet.model import Job, JobSpec, Limits
from joblet.server.admission import WHAT
from joblet.server.change import MAX_TIMEOUT_US, Change
from joblet.server.deletion import Deleted
from joblet.server.journal_log import Begin, Complete, Item, Missing, Wanted
from joblet.server.logs import Gap, Piece, Selection
from joblet_pb import joblet_pb2 as pb

MIB: Final = 1 << 20
SECRET: Final = "***"  # noqa: S105 - what stands for one
SOME: Final = 3  # ids that a message names
INT32: Final = 2**31 - 1
MAX_US: Final = 2**53  # later times are no times
INT64: Final = 2**63 - 1
# DataChunk.payload in the wire format: field 1, of the kind that has a length.
_PAYLOAD: Final = bytes([pb.DataChunk.PAYLOAD_FIELD_NUMBER << 3 | 2])

# fields of a request that a client may set and this server does not serve
NOT_SERVED: Final[Mapping[str, str]] = {
    "uploads": "uploading files",
    "schedule": "scheduling",
    "volumes": "volumes",
    "runtime": "runtimes",
    "gpu_count": "GPUs",
    "gpu_memory_mb": "GPUs",
}


def spec(request: pb.RunJobRequest) -> JobSpec:
    """What was asked for. Raises InvalidArgument, Unimplemented."""
    for field, what in NOT_SERVED.items():
        if getattr(request, field):
            raise Unimplemented(WHAT, f"{what} ({field}) is not served by this version")
    return JobSpec(
        command=request.command,
        args=tuple(request.args),
        name=request.name,
        environment=dict(request.environment),
        secret_environment=dict(request.secret_environment),
        work_dir=request.work_dir,
        network=request.network,
        limits=Limits(
            max_cpu=request.max_cpu,
            cpu_cores=request.cpu_cores,
            max_memory=request.max_memory * MIB,
            max_iobps=request.max_io_bps,
            max_tasks=request.max_tasks,
            cpu_weight=request.cpu_weight,
            memory_high=request.memory_high_bytes,
            max_swap=request.max_swap_bytes if request.HasField("max_swap_bytes") else None,
            max_read_bps=request.max_read_bps,
            max_write_bps=request.max_write_bps,
            io_weight=request.io_weight,
        ),
        timeout_us=_timeout(request.timeout),
        merge=request.merge,
        log_driver=request.log_driver,
        overflow_strategy=request.overflow_strategy,
        on_full=request.on_full,
        rlimits=dict(request.rlimits),
        profile=request.profile,
    )


# fields of UpdateJobRequest -> limits
_CHANGES: Final[Mapping[str, str]] = {
    "max_cpu": "max_cpu",
    "cpu_cores": "cpu_cores",
    "max_memory_bytes": "max_memory",
    "max_io_bps": "max_iobps",
    "max_tasks": "max_tasks",
    "cpu_weight": "cpu_weight",
    "memory_high_bytes": "memory_high",
    "max_swap_bytes": "max_swap",
    "max_read_bps": "max_read_bps",
    "max_write_bps": "max_write_bps",
    "io_weight": "io_weight",
}


def change(request: pb.UpdateJobRequest) -> Change:
    """Raises InvalidArgument."""
    text = request.timeout
    more = text.startswith("+")
    return Change(
        limits={
            limit: getattr(request, field)
            for field, limit in _CHANGES.items()
            if request.HasField(field)
        },
        timeout_us=_timeout(text.removeprefix("+"), "update the job") if text else None,
        more=more,
    )


def update_response(job: Job) -> pb.UpdateJobResponse:
    return pb.UpdateJobResponse(
        uuid=job.id, effective=effective_limits(job), timeout=duration(job.spec.timeout_us)
    )


def _timeout(text: str, what: str = WHAT) -> int:
    if not text:
        return 0
    try:
        value = duration_us(text)
    except ValueError:
        value = -1
    if not 0 <= value <= MAX_TIMEOUT_US:
        raise InvalidArgument(
            what,
            f"timeout {text!r:.40} is not a duration up to a year",
            hint="write 30s, 5m or 1h30m",
        )
    return value


def run_response(job: Job) -> pb.RunJobResponse:
    asked = job.spec.limits
    return pb.RunJobResponse(
        job_uuid=job.id,
        status=job.state,
        command=job.spec.command,
        args=job.spec.args,
        max_cpu=asked.max_cpu,
        cpu_cores=asked.cpu_cores,
        max_memory=_int32(asked.max_memory // MIB),
        max_io_bps=_int32(asked.max_iobps),
        start_time=timestamp(job.created_us),
        end_time=timestamp(job.ended_us),
        exit_code=_exit_code(job),
        profile=job.spec.profile,
    )


def job_status(job: Job, node_id: str, output_trouble: str = "") -> pb.GetJobStatusResponse:
    asked, end = job.spec.limits, job.end
    return pb.GetJobStatusResponse(
        uuid=job.id,
        name=job.spec.name,
        command=job.spec.command,
        args=job.spec.args,
        max_cpu=asked.max_cpu,
        cpu_cores=asked.cpu_cores,
        max_memory=_int32(asked.max_memory // MIB),
        max_io_bps=_int32(asked.max_iobps),
        status=job.state,
        start_time=timestamp(job.created_us),
        end_time=timestamp(job.ended_us),
        exit_code=_exit_code(job),
        environment=job.spec.environment,
        secret_environment=dict.fromkeys(job.spec.secret_environment, SECRET),
        network=job.spec.network or "host",
        work_dir=job.spec.work_dir,
        node_id=node_id,
        timeout=duration(job.spec.timeout_us),
        reason=end.reason if end else "",
        reason_text=str(end) if end else "",
        unit=job.unit,
        pid=job.pid,
        cgroup=job.cgroup,
        effective=effective_limits(job),
        stopped_by=job.stop_by,
        created_by=job.created_by,
        signal=end.signal if end else 0,
        usage=pb.JobUsage(
            cpu_usec=_int64(job.usage.get("cpu_usec", 0)),
            memory_peak_bytes=_int64(job.usage.get("memory_peak", 0)),
            memory_limit_bytes=_int64(job.usage.get("memory_limit", 0)),
            io_read_bytes=_int64(job.usage.get("io_read", 0)),
            io_write_bytes=_int64(job.usage.get("io_write", 0)),
        ),
        max_tasks=asked.max_tasks,
        merge=job.spec.merge,
        log_driver=job.spec.log_driver,
        overflow_strategy=job.spec.overflow_strategy,
        on_full=job.spec.on_full,
        output_trouble=output_trouble,
        profile=job.spec.profile,
        rlimits=job.spec.rlimits,
        cpu_weight=asked.cpu_weight,
        memory_high_bytes=asked.memory_high,
        max_swap_bytes=asked.max_swap,
        max_read_bps=asked.max_read_bps,
        max_write_bps=asked.max_write_bps,
        io_weight=asked.io_weight,
    )


def effective_limits(job: Job) -> pb.EffectiveLimits:
    effective = job.effective
    return pb.EffectiveLimits(
        max_cpu=_int32(effective.max_cpu),
        cpu_cores=effective.cpu_cores,
        max_memory_bytes=_int64(effective.max_memory),
        max_io_bps=_int64(effective.max_iobps),
        max_tasks=_int32(effective.max_tasks),
        not_enforced=job.not_enforced,
        cpu_weight=_int32(effective.cpu_weight),
        memory_high_bytes=_int64(effective.memory_high),
        max_swap_bytes=None if effective.max_swap is None else _int64(effective.max_swap),
        max_read_bps=_int64(effective.max_read_bps),
        max_write_bps=_int64(effective.max_write_bps),
        io_weight=_int32(effective.io_weight),
    )


def listed(job: Job, node_id: str) -> pb.Job:
    asked, end = job.spec.limits, job.end
    return pb.Job(
        uuid=job.id,
        name=job.spec.name,
        command=job.spec.command,
        args=job.spec.args,
        max_cpu=asked.max_cpu,
        cpu_cores=asked.cpu_cores,
        max_memory=_int32(asked.max_memory // MIB),
        max_io_bps=_int32(asked.max_iobps),
        status=job.state,
        start_time=timestamp(job.created_us),
        end_time=timestamp(job.ended_us),
        exit_code=_exit_code(job),
        environment=job.spec.environment,
        secret_environment=dict.fromkeys(job.spec.secret_environment, SECRET),
        node_id=node_id,
        timeout=duration(job.spec.timeout_us),
        reason=end.reason if end else "",
        reason_text=str(end) if end else "",
        unit=job.unit,
        pid=job.pid,
        stopped_by=job.stop_by,
        created_by=job.created_by,
        signal=end.signal if end else 0,
        max_tasks=asked.max_tasks,
    )


def journal_selection(request: pb.GetJobLogsRequest) -> Wanted:
    """The same for a log that is in the journal. Raises InvalidArgument."""
    tail = min(request.tail_lines, INT32) if request.HasField("tail_lines") else -1
    if request.from_cursor and (request.since_us or tail >= 0):
        raise InvalidArgument(
            "read the log from a cursor",
            "where it begins is said already",
            hint="leave --since and --tail out",
        )
    return Wanted(
        cursor=request.from_cursor,
        since_us=_us(request.since_us),
        until_us=_us(request.until_us),
        tail=max(tail, -1),
        stream=_stream(request.stream),
        single=request.arrivals,
    )


def _us(value: int) -> int:
    """Raises InvalidArgument."""
    if not 0 <= value <= MAX_US:
        raise InvalidArgument("read the log", f"{value} is no time")
    return value


def _stream(value: int) -> int:
    """Raises InvalidArgument."""
    if not 0 <= value <= 2:
        raise InvalidArgument("read the log", f"there is no stream {value}")
    return value


def journal_chunk(item: Item, *, arrivals: bool = False) -> pb.DataChunk:
    """A piece of a log that is in the journal."""
    if isinstance(item, Complete):
        return pb.DataChunk(end=True)
    if isinstance(item, Begin):
        return pb.DataChunk(begin=True, cursor=item.cursor)
    chunk = pb.DataChunk(stream=item.stream, time_us=item.time_us, cursor=item.cursor)
    if isinstance(item, Missing):
        chunk.gap.kind, chunk.gap.bytes, chunk.gap.lines = item.kind, -1, item.lines
        return chunk
    chunk.payload = item.data
    if arrivals:
        chunk.arrivals.at.append(0)
        chunk.arrivals.time_us.append(item.time_us)
    return chunk


def stop_response(job: Job) -> pb.StopJobResponse:
    return pb.StopJobResponse(
        uuid=job.id, status=job.state, end_time=timestamp(job.ended_us), exit_code=_exit_code(job)
    )


def delete_all_response(done: Deleted) -> pb.DeleteAllJobsResponse:
    """The words up to the semicolon are those that published clients know."""
    text = f"Successfully deleted {done.deleted} jobs, "
    text += f"skipped {done.skipped} running/scheduled jobs"
    if done.failed:
        some = ", ".join(done.failed[:SOME]) + (", …" if len(done.failed) > SOME else "")
        text += f"; could not delete {len(done.failed)} ({some})"
    if done.why is not None:
        text += f"; {done.why.text}"
    return pb.DeleteAllJobsResponse(
        success=done.why is None,
        message=text,
        deleted_count=_int32(done.deleted),
        skipped_count=_int32(done.skipped),
    )


def selection(request: pb.GetJobLogsRequest) -> Selection:
    return Selection(
        from_offset=request.from_offset,
        since_us=request.since_us,
        until_us=request.until_us,
        tail_lines=request.tail_lines if request.HasField("tail_lines") else None,
        stream=request.stream,
        arrivals=request.arrivals,
        follow=not request.no_follow,
    )


def chunk(piece: Piece) -> pb.DataChunk | bytes:
    """Bytes of a log come encoded, which copies them once; a message and its SerializeToString
    would do it three times."""
    item = piece.item
    if item is None:
        return pb.DataChunk(offset_end=piece.offset_end)
    if isinstance(item, Gap):
        return pb.DataChunk(
            offset_end=piece.offset_end,
            stream=item.stream,
            gap=pb.Gap(kind=item.kind, bytes=-1 if item.bytes is None else item.bytes),
            time_us=item.time_us,
        )
    arrivals = None
    if piece.arrivals:
        at, times = zip(*piece.arrivals, strict=True)
        arrivals = pb.Arrivals(at=at, time_us=times)
    rest = pb.DataChunk(
        offset_end=piece.offset_end,
        stream=item.stream,
        time_us=item.time_us,
        arrivals=arrivals,
    )
    return b"".join((_PAYLOAD, _varint(len(item.data)), item.data, rest.SerializeToString()))


def _varint(number: int) -> bytes:
    """protobuf.dev/programming-guides/encoding"""
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def timestamp(us: int) -> str:
    """RFC 3339 to the second, in the server's zone, "" for 0; "Z" where that is UTC."""
    if not us:
        return ""
    text = datetime.datetime.fromtimestamp(us // 1_000_000, datetime.UTC).astimezone().isoformat()
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


def duration(us: int) -> str:
    """In Go's notation, without parts that are 0: 90 s is "1m30s", an hour "1h"; "" for 0."""
    if not us:
        return ""
    seconds, rest = divmod(us, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{rest:06d}".rstrip("0") if rest else ""
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if minutes else ""
    return text + (f"{seconds}{fraction}s" if seconds or fraction else "")


def _exit_code(job: Job) -> int:
    return job.end.exit_code if job.end else 0


def _int32(value: int) -> int:
    return min(value, INT32)


def _int64(value: int) -> int:
    return min(value, INT64)
