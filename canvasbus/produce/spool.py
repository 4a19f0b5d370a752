"""The spool's log: what its bytes mean, without files and without time.

A log takes the events of one process for one partition, in order. It lies in segments, each a file of records

    crc32 · length · kind · number · payload        crc32: of all that follows it in the record

    header    the first record of a segment: whose log it is, and how far it had got, so that all that is known of a log
              stands in its newest segment, and older ones may go as soon as their events are settled
    event     an encoded event; its number says where in the log it stands
    sending   written before a batch is sent: events from `number` to `end`, the fence they are sent under, and the last
              entry of each stream that is known. Who finds it after a crash can look whether the batch arrived. One
              batch is sent at a time: the fate of all before it is known
    settled   the fate of every event below `number` is known

Behind the header of each segment stands a settled record that says nothing and is longer than it need be: on a full disk, where
nothing can be added, what is settled and being sent is written into its room.

Numbers grow and may leave gaps: an event that could not be written down stays in memory and has a number all the same.

A record is believed when its checksum is right. Nothing behind the first that is not whole is read: the length of a
damaged record is not to be trusted either, and a record cut short is what a process leaves that was killed while writing.
"""

import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from canvasbus.wire.outgoing import Outgoing

HEADER: Final = 1
EVENT: Final = 2
SENDING: Final = 3
SETTLED: Final = 4

VERSION: Final = 1
SEGMENT_BYTES: Final = 8 * 1024 * 1024
"""A segment is full then; a smaller spool has smaller ones, so that room comes back in eighths of it."""
RESTING_BYTES: Final = 1024 * 1024
"""A log in which all is settled begins a new segment when it has grown so far, in a small spool sooner: what nobody needs
any more must never fill it."""

SPARE_BYTES: Final = 512
"""Room kept in each segment. It lies within the first page of 4 KiB, so that a process that is killed writes all or nothing."""

LAST_NUMBER: Final = 1 << 62
"""No log gets so far; what is beyond was written by nobody."""

_head = struct.Struct(">IBQ").pack
_crc = struct.Struct(">I").pack
_unpack_from = struct.Struct(">IIBQ").unpack_from
HEAD_BYTES: Final = 17


class Sending(msgspec.Struct, frozen=True, array_like=True):
    """A batch on its way: events with start ≤ number < end."""

    start: int
    end: int
    fence: str
    """The incarnation of the sender, whose fence key it watches; "": the events bear marks (see `once`)."""
    cursors: dict[str, bytes]
    """Event type → the last entry of its stream before the batch."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first record of a segment."""

    version: int = VERSION
    namespace: str
    partition: int
    partitions: int
    server: str
    """For people; the URL without its password."""
    pid: int
    host: str
    created: float
    """Wall time, for people."""
    settled: int
    """Everything below this number was settled when the segment began."""
    sending: Sending | None = None


class Record(NamedTuple):
    """One record of a segment."""

    kind: int
    number: int
    payload: bytes
    end: int
    """Where in the file it ends."""


_is_entry_id = re.compile(rb"[0-9]{1,20}-[0-9]{1,20}").fullmatch
encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(Outgoing).decode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_sending = msgspec.msgpack.Decoder(tuple[int, str, dict[str, bytes]]).decode


def frame(kind: int, number: int, payload: bytes) -> bytes:
    """The bytes of one record."""
    head = _head(len(payload), kind, number)
    return b"".join((_crc(crc32(payload, crc32(head))), head, payload))


def frame_header(header: Header, number: int) -> bytes:
    """The first record of a segment whose first event has this number."""
    return frame(HEADER, number, msgspec.msgpack.encode(header))


def frame_sending(sending: Sending) -> bytes:
    """The note before a batch is sent."""
    return frame(SENDING, sending.start, msgspec.msgpack.encode((sending.end, sending.fence, sending.cursors)))


def frame_settled(number: int) -> bytes:
    """The note that everything below `number` is settled."""
    return frame(SETTLED, number, b"")


def frame_spare(settled: int, sending: Sending | None) -> bytes:
    """Both notes in SPARE_BYTES; what is being sent only where that fits, as it does with five types or so."""
    note = frame_sending(sending) if sending is not None else b""
    if len(note) + HEAD_BYTES >= SPARE_BYTES:
        note = b""
    return frame(SETTLED, settled, bytes(SPARE_BYTES - HEAD_BYTES - len(note))) + note


def records(data: bytes, at: int = 0, base: int = 0) -> Iterator[Record]:
    """The records in `data` from `at` on, up to the first that is not whole. `base`: where in the file `data` begins."""
    size = len(data)
    view = memoryview(data)
    while at + HEAD_BYTES <= size:
        crc, length, kind, number = _unpack_from(data, at)
        end = at + HEAD_BYTES + length
        if end > size or crc32(view[at + 4 : end]) != crc:
            return
        yield Record(kind, number, data[at + HEAD_BYTES : end], base + end)
        at = end


def whole(data: bytes) -> int:
    """How many bytes of a segment are whole records, with a header of ours as the first; 0: it is none of ours."""
    end = 0
    for record in records(data):
        if (end == 0) != (record.kind == HEADER) or read_record(record) is None:
            break  # a checksum that fits what nobody wrote, or what a later version writes
        end = record.end
    return end


def read_record(record: Record) -> Header | Outgoing | Sending | int | None:
    """What a record says; a number: all below it is settled; None: nothing that is known here."""
    if record.number > LAST_NUMBER:
        return None
    try:
        if record.kind == EVENT:
            return decode_event(record.payload)
        if record.kind == SETTLED:
            return record.number
        if record.kind == SENDING:
            sending = Sending(record.number, *_decode_sending(record.payload))
            return sending if all(map(_is_entry_id, sending.cursors.values())) else None
        if record.kind == HEADER:
            header = _decode_header(record.payload)
            return header if header.version == VERSION else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    return None


@dataclass(slots=True)
class Segment:
    """One file of a log."""

    serial: int
    """The segments of a log are numbered; so are their files."""
    first: int
    """The number that its first event has, or would have."""
    size: int = 0
    last: int = -1
    """The highest number of an event in it; -1: there is none."""
    events: int = 0
    """How many events are in it; of one that was found, how many were not settled then."""
    spare: int = 0
    """Where in the file the room for notes begins; 0: there is none."""


class Ledger:
    """What is in a log, without reading it again: kept by whoever writes it, or made from what was found on disk."""

    def __init__(self, segments: list[Segment] | None = None) -> None:
        self.segments: list[Segment] = segments or []
        """The oldest first; the last one is written to."""
        self.next = 0
        """The number of the next event."""
        self.settled = 0
        self.sending: Sending | None = None
        self.events = 0
        """Events on disk that are not settled."""
        self.bytes = sum(segment.size for segment in self.segments)

    def began(self, segment: Segment) -> None:
        """A new segment is there, with its header."""
        self.segments.append(segment)
        self.bytes += segment.size

    def wrote(self, size: int, events: int = 0) -> None:
        """So many bytes, with so many events, were added to the last segment."""
        self.segments[-1].size += size
        self.segments[-1].events += events
        self.bytes += size
        self.events += events

    def settle(self, number: int, events: int) -> list[Segment]:
        """Everything below `number` is settled, `events` of it on disk. Returns the segments that may go."""
        self.settled = max(self.settled, number)
        self.sending = None
        self.events -= events
        return self.forget_settled()

    def forget_settled(self) -> list[Segment]:
        """The segments that nobody needs any more, the last one never; they count no longer."""
        gone = [segment for segment in self.segments[:-1] if segment.last < self.settled]
        for segment in gone:
            self.segments.remove(segment)
            self.bytes -= segment.size
        return gone

    def unsettled(self, segment: Segment) -> int:
        """How many events of a segment are not settled."""
        if segment.last < self.settled:
            return 0
        others = sum(other.events for other in self.segments if other is not segment and other.first >= self.settled)
        return max(0, segment.events if segment.first >= self.settled else self.events - others)

    def replaced(self, segment: Segment, size: int, last: int, events: int) -> None:
        """The file of a segment was gone, and so much of it is there again; 0 bytes: nothing."""
        self.events += events - self.unsettled(segment)
        self.bytes += size - segment.size
        segment.size, segment.last, segment.events = size, last, events
        if not size:
            self.segments.remove(segment)

    def cut(self, segment: Segment, size: int, last: int) -> None:
        """Of a segment that cannot be read any further, so many bytes are left, up to the event `last`."""
        self.bytes -= segment.size - size
        segment.size, segment.last = size, last

    def where(self, number: int) -> Segment | None:
        """The segment in which an event of this number would stand, or the next after it that has any."""
        at = max(0, bisect_right([segment.first for segment in self.segments], number) - 1)
        return next((segment for segment in self.segments[at:] if segment.last >= number), None)

    def done(self) -> bool:
        """Whether all that is on disk is settled."""
        return all(segment.last < self.settled for segment in self.segments)

    def rests(self, resting_bytes: int) -> bool:
        """Whether all is settled and the last segment has grown enough to be replaced."""
        return bool(self.segments) and self.segments[-1].size > resting_bytes and self.done()


class Found(NamedTuple):
    """What the intact part of one segment says."""

    header: Header
    first: int
    last: int
    size: int
    """Bytes of the file that are intact."""
    settled: int
    sending: Sending | None
    """How far the log had got at the end of it."""
    unsettled: int
    """Its events with a number from the log's `settled` on."""
    spare: int
    """See Segment."""


def look(data: bytes, settled: int | None = None) -> Found | None:
    """What a segment says, as far as it is intact; None: there is no header. `settled`: what a newer segment says."""
    size = whole(data)
    found = list(records(data[:size]))
    if not found:
        return None
    header = read_record(found[0])
    assert isinstance(header, Header)
    sending, reached, last, spare = header.sending, header.settled, -1, 0
    for record in found[1:]:
        if record.kind == EVENT:
            last = max(last, record.number)
        elif record.kind == SETTLED:
            reached = max(reached, record.number)
            spare = spare or (found[0].end if record.payload else 0)
        elif isinstance(said := read_record(record), Sending) and (sending is None or said.start >= sending.start):
            sending = said  # one that lies before an older one was written into the spare room
    if sending is not None:
        reached = max(reached, sending.start)
        sending = sending if sending.end > reached else None
    if settled is not None:
        reached, sending = settled, None
    unsettled = sum(record.kind == EVENT and record.number >= reached for record in found)
    return Found(header, found[0].number, last, size, reached, sending, unsettled, spare)
