"""The folders of a spool: one for each process, in the folder that the user named.

    PATH/000007-0198c5…/lock            held with flock as long as the process lives
    PATH/000007-0198c5…/0-00000003.log  partition, number of the segment
    PATH/000007-0198c5….0-00000003.512.damaged    what could not be read from byte 512 on, set aside for a person

Whoever holds the lock writes and deletes; a folder whose lock can be had belongs to a dead process, and is adopted with
it. Numbers of folders grow, so that what was left first is sent first. A folder may be deleted between its name is read
and its lock is had: a lock counts only when it is still the one that the name leads to.

A forked child shares the locks of its parent, who may be about to get one in another thread: it closes its copies of all
that are open (`_held`), or what the parent leaves would count as that of the living for as long as the child lives.
"""

import errno
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from canvasbus import ids
from canvasbus.produce.spool import Header, Ledger, Segment, look
from canvasbus.produce.spoolfile import Log, Whose, discard, set_aside

_FOLDER = re.compile(r"([0-9]{6,9})-[0-9a-f]{32}")
"""A name that is nearly this one is somebody else's: it is neither read nor removed."""
_SEGMENT = re.compile(r"([0-9]{1,9})-([0-9]{1,9})\.log")

LOOKS: Final = 10
LOOK_SECONDS: Final = 0.001
"""How often, and how long each time, is waited for somebody who only looks at a lock."""

_held: set[int] = set()
"""The locks that this process has open."""
_opening = threading.RLock()
"""Nobody forks between the opening or closing of a lock and its entry in `_held`."""


def _after_fork() -> None:
    _opening.release()
    while _held:
        os.close(_held.pop())


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_after_fork)


class Folder:
    """The files of one process, locked."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def keep(self) -> None:
        """Make anew what somebody removed: the folder, its lock. Raises OSError."""
        if self._lock < 0:
            return
        try:
            if os.fstat(self._lock).st_ino == (self.path / "lock").stat().st_ino:
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        for path in (self.path.parent, self.path):
            path.mkdir(0o700, parents=True, exist_ok=True)
        lock = _locked(self.path, os.O_CREAT)
        old, self._lock = self._lock, lock
        _let_go(old)

    def release(self) -> None:
        """Let go of the lock; the files stay."""
        lock, self._lock = self._lock, -1
        _let_go(lock)

    def remove(self) -> None:
        """Delete the folder, whose logs are deleted."""
        for path in self.path.glob("*.log"):
            if not path.stat().st_size:  # killed while it began
                discard(path)
        _remove(self.path)
        self.release()


def create(root: Path) -> Folder:
    """A new folder, behind all others. Raises OSError."""
    while True:
        number = max(map(_number, folders(root)), default=0) + 1
        path = root / f"{number:06}-{ids.uuid7().hex}"
        try:
            path.mkdir(0o700)
            return Folder(path, _locked(path, os.O_CREAT | os.O_EXCL))
        except (FileNotFoundError, BlockingIOError, FileExistsError):
            continue  # somebody found it before it was locked, thought it left over, and took it away
        except OSError:  # no room for the lock, or a file system without locks: it is tried again and again
            _remove(path)
            raise


def _remove(path: Path) -> None:
    discard(path / "lock")
    try:
        path.rmdir()
    except OSError:  # somebody keeps files of his own in it
        pass


def claim(path: Path) -> Folder | None:
    """The folder of a dead process, locked; None: its process lives, or it is gone. Raises OSError, also where the lock alone
    is gone: nobody knows then whether its process lives."""
    try:
        return Folder(path, _locked(path, 0))
    except BlockingIOError:
        return None
    except FileNotFoundError:
        try:
            path.rmdir()  # killed between two steps of `create`
        except OSError:
            if not (path / "lock").exists() and any(path.glob("*.log")):  # in this order: a lock is made before a log
                why = "its file `lock` is gone; when its process is dead, make an empty one there"
                raise OSError(errno.ENOENT, why, str(path)) from None
        return None


def holder(path: Path) -> int | None:
    """The process that holds the folder's lock, 0 where it has not said; None: nobody does."""
    import fcntl

    try:
        with (path / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = lock.read(20)
                return int(said) if said.isdigit() else 0
    except FileNotFoundError:
        pass
    return None


def _locked(path: Path, flags: int) -> int:
    name = path / "lock"
    with _opening:
        lock = os.open(name, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        _held.add(lock)
    try:
        _have_alone(lock)
        if os.fstat(lock).st_ino != name.stat().st_ino:
            raise FileNotFoundError(errno.ENOENT, "it was replaced", str(name))
        os.ftruncate(lock, 0)
        try:
            os.write(lock, str(os.getpid()).encode())  # for people
        except OSError:  # the disk is full
            pass
    except BaseException:
        _let_go(lock)
        raise
    return lock


def _have_alone(lock: int) -> None:
    """Raises BlockingIOError where a living process has it. Who only looks has a share of it for a moment (`holder`), and is
    waited for."""
    import fcntl

    for looks in range(LOOKS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # where somebody has it alone, this raises
            fcntl.flock(lock, fcntl.LOCK_UN)
            if looks == LOOKS - 1:
                raise
        time.sleep(LOOK_SECONDS)


def _let_go(lock: int) -> None:
    with _opening:
        if lock in _held:  # a forked child has closed those of its parent
            _held.remove(lock)
            os.close(lock)


def folders(root: Path) -> list[Path]:
    """The folders of all processes, those left first in front. Raises OSError."""
    return sorted(
        (path for path in root.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()),
        key=lambda path: (_number(path), path.name),
    )


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def aside(root: Path) -> list[Path]:
    """The files with what could not be read. Raises OSError."""
    return sorted(path for path in root.iterdir() if path.suffix == ".damaged")


@dataclass(slots=True)
class FoundLog:
    """A log as it lies on disk."""

    partition: int
    header: Header | None = None
    """Of the newest segment that is intact enough; None: of none."""
    oldest: Header | None = None
    """Of the oldest segment with events that are not settled."""
    ledger: Ledger = field(default_factory=Ledger)
    damaged: list[tuple[Path, int, int]] = field(default_factory=list)
    """File, bytes that are intact, bytes in all."""


def read_folder(path: Path) -> list[FoundLog]:
    """All logs of a folder, every byte read. Changes nothing; raises OSError."""
    found: dict[int, FoundLog] = {}
    for file, partition, serial in sorted(_segments(path), key=lambda each: each[1:], reverse=True):  # newest first
        log = found.setdefault(partition, FoundLog(partition))
        data = file.read_bytes()
        seen = look(data, log.ledger.settled if log.header else None)
        if seen is not None and not seen.header.partition == partition < seen.header.partitions:
            seen = None  # renamed by hand: nobody knows where its events belong
        if (intact := seen.size if seen else 0) < len(data):
            log.damaged.append((file, intact, len(data)))
        if seen is None:
            continue
        ledger = log.ledger
        ledger.segments.insert(0, Segment(serial, seen.first, seen.size, seen.last, seen.unsettled, seen.spare))
        ledger.bytes += seen.size
        ledger.events += seen.unsettled
        ledger.next = max(ledger.next, seen.first, seen.last + 1)
        if log.header is None:
            log.header, ledger.settled, ledger.sending = seen.header, seen.settled, seen.sending
            ledger.next = max(ledger.next, seen.settled, seen.sending.end if seen.sending else 0)
        if seen.unsettled:
            log.oldest = seen.header
    return [found[partition] for partition in sorted(found)]


def _segments(path: Path) -> Iterator[tuple[Path, int, int]]:
    for file in path.iterdir():
        if (name := _SEGMENT.fullmatch(file.name)) and file.is_file():
            yield file, int(name[1]), int(name[2])


def set_damaged_aside(log: FoundLog) -> int:
    """Cut what cannot be read off a log that was found, and keep it. Returns its bytes. Raises OSError."""
    return sum(set_aside(file, intact) for file, intact, _ in log.damaged)


def is_usable(root: Path) -> str | None:
    """Make the folder where it is missing. Returns why no spool can be there; None: it can. Raises OSError when that
    may be otherwise later (no room)."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return "is no folder"
    except ValueError:  # a NUL in it
        return "is no path"
    except (PermissionError, FileNotFoundError) as error:
        return f"cannot be made ({error.strerror})"
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return f"cannot be made ({error.strerror})"
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        return "cannot be written to by this user"
    return None


@dataclass(slots=True)
class Left:
    """What a dead process left, adopted."""

    logs: list[Log]
    """Those with events that are not settled."""
    damaged: int
    """Files of which a part was set aside."""
    trouble: str
    """What is to be told of it; "": nothing."""


def adopt(folder: Folder, whose: Whose) -> Left:
    """Take over a locked folder: with nothing in it, it is removed; of somebody else, it is let go. Raises OSError."""
    logs: list[Log] = []
    try:
        found = read_folder(folder.path)
        header = next((each.header for each in found if each.header), None)
        if header is not None and (header.namespace, header.partitions) != whose[:2]:
            folder.release()
            mine = header.namespace == whose.namespace
            trouble = (
                f"the spool {folder.path} waits for a producer with partitions={header.partitions}" if mine else ""
            )
            return Left([], 0, trouble)
        damaged, trouble = sum(len(each.damaged) for each in found), ""
        if damaged:
            lost = sum(map(set_damaged_aside, found))
            trouble = f"the spool {folder.path} is damaged: {lost:,} bytes are set aside beside it"
        for each in found:
            log = Log(folder.path, each.partition, whose, each.ledger)
            if each.ledger.done():
                log.delete()
            else:
                log.reopen()
                logs.append(log)
    except OSError:
        for log in logs:
            log.close()
        folder.release()
        raise
    if not logs:
        folder.remove()
    return Left(logs, damaged, trouble)
