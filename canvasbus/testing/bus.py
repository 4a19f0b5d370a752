"""TestBus: workers, a bus and a server in one process and in virtual time, for the tests of those who write handlers.

Theory of operation. Each worker has an EventBus of its own, as a process would, and behind it a FaultyServer of its
own, so that one can be cut off or die while the others go on; publishing has another. All of them meet on one server
in memory. What a test asks about is read from that server, past all simulated trouble, and from a notebook that every
handler run is written into.

`settle` knows that work is left by what the server says is unread or unacknowledged, not by what workers say of
themselves: a crashed one says nothing.
"""

import difflib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar, get_args, overload
from uuid import UUID

import trio

from canvasbus import clock
from canvasbus.bus import EventBus
from canvasbus.checks import check_number
from canvasbus.consume.handlers import Worker
from canvasbus.consume.runner import WorkerStatistics
from canvasbus.contract.bus_events import BusLoss
from canvasbus.contract.event import Event
from canvasbus.contract.registry import registry
from canvasbus.errors import ConfigError, ContractError
from canvasbus.testing import unsettled
from canvasbus.testing.faults import Fault, How, What
from canvasbus.testing.observed import Attempt, Notebook
from canvasbus.testing.process import Process
from canvasbus.testing.seen import DeadLetter, Eyes, Published
from canvasbus.testing.unsettled import NotSettled
from canvasbus.testing.virtual import VirtualTime, real_limit
from canvasbus.wire.keys import Keys
from canvasbus.wire.retention import Retention

E = TypeVar("E", bound=Event)

_KEEP_ALL = Retention(max_age=None, max_length=None)

_WAKE = 1.0
"""Seconds before something is due in which everybody may notice that time has passed."""

_numbers = itertools.count(1)


class TestBus:
    """Workers on a server in memory, in virtual time: a test publishes, settles, and looks at what came of it.

        @in_virtual_time
        async def test_a_bad_picture_is_told():
            async with TestBus(worker) as bus:
                await bus.publish(PictureScored(model_name="m", aesthetic=0.3))
                await bus.settle()
            (told,) = bus.published(TasteDropped)
            assert told.cause.event.aesthetic == 0.3

    Use it as an async context manager on trio's MockClock (see `in_virtual_time`; pytest-trio's `autojump_clock` and
    `mock_clock` do too). Nothing waits in real time, except for plain handlers, which run in threads: while one runs,
    virtual time stands still. What lies on the bus can be looked at after the block too. A handler that hangs where nobody
    can end it (behind a shield, in a thread) keeps the block from ending, as it keeps a worker.

    What a handler raises, a failed `assert` too, ends in the dead letters and not in the test, as it would in production:
    where none is meant, `assert not bus.dead_letters()`.

    `workers` are run as copies and stay untouched; each has a name of its own. `url` names the server in memory, for
    code under test that makes its own `Producer` or `EventBus` (default: a new one, see the attribute `url`).
    `start` is the wall time at the beginning (default: now). `options` are those of EventBus; without a
    `retention` everything is kept.

    Raises ContractError outside of virtual time, and AssertionError at the end of a block in which an ordered fault
    (`fail_next`) has never happened.
    """

    __test__: ClassVar[bool] = False  # pytest: this is no class of tests

    def __init__(
        self,
        *workers: Worker,
        url: str | None = None,
        namespace: str = "canvasbus",
        partitions: int = 1,
        start: datetime | None = None,
        **options: Any,
    ) -> None:
        from canvasbus.transport import memory  # fakeredis is an extra, and the servers in `server` do not need it

        for worker in workers:
            if not isinstance(worker, Worker):
                shown = worker.__name__ if isinstance(worker, type) else repr(worker)
                raise ContractError(f"TestBus runs workers, not {shown}: TestBus(worker); events go to bus.publish")
        names = Counter(worker.name for worker in workers)
        if names and max(names.values()) > 1:
            raise ContractError(f"several workers are named {names.most_common(1)[0][0]!r}: each is a group of its own")
        self._fresh = url is None
        self.url = url or f"memory://testbus-{next(_numbers)}"
        """The address of the server in memory; a `Producer` in a thread reaches it too."""
        self._name = self.url.removeprefix("memory://")
        if self._name in ("", self.url):
            raise ConfigError(f"TestBus lives on memory://NAME, not on {self.url}")
        self._server = memory.named(self._name)
        self._forget = memory.forget
        self._start = start
        bus_options = {"grace": 0.001, "connect_timeout": math.inf, "retention": _KEEP_ALL, **options}
        bus_options |= {"namespace": namespace, "partitions": partitions}
        self._eyes = Eyes(self._server, [Keys(namespace, partition) for partition in range(partitions)])
        self._notebook = Notebook()
        self._faults: list[Fault] = []
        self._everybody = [
            Process(worker, self.url, self._server, self._faults, bus_options)
            for worker in (None, *map(self._notebook.observe, workers))
        ]
        self._publishing = 0
        self._away = 0
        self._nursery: trio.Nursery | None = None
        self._over = False

    # --- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._nursery is not None:
            raise ContractError("a TestBus lives once: make a new one for another `async with`")
        self._time = VirtualTime.of_this_run()
        async with AsyncExitStack() as stack:
            stack.enter_context(self._time.in_force(self._start, self._idle_for))
            self._manager = trio.open_nursery()
            self._nursery = nursery = await self._manager.__aenter__()
            stack.push_async_exit(self._close_nursery)
            nursery.start_soon(self._time.run)
            with self._time.moving():
                for process in self._everybody:
                    try:
                        await nursery.start(process.run, nursery)
                    except BaseExceptionGroup as group:  # each EventBus has a nursery
                        raise _alone(group) from None
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._over = True
        never = [fault for fault in self._faults if fault.times > 0]
        self._faults.clear()
        self._server.set_connected(True)
        try:
            if error is None:
                with self._time.moving(despite_threads=True):
                    for process in reversed(self._everybody):
                        process.stop.set()
                        await process.ended.wait()
        except BaseException as failure:
            kind, error, trace = type(failure), failure, failure.__traceback__
            raise
        finally:
            if self._fresh:
                self._forget(self._name)
            await self._stack.__aexit__(kind, error, trace)
        if error is None and never:
            raise AssertionError(f"ordered by fail_next(), and never happened: {', '.join(map(str, never))}")
        return None

    async def _close_nursery(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """The block's own errors pass as they are; what comes out of the nursery is what went wrong in the bus."""
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        try:
            if isinstance(error, trio.Cancelled):
                return await self._manager.__aexit__(kind, error, trace)
            await self._manager.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            raise _alone(group) from None
        return None

    def _check_inside(self) -> trio.Nursery:
        if self._nursery is None or self._over:
            raise ContractError("time passes, and trouble comes, inside the block: `async with TestBus(...) as bus:`")
        return self._nursery

    def _process(self, worker: Worker | str) -> Process:
        name = _name(worker)
        for process in self._everybody:
            if process.worker is not None and process.name == name:
                return process
        raise self._unknown(name)

    def _unknown(self, name: str, others: Iterable[str] = ()) -> ContractError:
        known = sorted({*self._names, *others})
        there = f"there are {', '.join(known)}" if known else "there is none"
        near = difflib.get_close_matches(name, known, n=1)
        return ContractError(f"no worker {name!r} on {self.url}; {f'did you mean {near[0]}? ' if near else ''}{there}")

    @property
    def _names(self) -> list[str]:
        return [process.name for process in self._everybody if process.name is not None]

    # --- publishing ----------------------------------------------------------------------------------------------

    async def publish(self, event: Event, **options: Any) -> str:
        """Publish and return the entry id, as `EventBus.publish` does, with its options. While trouble is simulated, time
        passes."""
        with self._outside() as bus:
            return await bus.publish(event, **options) or ""

    async def publish_many(self, events: Iterable[Event], **options: Any) -> list[str]:
        """Publish in order and return the entry ids, as `EventBus.publish_many` does, with its options."""
        with self._outside() as bus:
            return await bus.publish_many(events, **options)

    @contextmanager
    def _outside(self) -> Iterator[EventBus]:
        bus = self._everybody[0].bus
        if bus is None:
            raise ContractError("publish inside the block: `async with TestBus(...) as bus:`")
        self._publishing += 1
        try:
            with self._time.moving():
                yield bus
        finally:
            self._publishing -= 1

    # --- time ----------------------------------------------------------------------------------------------------

    async def settle(self, *, horizon: float = 60.0, limit: float = 3600.0, real_seconds: float = 30.0) -> None:
        """Return when everything that was published has been handled to its end: retries and backoffs, the events that
        handlers return, those that follow from them, and timers that are due within `horizon` seconds of virtual time
        from now. Time jumps to wherever something is due.

        Raises NotSettled, with a list of what is left, when that takes more than `limit` seconds of virtual time (a
        handler that raises RetryLater for ever, say), or more than `real_seconds` of real time (events that cause each
        other without end, or a plain function that does not return; `math.inf` while you debug).
        """
        check_number("horizon", horizon, error=ContractError)
        check_number("limit", limit, error=ContractError)
        check_number("real_seconds", real_seconds, error=ContractError)
        self._check_inside()
        begun, until = trio.current_time(), clock.time() + horizon
        before = unsettled.counts(self._eyes)
        with self._time.by_hand(), real_limit(real_seconds) as scope:
            while True:
                await self._time.rest()
                if not self._busy() and not self._eyes.timers(until):
                    return
                left = begun + max(limit, horizon) - trio.current_time()
                if left <= 0:
                    break
                self._time.move(left)
        passed = trio.current_time() - begun
        took = f"{real_seconds:g} s of real time" if scope.cancelled_caught else f"{passed:g} s of virtual time"
        lines = [*self._left(), *unsettled.timers(self._eyes.timers(until)), *unsettled.circle(before, self._eyes)]
        raise NotSettled("\n".join([f"after {took} this is left to do:", *lines]))

    async def advance(self, seconds: float) -> None:
        """Let `seconds` of virtual time pass, and all that is due in them happen; return when nothing more is."""
        check_number("seconds", seconds, least=0, error=ContractError)
        self._check_inside()
        until = trio.current_time() + seconds
        with self._time.by_hand():
            while True:
                await self._time.rest()
                left = until - trio.current_time()
                if left <= 0:
                    return
                self._time.move(left)

    def _busy(self) -> bool:
        """Something is to be done, now or after a wait."""
        if self._engaged() or any(s.waiting for s in self._statistics()):
            return True
        return bool(self._eyes.unfinished(self._groups()))

    def _engaged(self) -> bool:
        """Something moves now, as far as this process knows."""
        if self._publishing or self._away or not all(process.ready for process in self._everybody):
            return True
        if any(process.bus.publisher_statistics().waiting_bytes for process in self._everybody if process.bus):
            return True
        return any(s.running or s.held for s in self._statistics())

    def _idle_for(self) -> float:
        """For how many seconds there is nothing to do but to wait."""
        if self._engaged():
            return 0.0
        statistics = self._statistics()
        consumers = {s.consumer for s in statistics}
        left = self._eyes.unfinished(self._groups())
        if len(left) != sum(s.waiting for s in statistics) or any(one.owner not in consumers for one in left):
            return 0.0
        first_retry = min((s.next_retry for s in statistics), default=math.inf) - trio.current_time()
        timers = self._eyes.timers()
        return min(first_retry, timers[0][0] - clock.time() if timers else math.inf) - _WAKE

    def _statistics(self) -> list[WorkerStatistics]:
        return [process.statistics for process in self._everybody if process.statistics is not None]

    def _groups(self) -> dict[str, Worker]:
        """The workers that are there, by the names that their groups have now."""
        return {
            process.statistics.group: process.worker
            for process in self._everybody
            if process.worker is not None and process.statistics is not None
        }

    def _left(self) -> list[str]:
        """What is to be done, line by line."""
        lines = ["  the server is away (outage)"] if self._away else []
        lines += [f"  {process.name}: is starting" for process in self._everybody if not process.ready]
        calls = "call of publish waits" if self._publishing == 1 else "calls of publish wait"
        lines += [f"  {self._publishing} {calls}"] if self._publishing else []
        return lines + unsettled.entries(self._eyes.unfinished(self._groups()), self._eyes, self._notebook)

    # --- trouble -------------------------------------------------------------------------------------------------

    def fail_next(self, what: What, how: How = "lost_reply", *, group: str | None = None, times: int = 1) -> None:
        """Order trouble with the server.

        `what`: the next "publish" (of this bus), "read" (a worker gets entries) or "commit" (a worker acknowledges, and
        adds the events that its handler returned). `how`: the request reaches the server and the answer is lost
        ("lost_reply"), the request is lost ("lost_request"), or the worker's process dies before it can send it
        ("crash"), and a new one starts. `group`: only this worker's; `times`: how often in a row.

        After fail_next("commit", "crash") a handler has run and nobody knows: the event runs again, in the new process,
        once the death has been noticed. What a handler did to the outside, it does twice: it should be idempotent,
        with `ctx.envelope.id` as its key. Lost requests and replies are the bus's business; handlers do not see them.
        """
        for given, name, words in ((what, "what", get_args(What)), (how, "how", get_args(How))):
            if given not in words:
                raise ContractError(f"fail_next: {name} is one of {', '.join(map(repr, words))}, not {given!r}")
        if times < 1:
            raise ContractError(f"fail_next: times={times}: at least 1")
        if what == "publish" and (how == "crash" or group is not None):
            raise ContractError("publishing is the test's own: only its requests and replies can be lost")
        if group is not None:
            self._process(group)
        self._faults.append(Fault(what, how, group, times))

    async def crash(self, worker: Worker | str) -> None:
        """The worker's process dies now, with whatever it has in hand, and a new one starts."""
        process = self._process(worker)
        self._check_inside()
        with self._time.moving():
            await process.crash()

    def outage(self, seconds: float) -> None:
        """The server is away for the next `seconds` of virtual time, for everybody; its data stays."""
        check_number("seconds", seconds, least=0, error=ContractError)
        nursery = self._check_inside()
        self._away += 1
        self._server.set_connected(False)
        nursery.start_soon(self._come_back, trio.current_time() + seconds)

    async def _come_back(self, at: float) -> None:
        await trio.sleep_until(at)
        self._away -= 1
        if not self._away:
            self._server.set_connected(True)

    def redrive(self, worker: Worker | str) -> int:
        """Give what a worker gave up back to it, as `canvasbus dlq redrive` does; returns how many events that are."""
        self._process(worker)
        return sum(self._eyes.redrive(group) for group in self._groups() if group.partition("@")[0] == _name(worker))

    # --- looking -------------------------------------------------------------------------------------------------

    @overload
    def published(self, what: type[E]) -> list[Published[E]]: ...

    @overload
    def published(self, what: str | None = None) -> list[Published[Any]]: ...

    def published(self, what: type[Event] | str | None = None) -> list[Published[Any]]:
        """The valid events of one type, by class or name, in the order of their stream, whoever published them; each
        knows its `cause`. Without a type: all, by entry id, and within a millisecond causes before what they caused.
        Raises ContractError for a name that no event has."""
        if not (what is None or isinstance(what, str) or (isinstance(what, type) and issubclass(what, Event))):
            raise ContractError(f"published({what!r}): an event class or the name of a type is wanted")
        name = what if isinstance(what, str) or what is None else registry.of(what).name
        everything = self._eyes.published()
        found = [one for one in everything if name in (None, one.envelope.type)]
        if name is not None and not found and name not in (known := registry.names()):
            near = difflib.get_close_matches(name, known, n=1)
            raise ContractError(f"no event type {name!r} is declared{f'; did you mean {near[0]}?' if near else ''}")
        return found

    def dead_letters(self, group: str | None = None) -> list[DeadLetter]:
        """What a worker (None: any) gave up, oldest first. Raises ContractError for a name that nobody has."""
        found = self._eyes.dead_letters(group)
        if group is not None and not found and group not in self._names:
            raise self._unknown(group, (letter.group.partition("@")[0] for letter in self._eyes.dead_letters(None)))
        return found

    def attempts(
        self, event: Event | Published[Any] | UUID | None = None, *, group: str | None = None
    ) -> list[Attempt]:
        """The runs of handlers that have ended, in the order in which they did. `event`: only its runs; an Event means
        all that are equal to it. Raises ContractError for a group that is no worker here."""
        if group is not None and group.partition("@")[0] not in self._names:
            raise self._unknown(group)
        if not isinstance(event, Event | Published | UUID | None):
            raise ContractError(f"attempts({event!r}): an event, what `published` gave, or an id is wanted")
        if isinstance(event, Published):
            event = event.id
        return [
            attempt
            for attempt in self._notebook.attempts
            if (group is None or attempt.group == group)
            and (event is None or (attempt.envelope.id if isinstance(event, UUID) else attempt.event) == event)
        ]

    @property
    def losses(self) -> list[BusLoss]:
        """Every `bus.loss` so far."""
        return [one.event for one in self.published(BusLoss)]

    def statistics(self) -> dict[str, WorkerStatistics]:
        """One record for each worker, by name. A worker that crashed counts from 0 again."""
        return {s.group.partition("@")[0]: s for s in self._statistics()}

    def __repr__(self) -> str:
        return f"<TestBus {self.url} {self._names}>"


def _name(worker: Worker | str) -> str:
    return worker.name if isinstance(worker, Worker) else worker


def _alone(error: BaseException) -> BaseException:
    """What is inside of a group of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
