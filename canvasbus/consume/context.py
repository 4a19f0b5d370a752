"""What a handler may know and do besides its event."""

from typing import Any

from canvasbus.consume.delivery import Delivery
from canvasbus.wire.envelope import Envelope


class Context:
    """The second argument of a handler."""

    __slots__ = ("_delivery", "_group", "resources")

    def __init__(self, delivery: Delivery, group: str, resources: Any = None) -> None:
        self._delivery = delivery
        self._group = group
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
        """The consumer group: the worker's name."""
        return self._group

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
