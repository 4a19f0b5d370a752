"""What a handler may know and do besides its event."""

from math import isfinite
from numbers import Real
from typing import Any, TypeVar

from canvasbus import clock
from canvasbus.consume.delivery import Delivery
from canvasbus.consume.state import Parts, Run, State
from canvasbus.errors import ContractError
from canvasbus.wire.envelope import Envelope
from canvasbus.wire.traceparent import sound

T = TypeVar("T")


class Context:
    """The second argument of a handler."""

    __slots__ = ("_delivery", "_group", "_number", "_ran", "resources")

    def __init__(self, delivery: Delivery, group: str, resources: Any = None) -> None:
        self._delivery = delivery
        self._number = delivery.runs
        self._group = group
        self._ran: Run | None = None
        self.resources: Any = resources
        """What the worker's `@worker.lifespan` yielded in this process; None: nothing, or it has none."""

    @property
    def envelope(self) -> Envelope:
        """The bus's own data: id (the idempotency key for calls to the outside), type, version, source, key, causation."""
        assert self._delivery.envelope is not None
        return self._delivery.envelope

    @property
    def attempt(self) -> int:
        """1 on the first run, one more after each failure."""
        return self._delivery.failures + 1

    @property
    def entry_id(self) -> str:
        """The entry's id on its stream."""
        return self._delivery.entry_id.decode()

    @property
    def group(self) -> str:
        """The consumer group: the worker's name, with PER_INSTANCE followed by @ and a name of this process."""
        return self._group

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context that what follows from the event carries, and that calls to the outside should take along:
        that of the event, or of the span that `trace()` made; None: nobody traces. Set by middleware that makes spans."""
        return self._delivery.traceparent

    @traceparent.setter
    def traceparent(self, value: str | None) -> None:
        self._delivery.span = sound(value)

    async def state(self, key: str, type: type[T], *, default: T | None = None, ttl: float | None = None) -> State[T]:
        """Load a value that the group keeps under `key`; what the handler makes of `state.value` is committed with its
        acknowledgement.

        `type`: anything msgspec can encode, decoded as that; a copy of `default`, else `type()`, where there is none
        yet. `ttl`: seconds after the last change after which it is gone. Kept in the partition of the event. In one
        process the runs that use a key wait for each other from here to their end, which is no part of their timeouts;
        when another process was faster, the handler runs again, and no attempt is counted. From a plain function:
        `trio.from_thread.run`.

        Raises ContractError when what is stored is no `type`, and RetryLater while the server is away or refuses, or others
        keep the key for too long: passed on, it lets the event run again and costs no attempt.
        """
        return await self._run().state(key, type, default, ttl)

    def parts(self, key: str, type: type[T], *, ttl: float | None = None) -> Parts[T]:
        """Values that many workers of the group put under one key, each under an id of its own: `put(part_id, value)`
        and `remove(part_id)` are committed with the acknowledgement, never conflict, and do nothing when done twice;
        `await parts.items()` reads all. `ttl`: seconds after the last change after which all of them are gone."""
        return self._run().parts(key, type, ttl)

    def _run(self) -> Run:
        delivery = self._delivery
        if delivery.topic.lane.handler.batch is not None:
            raise ContractError("ctx.state and ctx.parts are for handlers of single events: use on() for this one")
        if self._ran is None:
            topic = delivery.topic
            self._ran = delivery.run = Run(topic.settler.states, topic.lane.handler.timeout)
            if delivery in topic.lane.watchdog.late:
                self._ran.late()
        return self._ran

    def extend(self, seconds: float) -> None:
        """Let this run go on for `seconds` from now, where its timeout would end it sooner. May be called again, from any
        thread. It lengthens and never shortens; the next attempt begins with the handler's own timeout again.

        While it holds, a handler that blocks the loop may do so, too, without being taken for stuck (see `max_block`).
        Raises ValueError for what is no positive number of seconds.
        """
        if not (isinstance(seconds, Real) and isfinite(seconds) and seconds > 0):
            raise ValueError(f"ctx.extend({seconds!r}): a positive number of seconds is wanted")
        delivery = self._delivery
        if delivery.runs == self._number:  # else something that an earlier run has left behind
            delivery.extended = max(delivery.extended, clock.monotonic() + seconds)

    @property
    def handler(self) -> str:
        """The handler's qualified name."""
        return self._delivery.topic.lane.handler.name

    @property
    def log(self) -> Any:
        """A structlog logger with event_id, event_type, group and attempt bound. Do not bind a key named `event`."""
        import structlog

        envelope = self.envelope
        return structlog.get_logger("canvasbus.handler").bind(
            event_id=str(envelope.id), event_type=envelope.type, group=self.group, attempt=self.attempt
        )

    def __repr__(self) -> str:
        return f"<Context {self._delivery!r} of {self.group}>"
