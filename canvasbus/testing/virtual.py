"""Virtual time: trio's MockClock for tasks, for the bus and for the server in memory alike, moved only at rest.

Theory of operation. trio's own autojump moves the clock as soon as all tasks wait, and a task that waits for a thread
waits too: a plain handler that computes for a millisecond would meet minutes of virtual time. So for as long as a test
bus lives it moves the clock itself, by the same rule with one more condition: time stands still while a thread started
by `trio.to_thread` runs. A clock that was set to autojump goes on doing so, by that rule.

Every move goes to the next deadline of any task and not past it, so that heartbeats, timeouts and backoffs happen in
their order. That is a dozen moves for each second and worker: a day would take minutes. So when no bus has anything to
do, time leaps to shortly before the next timer, or before the first deadline of a task that is not of the bus itself.
To the workers it is as if the machine had been asleep.
"""

import functools
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import ClassVar, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import trio
import trio.testing
from trio.testing import MockClock

from canvasbus import clock
from canvasbus.errors import ContractError

_NOTHING_DUE = 0.005
"""Seconds of real time between two looks while no task has a deadline: something from outside must come."""

_LEAP = 10.0
"""Seconds that are worth a leap."""

P = ParamSpec("P")
R = TypeVar("R")


def in_virtual_time(function: Callable[P, Awaitable[R]]) -> Callable[P, R]:
    """Decorator: make an async function an ordinary one that runs in a trio of its own, on a MockClock.

    For tests without pytest-trio, and outside of pytest. Arguments are passed on, so pytest fixtures work. The clock
    moves while all tasks wait.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        return trio.run(functools.partial(function, *args, **kwargs), clock=MockClock(autojump_threshold=0))

    return run


class VirtualClock:
    """canvasbus' time as a MockClock tells it: `monotonic` is trio's, the wall clock began at `start`."""

    def __init__(self, mock: MockClock, start: datetime) -> None:
        self._mock = mock
        self._begun = mock.current_time()
        self._start_us = round(start.timestamp() * 1e6)

    def time_ns(self) -> int:
        return (self._start_us + round((self._mock.current_time() - self._begun) * 1e6)) * 1000

    def monotonic(self) -> float:
        return self._mock.current_time()


class VirtualTime:
    """The time of all test buses of one trio run. Use `VirtualTime.of_this_run`."""

    _all: ClassVar[WeakKeyDictionary[MockClock, "VirtualTime"]] = WeakKeyDictionary()

    def __init__(self, mock: MockClock) -> None:
        self._mock = mock
        self._threshold = math.inf
        self._sleepers: list[Callable[[], float]] = []
        self._movers = 0
        self._by_hand = False
        self._despite_threads = 0
        self._waits_for_threads: set[trio.CancelScope] = set()
        self._changed = trio.Event()
        self._driver = trio.Lock()

    @classmethod
    def of_this_run(cls) -> "VirtualTime":
        """The one that belongs to the clock of this trio run. Raises ContractError when that is no MockClock."""
        mock = trio.lowlevel.current_clock() if trio.lowlevel.in_trio_task() else None
        if not isinstance(mock, MockClock):
            raise ContractError(
                "TestBus lives in trio and in virtual time: decorate the test with canvasbus.testing.in_virtual_time, or take "
                "pytest-trio's fixture autojump_clock, or trio.run(..., clock=trio.testing.MockClock())"
            )
        if mock not in cls._all:
            cls._all[mock] = cls(mock)
        return cls._all[mock]

    @contextmanager
    def in_force(self, start: datetime | None, idle_for: Callable[[], float]) -> Iterator[None]:
        """Inside the block all of canvasbus has this time. Other buses of the same run join in. `idle_for` tells for how
        many seconds from now the bus has nothing to do."""
        if not self._sleepers:
            self._threshold, self._mock.autojump_threshold = self._mock.autojump_threshold, math.inf
            self._using = clock.using(VirtualClock(self._mock, start or datetime.now(UTC)))
            self._using.__enter__()
        self._sleepers.append(idle_for)
        try:
            yield
        finally:
            self._sleepers.remove(idle_for)
            if not self._sleepers:
                self._using.__exit__(None, None, None)
                self._mock.autojump_threshold = self._threshold

    # --- moving --------------------------------------------------------------------------------------------------

    async def rest(self) -> None:
        """Return when every other task waits and no thread runs."""
        cushion = 0.0 if self._threshold == math.inf else self._threshold
        while True:
            await trio.testing.wait_all_tasks_blocked(cushion)
            if not trio.testing.active_thread_count() or self._despite_threads:
                return
            with trio.CancelScope() as scope:
                self._waits_for_threads.add(scope)
                try:
                    await trio.testing.wait_all_threads_completed()
                finally:
                    self._waits_for_threads.discard(scope)

    def move(self, most: float) -> float:
        """Go to the next deadline of any task, or leap, at most `most` seconds from now. Call it at rest. Returns the
        seconds."""
        seconds = max(0.0, min(trio.lowlevel.current_statistics().seconds_to_next_deadline, most))
        if seconds < most and most > _LEAP:
            leap = min(most, _first_deadline_of_others() - trio.current_time())
            for idle_for in self._sleepers:
                leap = leap if leap <= _LEAP else min(leap, idle_for())
            if _LEAP < leap < math.inf:
                seconds = leap
        if seconds < math.inf:
            self._mock.jump(seconds)
        return seconds

    @contextmanager
    def by_hand(self) -> Iterator[None]:
        """Only the caller moves the clock in this block. Raises ContractError when another task does so already."""
        if self._by_hand:
            raise ContractError("settle() and advance() move the clock: call them from one task at a time")
        self._by_hand = True
        try:
            yield
        finally:
            self._by_hand = False
            self._tell()

    @contextmanager
    def moving(self, *, despite_threads: bool = False) -> Iterator[None]:
        """Time passes in this block while all tasks wait, as under autojump; `despite_threads`: threads may run."""
        self._movers += 1
        self._despite_threads += despite_threads
        if despite_threads:
            for scope in list(self._waits_for_threads):
                scope.cancel()
        self._tell()
        try:
            yield
        finally:
            self._movers -= 1
            self._despite_threads -= despite_threads

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Moves the clock where it moves by itself, until cancelled. Of several buses one does it."""
        async with self._driver:
            while True:
                if not self._moves_by_itself:
                    await self._changed.wait()
                    continue
                await self.rest()
                if self._moves_by_itself and self.move(math.inf) == math.inf:
                    await trio.testing.wait_all_tasks_blocked(_NOTHING_DUE)

    @property
    def _moves_by_itself(self) -> bool:
        return not self._by_hand and (self._movers > 0 or self._threshold < math.inf)


def _first_deadline_of_others() -> float:
    """The earliest deadline of a task that is not one of canvasbus' own. (trio tells a task's own deadline to that task
    only; where this private part of it is gone, every deadline counts, and there are no leaps.)"""
    first = math.inf
    root = trio.lowlevel.current_root_task()
    tasks = [] if root is None else [root]
    while tasks:
        task = tasks.pop()
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        if not task.name.startswith("canvasbus."):
            status = getattr(task, "_cancel_status", None)
            first = min(first, status.effective_deadline() if status is not None else -math.inf)
    return first


@contextmanager
def real_limit(seconds: float) -> Iterator[trio.CancelScope]:
    """A scope that is cancelled after so many seconds of real time; `math.inf`: never."""
    with trio.CancelScope() as scope:
        if seconds == math.inf:
            yield scope
            return
        token = trio.lowlevel.current_trio_token()

        def cancel() -> None:
            try:
                token.run_sync_soon(scope.cancel)
            except trio.RunFinishedError:
                pass

        timer = threading.Timer(seconds, cancel)
        timer.daemon = True
        timer.start()
        try:
            yield scope
        finally:
            timer.cancel()
