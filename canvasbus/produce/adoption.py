"""What dead processes left in a spool, in the hands of the one that sends it now.

A sender looks when it begins, and now and then: whose lock can be had is dead, and what it left is taken over, the oldest
first. A Producer that is closed while the server hangs leaves its thread behind, with its folders locked, and is not dead.
The next one of the same process waits for that, for a while: else what it is left would come after its own, or when a
third one looks.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from canvasbus import clock
from canvasbus.produce import spoolfolder
from canvasbus.produce.spoolfile import Log, Whose
from canvasbus.produce.spoolfolder import Folder, Left

LOOK_SECONDS: Final = 60.0
"""How often a sender looks whether somebody died and left something."""
ADOPT_FILES: Final = 100
"""How many files of others a process has open at once: a program that crashes over and over leaves a folder each time, more
in the end than a process may have files. The rest is adopted when these are sent."""
LEAVE_SECONDS: Final = 30.0
"""How long a Producer waits for one of its process that was closed, and whose thread hangs in a request."""


class Adoption:
    """The logs that one process has taken over, by partition."""

    def __init__(self, root: Path, whose: Whose, lanes: int) -> None:
        self._root = root
        self._whose = whose
        self._next_look = clock.monotonic() + LOOK_SECONDS
        self.folders: dict[Log, Folder] = {}
        self.logs: list[deque[Log]] = [deque() for _ in range(lanes)]
        """The same, in the order in which they are to be sent."""
        self.complete = False
        """Whether the last look left nothing out."""
        self.waits_for: Path | None = None
        """Where it did: what one that is leaving has still in its hands."""

    @property
    def due(self) -> bool:
        """It is time to look again."""
        return clock.monotonic() >= self._next_look

    def look(self, failed: Callable[[Path, OSError], None]) -> Iterator[tuple[Folder, Left]]:
        """Take over what dead processes left, a folder at a time: each is to be given to `add` before the next is asked for.
        `failed` is told of what cannot be had."""
        self._next_look = clock.monotonic() + LOOK_SECONDS
        leaving = _held_by_the_leaving(self._whose)
        self.complete, self.waits_for = True, None
        try:
            found = spoolfolder.folders(self._root)
        except OSError as error:
            found = []
            failed(self._root, error)
        for path in found:
            if len(self.folders) + len(set(self.folders.values())) >= ADOPT_FILES:
                self.complete = False
                break
            try:
                folder = spoolfolder.claim(path)
                left = spoolfolder.adopt(folder, self._whose) if folder else None
            except OSError as error:
                failed(path, error)
                continue
            if folder is None and path in leaving:
                self.complete, self.waits_for = False, path
            if folder is not None and left is not None:
                yield folder, left

    def add(self, folder: Folder, left: Left) -> int:
        """These are in our hands now. Returns how many events they have."""
        for log in left.logs:
            self.folders[log] = folder
            self.logs[log.partition].append(log)
        return sum(log.ledger.events for log in left.logs)

    def remove(self, log: Log) -> Folder | None:
        """All of it is sent. Returns its folder, if this was the last log there."""
        self.logs[log.partition].remove(log)
        folder = self.folders.pop(log)
        return None if folder in self.folders.values() else folder

    def __repr__(self) -> str:
        return f"<Adoption of {len(self.folders)} logs in {self._root}>"


class _Leaver(NamedTuple):
    pid: int
    until: float
    whose: Whose
    held: Callable[[], list[Folder]]


_leaving: dict[int, _Leaver] = {}
"""Who was closed, and whose thread has not ended."""


def leaves(who: object, whose: Whose, held: Callable[[], list[Folder]]) -> None:
    """`who` is closed, and has folders until it calls `left`."""
    _leaving[id(who)] = _Leaver(os.getpid(), clock.monotonic() + LEAVE_SECONDS, whose, held)


def left(who: object) -> None:
    """Its thread has let go of everything."""
    _leaving.pop(id(who), None)


def _held_by_the_leaving(whose: Whose) -> set[Path]:
    """The folders that others of this process have which are closed, of the same namespace."""
    found: set[Path] = set()
    for key, leaver in list(_leaving.items()):
        if leaver.pid != os.getpid() or clock.monotonic() > leaver.until:
            _leaving.pop(key, None)
        elif leaver.whose[:2] == whose[:2]:
            found.update(folder.path for folder in leaver.held())
    return found
