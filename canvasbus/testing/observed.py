"""Which handler ran with which event, how often, and how that ended: a worker's handlers with a notebook around them."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import trio

from canvasbus import clock
from canvasbus.consume.context import Context
from canvasbus.consume.handlers import Handler, Worker
from canvasbus.consume.policy import HandlerTimeout
from canvasbus.contract.event import Event
from canvasbus.wire.envelope import Envelope


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of one handler with one event. A batch is an attempt for each of its events."""

    group: str
    """The worker's name."""
    handler: str
    """The handler's qualified name."""
    event: Event
    envelope: Envelope
    entry_id: str
    """The event's id on its stream."""
    number: int
    """`ctx.attempt` of this run: 1, and one more after each failure. A run that nobody heard of (its worker died, or
    handed the event back) does not count, so the same number may come twice."""
    started: float
    """Virtual time, in seconds on trio's clock."""
    seconds: float
    """How long it ran, in virtual seconds."""
    error: BaseException | None
    """What it raised; None: it returned."""


@dataclass(eq=False, slots=True)
class Run:
    """Something that runs now."""

    group: str
    handler: str
    entries: tuple[tuple[str, str], ...]
    """(event type, entry id) of its events."""
    started: float


class Notebook:
    """Everything that the observed handlers did."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.running: set[Run] = set()

    def observe(self, worker: Worker) -> Worker:
        """A copy of the worker whose handlers are written down. The worker itself stays as it is."""
        observed = copy.copy(worker)
        observed.handlers = [
            dataclasses.replace(handler, function=self._around(handler, worker.name), wants_context=True)
            for handler in worker.handlers
        ]
        return observed

    def _around(self, handler: Handler, group: str) -> Callable[..., Any]:
        function = handler.function
        wants_context = handler.wants_context

        if handler.is_async:

            async def observed(events: Any, contexts: Any) -> Any:
                with self._run(handler, group, events, contexts):
                    return _listed(await (function(events, contexts) if wants_context else function(events)))

            return observed

        def observed_plain(events: Any, contexts: Any) -> Any:
            with self._run(handler, group, events, contexts):
                return _listed(function(events, contexts) if wants_context else function(events))

        return observed_plain

    def _run(self, handler: Handler, group: str, events: Any, contexts: Any) -> "_Run":
        if handler.batch is None:
            events, contexts = [events], [contexts]
        return _Run(self, handler, group, events, contexts)


class _Run:
    """Writes one run down. Plain handlers use it in their threads; list and set appends are safe there."""

    def __init__(
        self, notebook: Notebook, handler: Handler, group: str, events: list[Event], contexts: list[Context]
    ) -> None:
        self._notebook = notebook
        self._handler = handler
        self._events = events
        self._contexts = contexts
        entries = tuple((context.envelope.type, context.entry_id) for context in contexts)
        self._run = Run(group, handler.name, entries, clock.monotonic())

    def __enter__(self) -> None:
        self._notebook.running.add(self._run)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        run = self._run
        self._notebook.running.discard(run)
        seconds = clock.monotonic() - run.started
        if isinstance(error, trio.Cancelled) and seconds >= self._handler.timeout:
            error = HandlerTimeout(f"{run.handler} ran longer than its timeout of {self._handler.timeout:g} s")
        self._notebook.attempts += [
            Attempt(run.group, run.handler, event, c.envelope, c.entry_id, c.attempt, run.started, seconds, error)
            for event, c in zip(self._events, self._contexts, strict=True)
        ]


def _listed(result: Any) -> Any:
    """The body of a generator is part of the run."""
    return list(result) if isinstance(result, Iterator) else result
