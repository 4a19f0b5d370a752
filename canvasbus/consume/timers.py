"""Durable timers: events that come later.

A handler returns `Later(event, ...)` and `Cancel(timer)`; both are committed with its acknowledgement. What is due is
published by whoever maintains the namespace (`consume.maintain`), in one step with its removal: once, however many
processes there are and whenever they die.
"""

from dataclasses import dataclass, field
from datetime import datetime

from canvasbus.checks import is_label
from canvasbus.contract.event import Event
from canvasbus.errors import ContractError
from canvasbus.wire import later


@dataclass(frozen=True, slots=True)
class Later:
    """Returned by a handler: publish `event` after so many seconds, or at a moment (an aware datetime).

    `timer` names it: a later one of the same name, in the same group and partition, replaces it, and `Cancel` removes
    it. It comes on time or up to a second late, counted from the moment of the commit on the server's clock; `at` is
    compared with the server's clock too. Raises ContractError for a time that is none.
    """

    event: Event
    after: float | None = field(default=None, kw_only=True)
    at: datetime | None = field(default=None, kw_only=True)
    timer: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.event, Event):
            raise ContractError(f"Later takes an Event, not {type(self.event).__qualname__}")
        later.due(self.after, self.at, f"Later({type(self.event).__name__})")
        if self.timer is not None:
            _check(self.timer)

    @property
    def due(self) -> str:
        """When, as it goes to the server."""
        return later.due(self.after, self.at, "Later")


@dataclass(frozen=True, slots=True)
class Cancel:
    """Returned by a handler: remove the timer of this name, if it has not come yet."""

    timer: str

    def __post_init__(self) -> None:
        _check(self.timer)


def _check(timer: str) -> None:
    if not is_label(timer):
        raise ContractError(f"timer={timer!r}: a timer's name has 1 to 500 characters (lone surrogates are none)")
