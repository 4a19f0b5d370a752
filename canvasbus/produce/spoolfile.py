"""The files of one log of a spool, segment by segment.

Events are in the page cache when `append` returns: a killed process loses none. Nothing is fsynced. The write goes past
Python's own, which gives the GIL away for what takes a microsecond: with another busy thread the mean of os.write was
754 µs, that of this one 3.5 (when nobody else is busy both take 1.0 to 1.2). The price: where the system makes a write
wait, all threads wait. So a spool belongs on a local disk.
"""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from canvasbus import clock
from canvasbus.produce.spool import (
    EVENT,
    Header,
    Ledger,
    Segment,
    Sending,
    decode_event,
    frame,
    frame_header,
    frame_sending,
    frame_settled,
    frame_spare,
    records,
)
from canvasbus.wire.outgoing import Outgoing

READ_BYTES = 1024 * 1024
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def _os_write(fd: int, data: bytes, _: int) -> int:
    return os.write(fd, data)


try:
    import ctypes

    _raw_write: Callable[[int, bytes, int], int] = ctypes.PyDLL(None).write
    _raw_write.restype = ctypes.c_ssize_t  # type: ignore[attr-defined]  # argtypes would cost 0.8 µs more
except (ImportError, OSError, AttributeError):  # a Python without ctypes, a C library without a name
    _raw_write = _os_write


class Whose(NamedTuple):
    """Whose events a spool takes, as it is written into each segment, and how large these get."""

    namespace: str
    partitions: int
    server: str
    segment_bytes: int
    """A segment that has so many is full."""
    resting_bytes: int
    """One in which all is settled is given up when it has more."""


def file_name(partition: int, serial: int) -> str:
    """Of one segment of one log, in the folder of its process (read back by `spoolfolder`)."""
    return f"{partition}-{serial:08}.log"


class Damaged(Exception):
    """A segment cannot be read any further."""

    def __init__(self, segment: Segment, offset: int, reached: int) -> None:
        super().__init__(f"segment {segment.serial} at byte {offset:,}")
        self.segment = segment
        self.offset = offset
        self.reached = reached
        """The highest number that could be read."""

    @property
    def is_gone(self) -> bool:
        """Whether that is for want of its file."""
        return isinstance(self.__cause__, FileNotFoundError | NotADirectoryError)


class Log:
    """The log of one partition in the folder of one process. Everything but `read` needs the buffer's lock."""

    def __init__(self, folder: Path, partition: int, whose: Whose, ledger: Ledger | None = None) -> None:
        self.partition = partition
        self.ledger = ledger or Ledger()
        self.taken = self.ledger.settled
        """The number of the next event that goes into somebody's hands."""
        self.error: OSError | None = None
        """Why the latest write failed; None: it did not."""
        self._folder = folder
        self._whose = whose
        self._fd = -1
        self._writing: Segment | None = None
        """The segment whose file is open, always the last; None: there is none, or Ctrl-C came while one began."""
        self._reading: tuple[Segment, int] | None = None
        """Where the last `read` ended."""

    def path(self, segment: Segment) -> Path:
        """The file of a segment."""
        return self._folder / file_name(self.partition, segment.serial)

    # --- writing -------------------------------------------------------------------------------------------------

    def append(self, data: bytes, first: int, last: int, events: int) -> None:
        """Write framed events. Raises OSError, and then nothing of it is in the log; when Ctrl-C comes, all or nothing."""
        if self._writing is None or self._writing.size >= self._whose.segment_bytes:
            self._begin(first)
        segment = self.ledger.segments[-1]
        before, segment.last = segment.last, last  # not after it is there: it keeps the segment from being deleted
        self.ledger.next = last + 1  # a number that is missing does no harm
        try:
            _write(self._fd, data)
        except BaseException:
            if os.fstat(self._fd).st_size == segment.size + len(data):
                self.ledger.wrote(len(data), events)
            else:
                segment.last = before
            raise
        self.ledger.wrote(len(data), events)

    def note_sending(self, sending: Sending) -> None:
        """Write down what is about to be sent. Raises OSError when that takes the spare room, or is not possible at all."""
        self.ledger.sending = sending
        if self.ledger.segments:
            try:
                self._note(frame_sending(sending))
            except OSError:
                self._note_in_place()
                raise

    def settle(self, number: int, events: int) -> list[Path]:
        """The fate of everything below `number` is known, `events` of which are on disk. Returns files to be deleted.
        Sets `error` when that takes the spare room, or is not possible at all."""
        ledger = self.ledger
        gone = ledger.settle(number, events)
        self.error = None
        if ledger.segments:
            try:
                if ledger.rests(self._whose.resting_bytes):
                    self._begin(ledger.next)
                    gone += ledger.forget_settled()
                else:
                    self._note(frame_settled(number))
            except OSError as error:
                self.error = error
                self._note_in_place()
        return [self.path(segment) for segment in gone]

    def begin_anew(self, damaged: Damaged) -> None:
        """Go on behind a segment that cannot be read, whose rest is set aside. Raises OSError."""
        segment, self._reading = damaged.segment, None
        self.ledger.cut(segment, damaged.offset, damaged.reached)
        path = self.path(segment)
        try:
            set_aside(path, damaged.offset)
        finally:
            if segment is self.ledger.segments[-1]:
                self._begin(self.ledger.next)

    def is_gone(self, segment: Segment, size: int) -> bool:
        """Whether somebody has removed the file of a segment, or emptied it, since it had so many bytes."""
        try:
            return self.path(segment).stat().st_size < size
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # nobody knows; whoever reads or writes it hears why
            return False

    def restore(self, segment: Segment, events: list[tuple[int, bytes]]) -> None:
        """Make the file of a segment anew that is gone, with these of its events. Raises OSError: then it is none any more."""
        last = segment is self.ledger.segments[-1]
        fd, size = -1, 0
        self._reading = None
        try:
            if events or last:
                fd, size = self._create(segment, b"".join([frame(EVENT, *event) for event in events]))
        finally:
            self.ledger.replaced(segment, size, events[-1][0] if events else -1, len(events) if size else 0)
            if last:
                self.close()
                if size:
                    self._fd, fd, self._writing = fd, -1, segment
            if fd >= 0:
                os.close(fd)

    def reopen(self) -> None:
        """Go on with a log that was found. Raises OSError."""
        if self.ledger.segments:
            self._fd = os.open(self.path(self.ledger.segments[-1]), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._writing = self.ledger.segments[-1]
        else:
            self._begin(self.ledger.next)

    def _begin(self, first: int) -> None:
        ledger = self.ledger
        serial = ledger.segments[-1].serial + 1 if ledger.segments else 1
        segment = Segment(serial, first)
        fd, segment.size = self._create(segment)
        self._writing = None  # until all fits together again: Ctrl-C may come between two steps
        old, self._fd = self._fd, fd
        ledger.began(segment)
        self._writing = segment
        if old >= 0:
            os.close(old)

    def _create(self, segment: Segment, rest: bytes = b"") -> tuple[int, int]:
        """Make the file of a segment: a header, spare room, and the rest. Returns its descriptor and its size."""
        ledger, whose = self.ledger, self._whose
        header = Header(
            namespace=whose.namespace, partition=self.partition, partitions=whose.partitions, server=whose.server,
            pid=os.getpid(), host=socket.gethostname(), created=clock.time(),
            settled=ledger.settled, sending=ledger.sending,
        )  # fmt: skip
        head = frame_header(header, segment.first)
        segment.spare = len(head)
        data = head + frame_spare(0, None) + rest
        path = self.path(segment)
        fd = os.open(path, _APPEND | os.O_TRUNC, 0o600)
        try:
            _write(fd, data)
        except BaseException:
            os.close(fd)
            discard(path)
            raise
        return fd, len(data)

    def _note(self, data: bytes) -> None:
        if self._writing is None:
            self._begin(self.ledger.next)
        _write(self._fd, data)
        self.ledger.wrote(len(data))

    def _note_in_place(self) -> None:
        """Nothing can be added: say how far the log has got in the room that was kept for it. Without that, whoever adopted the
        log would send again what was sent since."""
        ledger, segment = self.ledger, self.ledger.segments[-1]
        if not segment.spare or self.is_gone(segment, segment.size):
            return
        try:  # anew: what is open to append writes at the end only
            fd = os.open(self.path(segment), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(fd, frame_spare(ledger.settled, ledger.sending), segment.spare)
            finally:
                os.close(fd)
        except OSError:  # told already: whoever noted has failed to add it
            pass

    # --- reading -------------------------------------------------------------------------------------------------

    def read(self, start: int, until: int, most: int, most_bytes: int) -> tuple[list[Outgoing], list[int]]:
        """The next events with start ≤ number < until, and their numbers; none: there are no more. `start` never goes back.

        Raises Damaged where a segment cannot be read, and OSError when that may go well later.
        """
        items: list[Outgoing] = []
        numbers: list[int] = []
        size, reached, want = 0, start - 1, READ_BYTES
        while (segment := self.ledger.where(reached + 1)) is not None and segment.first < until:
            at, known = self._reading or (segment, 0), segment.size
            offset = at[1] if at[0] is segment else 0
            if offset >= known:  # the rest of it could not be written
                reached = max(reached, segment.last)
                continue
            try:
                data = _pread(self.path(segment), offset, want)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EIO) or items:
                    raise
                raise Damaged(segment, offset, reached) from error
            end = offset
            for record in records(data, base=offset):
                end = record.end
                if record.kind != EVENT or record.number < start:
                    continue
                if record.number >= until:
                    return items, numbers
                items.append(decode_event(record.payload))
                size += len(items[-1].data)
                numbers.append(reached := record.number)
                if len(items) >= most or size >= most_bytes:
                    self._reading = segment, end
                    return items, numbers
            if end == offset:
                if len(data) >= want:  # a record longer than what was read
                    want *= 2
                    continue
                if items:
                    break  # what is damaged or missing is met again, with nothing in hand
                raise Damaged(segment, offset, reached)
            self._reading, want = (segment, end), READ_BYTES
        return items, numbers

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the file."""
        fd, self._fd, self._writing = self._fd, -1, None
        if fd >= 0:
            os.close(fd)

    def delete(self) -> None:
        """Close, and delete all there is."""
        self.close()
        for segment in self.ledger.segments:
            discard(self.path(segment))

    def __repr__(self) -> str:
        ledger = self.ledger
        return f"<Log {self._folder.name} {self.partition}: {ledger.events} events, {ledger.bytes:,} bytes>"


def _write(fd: int, data: bytes) -> None:
    written = max(0, _raw_write(fd, data, len(data)))
    try:
        while written < len(data):  # go on, to hear why that was all; or it goes well now
            written += os.write(fd, data[written:])
    except BaseException:
        if written:  # nothing may stand behind half a record
            os.ftruncate(fd, os.fstat(fd).st_size - written)
        raise


def _pread(path: Path, offset: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def discard(path: Path) -> None:
    """Delete a file that nobody needs any more. When that is not allowed, it does no harm."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def set_aside(path: Path, intact: int) -> int:
    """Keep what lies behind the intact part of a file beside the folder, and cut it off. Returns its length."""
    data = path.read_bytes()
    if intact < len(data):
        aside = path.parent.with_name(f"{path.parent.name}.{path.stem}.{intact}.damaged")
        aside.write_bytes(data[intact:])
        os.truncate(path, intact)
    if not intact:
        path.unlink()
    return len(data) - intact
