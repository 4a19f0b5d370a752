"""Which handler ran with which event, how often, and how that ended."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from canvasbus.consume.context import Context
from canvasbus.consume.handlers import Worker
from canvasbus.consume.middleware import Handle, Middleware
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
        observed.handlers = list(worker.handlers)
        observed.middleware = [*worker.middleware, self._middleware(worker)]
        return observed

    def _middleware(self, worker: Worker) -> Middleware:
        """The innermost of all: what it sees is the handler itself."""
        timeouts = {handler.name: handler.timeout for handler in worker.handlers}

        def middleware(handle: Handle) -> Handle:
            async def run(event: Any, ctx: Any) -> Any:
                events, contexts = (event, ctx) if isinstance(ctx, list) else ([event], [ctx])
                name = contexts[0].handler
                with self._written_down(worker.name, name, timeouts[name], events, contexts):
                    result = await handle(event, ctx)
                    return list(result) if isinstance(result, Iterator) else result  # its body is part of the run

            return run

        return middleware

    @contextmanager
    def _written_down(
        self, group: str, handler: str, timeout: float, events: Sequence[Event], contexts: Sequence[Context]
    ) -> Iterator[None]:
        started = trio.current_time()
        run = Run(group, handler, tuple((c.envelope.type, c.entry_id) for c in contexts), started)
        self.running.add(run)
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.running.discard(run)
            seconds = trio.current_time() - started
            if isinstance(error, trio.Cancelled) and seconds >= timeout:
                error = HandlerTimeout(f"{handler} ran longer than its timeout of {timeout:g} s")
            self.attempts += [
                Attempt(group, handler, event, c.envelope, c.entry_id, c.attempt, started, seconds, error)
                for event, c in zip(events, contexts, strict=True)
            ]
