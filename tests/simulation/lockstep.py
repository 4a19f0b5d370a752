"""Threads in virtual time: real ones, of which one runs at a time, and only while trio stands still for it.

The code of a thread is the product's own. Where it would block (a lock that is not free, a queue, a condition, `join`, a
request to the server) it asks instead: `ask` hands a coroutine function over to the trio task that drives the thread,
which awaits it in virtual time and lets the thread go on with what came out. So a thread is a coroutine that happens to
have a stack of its own, and a run repeats.

Threads of production are preempted anywhere. Here that happens where they take or leave a lock, now and then: what they
do in between on their own can be seen by no other thread of the product.

A process that is killed is unwound at once: each of its threads meets Killed where it stands, and whatever its `finally`
still does reaches no server (network.Site) and no disk (producers.Disk puts that back).
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio

from canvasbus import clock
from canvasbus.produce import buffer, sender, spooled, spoolfile, spoolfolder

if TYPE_CHECKING:
    from simulation.site import Site

T = TypeVar("T")


class Killed(BaseException):
    """What a killed process meets wherever it turns to anything outside of it."""


_here = threading.local()


class Life:
    """The threads of one life of a process."""

    def __init__(self, site: Site, nursery: trio.Nursery, dice: Random, nervous: float) -> None:
        """`nervous`: how often one thread has to wait for the others where it takes or leaves a lock."""
        self.site = site
        self.dice = dice
        self.nervous = nervous
        self.threads: list[Thread] = []
        self.changed = trio.Event()
        self.files: set[int] = set()
        """Descriptors of its spool's files."""
        self.disk_steps = 0
        """It dies at the n-th step on disk from now; 0: it does not."""
        self.signals = 0.0
        """How often its main thread is interrupted where it has a lock or writes to its disk."""
        self.on_signal: Callable[[], None] = lambda: None
        self.ctrl_c = 0.0
        """How often Ctrl-C comes while its main thread writes to its disk."""
        self._interrupted = False
        self.before_end: Callable[[], None] = lambda: None
        self.after_end: Callable[[], None] = lambda: None
        self._nursery = nursery
        self._soon: list[Callable[[], object]] = []
        site.on_death = self.end

    @property
    def dead(self) -> bool:
        return self.site.dead

    def begin(self, thread: Thread) -> None:
        """Let a thread run as soon as nobody else of this life does."""
        self.threads.append(thread)
        self._soon.append(lambda: self._nursery.start_soon(thread.drive))

    def soon(self, do: Callable[[], object]) -> None:
        """Something that only trio's own thread may do, when it has its next turn."""
        self._soon.append(do)

    def interrupt(self) -> None:
        """Let the handler of a signal run between two steps of the main thread, now and then."""
        if not self.signals or self._interrupted or self.dead or self.dice.random() >= self.signals:
            return
        if current() is self.threads[0]:
            self._interrupted = True
            try:
                self.on_signal()
            finally:
                self._interrupted = False

    def turn(self) -> None:
        """What is to be done in trio's thread after each step of one of the others."""
        todo, self._soon = self._soon, []
        for do in todo:
            if not self.dead:
                do()
        self.changed.set()
        self.changed = trio.Event()

    def end(self) -> None:
        """The process is no more: its threads end where they stand."""
        self.site.dead = True
        self.before_end()
        for thread in self.threads:
            while not thread.ended:
                thread.step(error=Killed(self.site.name))
        for fd in self.files:
            os.close(fd)
        self.files.clear()
        self.before_end, after = (lambda: None), self.after_end
        self.after_end = lambda: None
        after()


class Thread:
    """A stand-in for threading.Thread."""

    def __init__(
        self, target: Callable[..., object], name: str = "", daemon: bool = True, life: Life | None = None
    ) -> None:
        self.life = life or current().life
        self.name = name
        self.ended = False
        self.error: BaseException | None = None
        self._target: Callable[..., object] | None = target
        self._request: Callable[[], Awaitable[Any]] | None = None
        self._answer: tuple[Any, BaseException | None] = None, None
        self._inside, self._outside = threading.Lock(), threading.Lock()
        self._inside.acquire()
        self._outside.acquire()
        self._real: threading.Thread | None = None
        self._started = False

    # What the product knows.

    def start(self) -> None:
        self._started = True
        self.life.begin(self)

    def is_alive(self) -> bool:
        return self._started and not self.ended

    def join(self, timeout: float | None = None) -> None:
        wait(lambda: self.ended, timeout)

    # What drives it.

    async def drive(self) -> None:
        site = self.life.site
        try:
            await site.come_through()
            request = self.step()
            while request is not None:
                value, error = None, None
                try:
                    value = await request()
                except Exception as raised:
                    error = raised
                await site.come_through()
                if self.ended:
                    return
                request = self.step(value, error)
        finally:
            if not self.ended:
                self.life.end()
        if self.error is not None:
            raise self.error

    def step(self, value: Any = None, error: BaseException | None = None) -> Callable[[], Awaitable[Any]] | None:
        """Let the thread run until it asks for something; None: it has ended."""
        self._answer, self._request = (value, error), None
        if self._real is None:
            if error is not None:
                self.ended = True
                return None
            self._real = threading.Thread(target=self._run, name=f"{self.life.site.name} {self.name}", daemon=True)
            self._real.start()
        else:
            self._inside.release()
        self._outside.acquire()
        self.life.turn()
        return self._request

    def _run(self) -> None:
        _here.thread = self
        target, self._target = self._target, None  # which may hold on to a Producer that is to be let go
        assert target is not None
        try:
            target()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        del target
        self.ended = True
        self._outside.release()

    def park(self, request: Callable[[], Awaitable[Any]]) -> Any:
        self._request = request
        self._outside.release()
        self._inside.acquire()
        value, error = self._answer
        if error is not None:
            raise error
        return value


def current() -> Thread:
    """The thread that runs, which must be one of these."""
    thread: Thread = _here.thread
    return thread


def ask(request: Callable[[], Awaitable[T]]) -> T:
    """Have something awaited in trio's thread, and stand still until it is done."""
    thread = current()
    if thread.life.dead:
        raise Killed(thread.life.site.name)
    return thread.park(request)  # type: ignore[no-any-return]


def wait(condition: Callable[[], object], timeout: float | None = None) -> bool:
    """Stand still until another thread of this life has made something true, or for so many seconds."""
    life = current().life

    async def until() -> bool:
        with trio.move_on_after(float("inf") if timeout is None else max(0.0, timeout)):
            while not condition():
                await life.changed.wait()
        return bool(condition())

    return bool(condition()) or ask(until)


def _breathe() -> None:
    """Now and then the other threads come first."""
    thread: Thread | None = getattr(_here, "thread", None)
    if thread is None or thread.life.dead or thread.life.dice.random() >= thread.life.nervous:
        return
    seconds = thread.life.dice.choice([0.0, 0.0, 0.001, 0.02, 0.02])
    ask(lambda: trio.sleep(seconds))


def _interrupt(*, ctrl_c: bool = False) -> None:
    thread: Thread | None = getattr(_here, "thread", None)
    if thread is None:
        return
    life = thread.life
    life.interrupt()
    if ctrl_c and life.ctrl_c and thread is life.threads[0] and not life.dead and life.dice.random() < life.ctrl_c:
        raise KeyboardInterrupt


class RLock:
    """A stand-in for threading.RLock. No thread stands still while it has one, but one that is killed there."""

    def __init__(self) -> None:
        self._owner: object = None
        self._count = 0

    def _me(self) -> object:
        return getattr(_here, "thread", "trio")

    def _is_owned(self) -> bool:
        return self._owner is self._me()

    def __enter__(self) -> None:
        if not self._is_owned():
            _breathe()
            if self._owner is not None:  # its owner was killed
                raise Killed("there is nobody to let go of the lock")
            self._owner = self._me()
        self._count += 1
        _interrupt()

    def __exit__(self, *_: object) -> None:
        _interrupt()
        self._count -= 1
        if not self._count:
            self._owner = None
            _breathe()

    def release_all(self) -> int:
        count, self._count, self._owner = self._count, 0, None
        return count

    def acquire_all(self, count: int) -> None:
        if self._owner is not None:
            raise Killed("there is nobody to let go of the lock")
        self._owner, self._count = self._me(), count


class Condition:
    """A stand-in for threading.Condition."""

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self._notified = 0

    def notify_all(self) -> None:
        self._notified += 1

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> object:
        until = None if timeout is None else clock.monotonic() + timeout
        while not (result := predicate()):
            left = None if until is None else until - clock.monotonic()
            if left is not None and left <= 0:
                break
            self._wait(left)
        return result

    def _wait(self, timeout: float | None) -> None:
        seen, count = self._notified, self._lock.release_all()
        try:
            wait(lambda: self._notified != seen, timeout)
        finally:
            self._lock.acquire_all(count)


class SimpleQueue:
    """A stand-in for queue.SimpleQueue."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)

    def get(self, timeout: float | None = None) -> Any:
        if not wait(lambda: self._items, timeout):
            raise queue.Empty
        return self._items.popleft()

    def qsize(self) -> int:
        return len(self._items)


# --- the disk ---------------------------------------------------------------------------------------------------------


def _at_disk(write: Callable[[], object] | None = None) -> None:
    """A step on disk: the process may be killed before it, in the middle of it (`write` does half of it) or after it."""
    life = current().life
    if life.dead or not life.disk_steps:
        return
    life.disk_steps -= 1
    if not life.disk_steps:
        if write is not None and life.dice.random() < 0.5:
            write()
        ask(life.site.die)


class _Os:
    """`os` for the files of a spool: with one number for all processes, which is written into the files."""

    getpid = staticmethod(lambda: 4711)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, *args: Any) -> int:
        _at_disk()
        fd = os.open(*args)
        current().life.files.add(fd)
        _at_disk()
        return fd

    def close(self, fd: int) -> None:
        files = current().life.files
        if fd in files:  # else the killed one's, closed with it
            files.remove(fd)
            os.close(fd)


def _write(fd: int, data: bytes, size: int) -> int:
    _at_disk(lambda: os.write(fd, data[: size // 2]))
    _interrupt(ctrl_c=True)
    written = os.write(fd, data)
    _interrupt(ctrl_c=True)
    return written


def _discard(path: Any) -> None:
    _at_disk()
    spoolfile_discard(path)
    _at_disk()


spoolfile_discard = spoolfile.discard


@contextmanager
def lockstep() -> Iterator[None]:
    """Whatever Producers start inside this block runs in step."""
    threads = SimpleNamespace(
        Thread=Thread, RLock=RLock, Condition=Condition, current_thread=current, get_ident=threading.get_ident
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (sender, buffer):
            patch.setattr(module, "threading", threads)
        patch.setattr(sender, "queue", SimpleNamespace(SimpleQueue=SimpleQueue, Empty=queue.Empty))
        patch.setattr(sender, "process", SimpleNamespace(watch=lambda _: None, hook_exit=lambda: None))
        for files in (spoolfile, spoolfolder):
            patch.setattr(files, "os", _Os())
        for where in (spoolfile, spoolfolder, spooled):
            patch.setattr(where, "discard", _discard)
        patch.setattr(spoolfile, "_raw_write", _write)
        yield
