# SPDX-License-Identifier: MIT
"""Open a log's files: make them if they are new, else find their valid prefix and repair the rest.

Blocking. Idempotent: each step leaves files from which the next opening comes to the same end,
so it may be killed between any two. What a killed server left in the stage is stored first: bytes,
then the records that go on behind those on the disk. Then, in this order:

1. No index, no bytes: a new log; the header is written. If the caller knows that there was one,
   the header says "unknown boot", which makes it case 4.
2. The header is not there or not valid: likewise, and everything in the index is discarded.
3. Records behind the valid prefix (torn, flipped, out of order): discarded. They may have been
   read, so a gap of unknown count, beyond all offsets that any of them names, takes the place of
   the first, then the others are cut off.
4. The log was last written in another boot that did not end with a clean stop: what was not
   synced is gone, without a trace in the index. A gap of unknown count.
5. A stream's segments end before the index says: the index is written anew, with gaps of
   exactly that many bytes in place of what is missing, and renamed over the old one.
6. A stream's segments go on behind what the index says: these bytes are entered now.

Blocks that were moved out of the stage are read where the server that moved them said. If they are
not there, nobody stores anything in their place: who reads there is shown a gap of exactly so many
bytes, and the journal is told.

Gaps of 3 and 4 are synced before anything may follow them: an offset is given out once, even
if the machine dies twice.

Must not import anything of joblet but joblet.errors and its neighbours blocks, format, files,
segments, stage.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from joblet.errors import FailedPrecondition
from joblet.server.logs import format as fmt
from joblet.server.logs.blocks import BLOCK_BYTES
from joblet.server.logs.files import LogFiles, sync_directory, write_all
from joblet.server.logs.format import GapKind, IndexState, Kind, Record
from joblet.server.logs.segments import Segments
from joblet.server.logs.stage import StagedLog

UNKNOWN_BOOT: Final = 0
_BLOCK_BYTES: Final = 1 << 20
# A pair of CHECKs lies at most this far from the end, if there is one that helps.
_TAIL_RECORDS: Final = 2 * fmt.CHECK_EVERY + 8

log = logging.getLogger(__name__)


def append(fd: int, state: IndexState, record: Record) -> None:
    """Write a record behind those of `state` and count it in. Raises OSError, changing nothing."""
    raw = fmt.encode(record, state.records)
    write_all(fd, raw, state.records * fmt.RECORD_BYTES)
    state.apply(record, raw)
    if state.wants_check:
        append_check(fd, state)


def append_check(fd: int, state: IndexState) -> None:
    """Write a pair of CHECK records. If the disk refuses, there is none: it is never needed."""
    try:
        for stream in fmt.STREAMS:
            record = state.check(stream)
            raw = fmt.encode(record, state.records)
            write_all(fd, raw, state.records * fmt.RECORD_BYTES)
            state.apply(record, raw)
    except OSError:
        return


def unknown_gap(
    state: IndexState, kind: GapKind, stream: int, now_us: int, *, beyond: int = 0
) -> Record:
    """A gap from the end of the log to the next multiple of UNKNOWN_GAP_ALIGN.

    `beyond`: the first one that is also behind this log offset.
    """
    align = fmt.UNKNOWN_GAP_ALIGN
    end = max(state.size, beyond) + 1
    end += -end % align
    length = fmt.gap_length(kind, unknown=True)
    return Record(Kind.GAP, stream, length, now_us, state.size, end - state.size)


def recover(
    files: LogFiles,
    segments: Mapping[int, Segments],
    staged: StagedLog,
    *,
    job_id: str,
    boot: int,
    clean_boot: int,
    now_us: Callable[[], int],
    step: Callable[[str], None],
    from_earlier_boot: bool = False,
) -> IndexState:
    """The state of a log whose files are pinned; the files are as it says when this returns, and
    nothing is staged.

    `from_earlier_boot`: its job ran before this boot, so if there is nothing, all of it is lost.
    `boot`: tag of the running boot; `clean_boot`: that of a boot whose last server stopped
    cleanly, everything synced, or UNKNOWN_BOOT. Raises OSError (the disk refuses), and
    FailedPrecondition for a log of a newer version.
    """
    index = files.index(create=True)
    index_bytes = os.fstat(index).st_size
    state = scan(index, index_bytes)
    if state.records and state.version > fmt.VERSION:
        raise FailedPrecondition(
            f"open the log of job {job_id}",
            f"it has format version {state.version}, this server knows {fmt.VERSION}",
            hint="use the version of joblet that wrote it, or a newer one",
        )
    step("recovery:scanned")
    names = files.names()
    doubted = state.boot not in (boot, clean_boot)
    for stream in fmt.STREAMS:
        segments[stream].load(names, doubtful=doubted)
    if staged.files.names():
        staged.load()
        if lost := _store_staged(files, segments, staged, state, step):
            _tell_lost(job_id, lost, staged.spill)
        index_bytes = os.fstat(index).st_size
    damaged = index_bytes > state.records * fmt.RECORD_BYTES
    beyond = _furthest(index, state.records, index_bytes) if damaged else 0
    if state.records == 0:
        empty = index_bytes == 0 and not any(segments[stream].end for stream in fmt.STREAMS)
        tag = boot if empty and not from_earlier_boot else UNKNOWN_BOOT
        append(index, state, Record(Kind.HEADER, 0, fmt.VERSION, now_us(), fmt.MAGIC, tag))
        step("recovery:header")
    crashed = state.boot not in (boot, clean_boot) or state.boot == UNKNOWN_BOOT
    interrupted = state.loss_us is not None  # an opening that was killed before its gap
    if interrupted:
        _enter_loss(index, state, beyond)
        step("recovery:gap")
    elif damaged:
        crashed = True
    doubtful = crashed and not state.all_ended
    if doubtful or (state.boot != boot and not state.all_ended):
        loss = fmt.BOOT_LOSS if doubtful else 0
        append(index, state, Record(Kind.BOOT, 0, loss, now_us(), state.size, boot))
        step("recovery:boot")
    if doubtful:
        _enter_loss(index, state, beyond)
        step("recovery:gap")
    if index_bytes > state.records * fmt.RECORD_BYTES:
        os.ftruncate(index, state.records * fmt.RECORD_BYTES)
        step("recovery:cut")
    if doubtful or interrupted:
        os.fdatasync(index)
        sync_directory(files.path)  # the index may be new beside files that are not
        step("recovery:synced")
    if any(segments[stream].end < state.held[stream] for stream in fmt.STREAMS):
        state = _rewrite(files, segments, state)
        index = files.index()
        for stream in fmt.STREAMS:  # what was left out at the end has no bytes to be there
            if segments[stream].end < state.held[stream]:
                segments[stream].skip(state.held[stream], hole=False)
        step("recovery:rewritten")
    for stream in fmt.STREAMS:
        _enter_leftover(index, segments[stream], state, stream, now_us)
        step("recovery:entered")
    if state.wants_check:
        append_check(index, state)
    return state


def _store_staged(
    files: LogFiles,
    segments: Mapping[int, Segments],
    staged: StagedLog,
    state: IndexState,
    step: Callable[[str], None],
) -> int:
    """Store what a killed server left in the stage; `state` goes on behind the records there. How
    many bytes it entered that are not there.

    Bytes first, of records or not: those that no record accounts for are entered later, where they
    then lie. If the records in the stage do not go on where those on the disk end (one of the two
    is damaged), they are of no use, and their bytes are as good as not entered.
    """
    index = files.index()
    known = state.records
    lost = 0
    found = list(_staged_records(staged, state))
    for record, position, _ in found:
        if record.kind is Kind.DATA:
            lost += _copy(segments, staged, record.stream, position, position + record.length)
        elif record.kind is Kind.GAP and fmt.gap_kind(record) in fmt.LEFT_OUT:
            _skip(segments[record.stream], position + record.arg)
    for stream in fmt.STREAMS:  # what was not entered any more
        _copy(segments, staged, stream, state.held[stream], staged.length(stream))
    step("recovery:stored")
    for number, (_, _, raw) in enumerate(found, known):
        write_all(index, raw, number * fmt.RECORD_BYTES)
    if found:
        os.ftruncate(index, state.records * fmt.RECORD_BYTES)
    step("recovery:indexed")
    staged.remove()
    step("recovery:unstaged")
    return lost


def _tell_lost(job_id: str, count: int, spill: Path | None) -> None:
    """Before it is another directory's turn, what waits in the one before has to be stored."""
    where = "the stage, where they were left"
    hint = "something else removed them, or memory is broken"
    if spill is not None and not spill.is_dir():
        where = f"{spill}, where they were moved to (overflow strategy spill)"
        hint = (
            "stop joblet.service, which stores all that waits there, before"
            " log_persistence.spill_directory is changed, removed or unmounted"
        )
    log.error(
        "%d bytes of the output of job %s are lost, a gap in its log says where:"
        " they are not in %s; %s",
        count,
        job_id,
        where,
        hint,
        extra={"job": job_id},
    )


def _staged_records(staged: StagedLog, state: IndexState) -> Iterator[tuple[Record, int, bytes]]:
    """The records that go on behind those of `state`, each with the position in its stream where
    it stands, and its bytes. They are counted in."""
    total = staged.records()
    while state.records < total:
        blocks = staged.read_index(state.records, _BLOCK_BYTES // fmt.RECORD_BYTES)
        for at in range(0, len(blocks) - fmt.RECORD_BYTES + 1, fmt.RECORD_BYTES):
            raw = blocks[at : at + fmt.RECORD_BYTES]
            record = fmt.decode(raw, state.records)
            if record is None or not state.accepts(record):
                return
            position = state.held[record.stream]
            state.apply(record, raw)
            yield record, position, raw
        if len(blocks) < fmt.RECORD_BYTES:
            return


def _copy(
    segments: Mapping[int, Segments], staged: StagedLog, stream: int, begin: int, end: int
) -> int:
    """The staged bytes between two positions, but for those that are stored. What was freed in the
    stage is not copied: if it is not stored either, it is lost, so many bytes."""
    target = segments[stream]
    begin = max(begin, target.end)
    there = min(end, staged.length(stream))
    lost = 0
    while begin < there:
        found = min(there, staged.next_byte(stream, begin))
        lost += found - begin
        begin = found
        # not one byte further: where nothing is, zeros are read
        end_of_data = staged.data_end(stream, begin, min(there, begin + BLOCK_BYTES))
        data = staged.read(stream, begin, end_of_data - begin)
        if not data:
            break
        _skip(target, begin)
        target.append(begin, data)
        begin += len(data)
    return lost + max(0, end - begin)


def _skip(segments: Segments, position: int) -> None:
    if segments.end < position:
        segments.skip(position)


def scan(fd: int, index_bytes: int) -> IndexState:
    """The state of the longest valid prefix of an index of `index_bytes` bytes."""
    state = _from_last_check(fd, index_bytes) or IndexState()
    position = state.records * fmt.RECORD_BYTES
    for raw in _read_blocks(fd, position, index_bytes):
        for at in range(0, len(raw) - fmt.RECORD_BYTES + 1, fmt.RECORD_BYTES):
            piece = raw[at : at + fmt.RECORD_BYTES]
            record = fmt.decode(piece, state.records)
            if record is None or not state.accepts(record):
                return state
            state.apply(record, piece)
    return state


def _enter_loss(fd: int, state: IndexState, beyond: int) -> None:
    """The gap that a BOOT record has announced."""
    time_us = state.loss_us or 0
    append(fd, state, unknown_gap(state, GapKind.LOST, fmt.ALL_STREAMS, time_us, beyond=beyond))


def _furthest(fd: int, number: int, index_bytes: int) -> int:
    """The largest log offset that a whole record from `number` on names, whatever precedes it."""
    furthest = 0
    for raw in _read_blocks(fd, number * fmt.RECORD_BYTES, index_bytes):
        for at in range(0, len(raw) - fmt.RECORD_BYTES + 1, fmt.RECORD_BYTES):
            record = fmt.decode(raw[at : at + fmt.RECORD_BYTES], number)
            if record is not None and record.kind is not Kind.HEADER:
                furthest = max(furthest, record.offset + record.span)
            number += 1
    return furthest


def _from_last_check(fd: int, index_bytes: int) -> IndexState | None:
    """The state behind the last CHECK pair, if all before it is as it was written."""
    total = index_bytes // fmt.RECORD_BYTES
    first = max(1, total - _TAIL_RECORDS)
    if total - first < 2:
        return None
    tail = os.pread(fd, (total - first) * fmt.RECORD_BYTES, first * fmt.RECORD_BYTES)
    second: Record | None = None
    for at in range(len(tail) - fmt.RECORD_BYTES, -1, -fmt.RECORD_BYTES):
        number = first + at // fmt.RECORD_BYTES
        if tail[at + 3] >> 4 != Kind.CHECK:  # the kind's bits, without decoding the record
            second = None
            continue
        record = fmt.decode(tail[at : at + fmt.RECORD_BYTES], number)
        if record is not None and second is not None:
            digest, version = _digest(fd, number * fmt.RECORD_BYTES)
            pair = tail[at : at + 2 * fmt.RECORD_BYTES]
            # The only pair tried: if it does not fit, an earlier one would not either,
            # or the damage lies between the two and reading everything finds it.
            found = IndexState.from_check(record, second, number, digest, pair)
            return found if version == fmt.VERSION else None
        second = record
    return None


def _digest(fd: int, end: int) -> tuple[fmt.Digest, int]:
    """Of the first `end` bytes of an index, and the version that its header says."""
    digest, version = fmt.new_digest(), 0
    for number, raw in enumerate(_read_blocks(fd, 0, end)):
        if number == 0:
            header = fmt.decode(raw[: fmt.RECORD_BYTES], 0)
            version = header.length if header and IndexState().accepts(header) else 0
        digest.update(raw)
    return digest, version


def _read_blocks(fd: int, position: int, end: int) -> Iterator[bytes]:
    """The bytes [position, end) in blocks of whole records (but for a torn one at the end)."""
    while position < end:
        raw = os.pread(fd, min(_BLOCK_BYTES, end - position), position)
        if not raw:
            return
        if len(raw) > fmt.RECORD_BYTES:
            raw = raw[: len(raw) - len(raw) % fmt.RECORD_BYTES]
        yield raw
        position += len(raw)


def _rewrite(files: LogFiles, segments: Mapping[int, Segments], old: IndexState) -> IndexState:
    """Write the index anew, with exact gaps in place of bytes that the segments lack."""
    lengths = {stream: segments[stream].end for stream in fmt.STREAMS}
    state = IndexState()
    source = files.index()
    target = files.new_index()
    try:
        for raw in _read_blocks(source, 0, old.records * fmt.RECORD_BYTES):
            for at in range(0, len(raw), fmt.RECORD_BYTES):
                record = fmt.decode_trusted(raw, at)
                if record is not None:
                    for new in _without_missing(record, state, lengths):
                        append(target, state, new)
        os.fdatasync(target)
    finally:
        os.close(target)
    files.replace_index()
    return state


def _without_missing(
    record: Record, state: IndexState, lengths: dict[int, int]
) -> Iterator[Record]:
    """What stands in the new index for a record of the old one."""
    if record.kind is Kind.CHECK:
        return  # `append` writes new ones
    if record.kind in (Kind.END, Kind.MARK):
        yield record._replace(arg=state.held[record.stream])
    elif record.kind is Kind.DATA:
        there = max(0, min(record.length, lengths[record.stream] - record.arg))
        if there:
            yield record._replace(length=there)
        missing = record.length - there
        if missing:
            lost = fmt.gap_length(GapKind.LOST, unknown=False)
            yield record._replace(
                kind=Kind.GAP, length=lost, offset=record.offset + there, arg=missing
            )
    else:
        yield record


def _enter_leftover(
    index: int, segments: Segments, state: IndexState, stream: int, now_us: Callable[[], int]
) -> None:
    """Enter the stored bytes that the index does not account for."""
    if segments.end > state.held[stream] and stream in state.ended:
        # Nothing of ours writes behind the end of a stream.
        segments.cut(state.held[stream])
        return
    while (left := segments.end - state.held[stream]) > 0:
        part = min(left, fmt.MAX_DATA_BYTES)
        held = state.held[stream]
        append(index, state, Record(Kind.DATA, stream, part, now_us(), state.size, held))
