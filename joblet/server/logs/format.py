# SPDX-License-Identifier: MIT
"""The records of a log's arrival index: encoding, and the state that a sequence of them adds up to.

Pure: no I/O, no clock. Must not import anything of joblet. `IndexState` has the specification
of the format; whoever writes or reads an index goes through it.
"""

import enum
import hashlib
import struct
import zlib
from typing import Final, NamedTuple, TypeAlias

OUT: Final = 1
ERR: Final = 2
STREAMS: Final = (OUT, ERR)
ALL_STREAMS: Final = 0  # what belongs to no single stream (a gap of unknown origin)

VERSION: Final = 1
MAGIC: Final = int.from_bytes(b"JobltIdx", "little")

RECORD_BYTES: Final = 32
MAX_DATA_BYTES: Final = (1 << 24) - 1  # what the 24 bits of a record's length hold
# After a loss of unknown size the log goes on at the next multiple of this: further than any
# job can have written, so that an offset that a reader saw before never names another byte.
UNKNOWN_GAP_ALIGN: Final = 1 << 40
# A pair of CHECK records every so many records bounds what an opening has to read one by one.
CHECK_EVERY: Final = 1024

Digest: TypeAlias = hashlib.blake2b

_LAYOUT: Final = struct.Struct("<IQQQ")
_CRC: Final = struct.Struct("<I")
_BODY_BYTES: Final = _LAYOUT.size


class Kind(enum.IntEnum):
    """Kinds of record. A number is never used again for something else."""

    HEADER = 1
    DATA = 2
    END = 3
    GAP = 4
    MARK = 5
    EXPECT = 6
    BOOT = 7
    CHECK = 8


class GapKind(enum.StrEnum):
    """Why bytes of a log cannot be read."""

    LOST = "lost"  # the machine or its disk failed
    SAMPLED = "sampled"  # overflow strategy `sample`
    DROPPED = "dropped"  # overflow strategy `drop`
    EXPIRED = "expired"  # retention


# Of these the log knows the stream and has its bytes counted: what the server itself left out.
LEFT_OUT: Final = (GapKind.SAMPLED, GapKind.DROPPED)

_GAP_CODES: Final = {
    GapKind.LOST: 1,
    GapKind.SAMPLED: 2,
    GapKind.DROPPED: 3,
    GapKind.EXPIRED: 4,
}
_GAP_KINDS: Final = {code: kind for kind, code in _GAP_CODES.items()}
_GAP_UNKNOWN: Final = 0x100

# Flags of a CHECK record (its length field).
_EXPECT_SHIFT: Final = 0
_EXPECT_KNOWN: Final = 0x4
_ENDED_SHIFT: Final = 3

# The length field of a BOOT record: the gap behind it stands for what was lost before it.
BOOT_LOSS: Final = 1


class Record(NamedTuple):
    """One record of the index. What `length` and `arg` mean depends on `kind`: see IndexState."""

    kind: Kind
    stream: int
    length: int
    time_us: int
    offset: int
    arg: int

    @property
    def span(self) -> int:
        """How many log offsets the record covers."""
        if self.kind is Kind.DATA:
            return self.length
        return self.arg if self.kind is Kind.GAP else 0


_KINDS: Final = {int(kind): kind for kind in Kind}


def encode(record: Record, number: int) -> bytes:
    """The 32 bytes of record `number` (counted from 0)."""
    word = record.length | record.stream << 24 | record.kind << 28
    body = _LAYOUT.pack(word, record.time_us, record.offset, record.arg)
    return body + _CRC.pack(zlib.crc32(body, number & 0xFFFFFFFF))


def decode(raw: bytes | memoryview, number: int) -> Record | None:
    """Record `number`, or None if these are not its bytes."""
    body = raw[:_BODY_BYTES]
    if zlib.crc32(body, number & 0xFFFFFFFF) != _CRC.unpack_from(raw, _BODY_BYTES)[0]:
        return None
    return decode_trusted(raw)


def decode_trusted(raw: bytes | memoryview, at: int = 0) -> Record | None:
    """The record at byte `at` of `raw`, its checksum not looked at; None for an unknown kind."""
    word, time_us, offset, arg = _LAYOUT.unpack_from(raw, at)
    kind = _KINDS.get(word >> 28)
    if kind is None:
        return None
    return Record(kind, word >> 24 & 0xF, word & 0xFFFFFF, time_us, offset, arg)


def new_digest() -> Digest:
    """For the bytes of an index; one that opens it reads them anyway, so it need not be stored."""
    return hashlib.blake2b(digest_size=8)


def digest_value(digest: Digest) -> int:
    return int.from_bytes(digest.digest(), "little")


def gap_length(kind: GapKind, *, unknown: bool) -> int:
    """The length field of a GAP record."""
    return _GAP_CODES[kind] | (_GAP_UNKNOWN if unknown else 0)


def gap_kind(record: Record) -> GapKind | None:
    """The kind of a GAP record, None if it is not one of ours."""
    return _GAP_KINDS.get(record.length & ~_GAP_UNKNOWN)


def gap_unknown(record: Record) -> bool:
    """Whether the count of a GAP record is only how far its offsets run."""
    return bool(record.length & _GAP_UNKNOWN)


def stream_mask(streams: frozenset[int]) -> int:
    return sum(1 << (stream - 1) for stream in streams)


def mask_streams(mask: int) -> frozenset[int]:
    return frozenset(stream for stream in STREAMS if mask >> (stream - 1) & 1)


class IndexState:
    """What the first `records` records of an index say; also the specification of the format.

    A log is a directory with what the streams 1 and 2 said (segments.Segments has the format) and
    `index`, which says in which order, when and at which log offsets it arrived. Both are only
    ever appended to. What is on its way there lies in the stage (see stage): the index as it is,
    so that the index is the records here, and behind them those there.

    The index, version 1, is a sequence of records of 32 bytes, little endian, so that none
    crosses a page and a killed writer leaves a whole record or none:

        bits 0-23 of the first word   length
        bits 24-27                    stream: 1 out, 2 err, 0 neither
        bits 28-31                    kind
        u64                           time, microseconds since the epoch
        u64                           offset: the log offset at which the record stands
        u64                           arg
        u32                           CRC-32 of the 28 bytes before it, begun with the record's
                                      number, so that a record counts only in its own place

    Log offsets count the bytes of both streams, and those of gaps, in order of arrival from 0.
    Each record's offset is where the one before it ended.

        kind    stream  length            arg
        HEADER  0       format version    tag of the boot the log was made in; always record 0,
                                          its offset is the magic number
        DATA    1, 2    bytes             their position in the stream
        END     1, 2    0                 bytes of the stream; nothing of it follows
        GAP     0-2     gap kind, +0x100  offsets that it covers; +0x100: the count is not known,
                        if not known      the gap runs to the next multiple of 2^40. Of the kinds
                                          sampled and dropped it covers as many positions of the
                                          stream, too
        MARK    1, 2    0                 N: the rest of the stream, which its job's PID 1 kept,
                                          begins where the log holds N bytes of the stream
        EXPECT  0       mask of streams   0; which streams the log will have, once
        BOOT    0       0, 1              tag of the boot in which what follows was written; 1: what
                                          came before may be incomplete, and only a GAP of kind
                                          "lost", unknown count and the same time may follow
        CHECK   1, 2    flags             bytes of the stream. A pair, first stream 1, then 2. The
                                          time of the first is BLAKE2b, cut to 64 bits, of all
                                          bytes of the index before it (a CRC would not do: that
                                          of records which end in their own CRC does not depend
                                          on what they say); that of the second the boot's tag.
                                          Flags: 0x03 streams expected, 0x04 if that is known,
                                          0x18 streams ended

    A pair of CHECKs stands behind the end of the last expected stream, and now and then before
    (never behind a MARK of a stream that has not ended): who opens the log verifies one
    checksum and reads the few records behind the pair. It is never needed.

    The valid prefix of an index is the longest that consists of records with the right
    checksums, each of which `accepts` when its turn comes. What follows is discarded; because it
    may have been read by someone, a gap of unknown count then takes its place, unless the log
    had ended. Bytes of a stream behind those that DATA accounts for were moved by a writer that
    was killed before it could enter them: they are entered by whoever opens the log. Bytes at the
    end of a stream that DATA accounts for and that are not there are replaced by gaps in place.
    """

    __slots__ = (
        "boot",
        "digest",
        "ended",
        "expected",
        "held",
        "loss_us",
        "marks",
        "records",
        "rest_lost",
        "since_check",
        "size",
        "tail_lost",
        "version",
    )

    def __init__(self) -> None:
        self.records = 0
        self.size = 0  # log offset behind the last byte
        self.held = [0, 0, 0]  # bytes of each stream, entered or left out
        self.ended: frozenset[int] = frozenset()
        self.expected: frozenset[int] | None = None
        self.boot = 0
        self.marks: dict[int, int] = {}
        self.rest_lost: set[int] = set()  # streams with a LOST gap behind their MARK
        # The stream of a gap that stands at the end of the log and hides an unknown count of lost
        # bytes; not known behind a CHECK.
        self.tail_lost: int | None = None
        self.loss_us: int | None = None  # time of a BOOT record whose gap is still to come
        self.version = 0
        self.digest = new_digest()  # of all bytes so far
        self.since_check = 0

    @property
    def all_ended(self) -> bool:
        return self.expected is not None and self.expected <= self.ended

    @property
    def wants_check(self) -> bool:
        """Whether a pair of CHECK records should be written now."""
        if self.loss_us is not None:
            return False
        if self.all_ended:
            return self.since_check > 0
        return self.since_check >= CHECK_EVERY and not self.marks

    def accepts(self, record: Record) -> bool:
        """Whether the record may stand behind those applied so far."""
        kind, stream = record.kind, record.stream
        if self.records == 0:
            return kind is Kind.HEADER and record.offset == MAGIC
        if record.offset != self.size or stream > ERR:
            return False
        if self.loss_us is not None and kind is not Kind.GAP:
            return False
        if kind in (Kind.DATA, Kind.END, Kind.MARK):
            in_turn = stream != ALL_STREAMS and stream not in self.ended
            in_turn = in_turn and record.arg == self.held[stream]
            return in_turn and (record.length > 0) == (kind is Kind.DATA)
        if kind is Kind.GAP:
            if record.arg == 0 or gap_kind(record) is None or self.all_ended:
                return False
            if gap_kind(record) in LEFT_OUT and (stream == ALL_STREAMS or stream in self.ended):
                return False
            return self.loss_us is None or self._is_the_loss(record)
        if kind is Kind.EXPECT:
            return self.expected is None and record.length <= stream_mask(frozenset(STREAMS))
        if kind is Kind.CHECK:
            if stream == ALL_STREAMS or record.length != self._flags():
                return False
            fits = digest_value(self.digest) if stream == OUT else self.boot
            return record.arg == self.held[stream] and record.time_us == fits
        return kind is Kind.BOOT and record.length <= BOOT_LOSS

    def apply(self, record: Record, raw: bytes | memoryview) -> None:
        """Count a record in that `accepts` let pass; `raw` are its bytes."""
        kind, stream = record.kind, record.stream
        # Readers look at `size` and then read that far: what they will find goes first.
        self.digest.update(raw)
        self.records += 1
        self.since_check += 1
        if kind is Kind.DATA:
            self.held[stream] += record.length
            self.tail_lost = None
        elif kind is Kind.END:
            self.ended |= {stream}
            self.marks.pop(stream, None)
            self.rest_lost.discard(stream)
        elif kind is Kind.GAP:
            self.loss_us = None
            if gap_kind(record) in LEFT_OUT:
                self.held[stream] += record.arg
            lost = gap_kind(record) is GapKind.LOST and gap_unknown(record)
            self.tail_lost = stream if lost else None
            if gap_kind(record) is GapKind.LOST and stream in self.marks:
                self.rest_lost.add(stream)
        elif kind is Kind.MARK:
            self.marks[stream] = record.arg
            self.rest_lost.discard(stream)
        elif kind is Kind.EXPECT:
            self.expected = mask_streams(record.length)
        elif kind is Kind.HEADER:
            self.version, self.boot = record.length, record.arg
        elif kind is Kind.BOOT:
            self.boot = record.arg
            self.loss_us = record.time_us if record.length == BOOT_LOSS else None
        elif stream == ERR:
            self.since_check = 0
        self.size += record.span

    def check(self, stream: int) -> Record:
        """The CHECK record of a stream that would be right now."""
        fits = digest_value(self.digest) if stream == OUT else self.boot
        return Record(Kind.CHECK, stream, self._flags(), fits, self.size, self.held[stream])

    @classmethod
    def from_check(
        cls, first: Record, second: Record, number: int, digest: Digest, raw: bytes | memoryview
    ) -> "IndexState | None":
        """The state behind the CHECK pair `first` (record `number`) and `second`, or None.

        `digest`: of all bytes of the index before the pair; `raw`: the pair's bytes.
        """
        pair = (first.kind, second.kind, first.stream, second.stream)
        if pair != (Kind.CHECK, Kind.CHECK, OUT, ERR) or first.time_us != digest_value(digest):
            return None
        if (first.length, first.offset) != (second.length, second.offset):
            return None
        state = cls()
        flags = first.length
        state.records = number + 2
        state.size = first.offset
        state.held = [0, first.arg, second.arg]
        state.ended = mask_streams(flags >> _ENDED_SHIFT)
        if flags & _EXPECT_KNOWN:
            state.expected = mask_streams(flags >> _EXPECT_SHIFT)
        state.boot = second.time_us
        state.version = VERSION
        digest.update(raw)
        state.digest = digest
        return state

    def _flags(self) -> int:
        flags = stream_mask(self.ended) << _ENDED_SHIFT
        if self.expected is not None:
            flags |= stream_mask(self.expected) << _EXPECT_SHIFT | _EXPECT_KNOWN
        return flags

    def _is_the_loss(self, gap: Record) -> bool:
        lost = gap_kind(gap) is GapKind.LOST and gap_unknown(gap)
        return lost and gap.time_us == self.loss_us
