"""What the alerts worker knows about incidents, silences and destinations, as it lies on the server.

It is state of the group `alerts`, and the worker's own affair; the types here name what commands show of it and leave out
the rest. There is a desk in each partition that had signals; silences lie in all of them.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct, field

from canvasbus.consume.state import TOKEN
from canvasbus.errors import CanvasbusError
from canvasbus.transport.resp import Operation, check, command
from canvasbus.wire.keys import Keys

GROUP = "alerts"


class Matcher(Struct, frozen=True):
    """Patterns of a silence."""

    model_name: str = "*"
    severity: str = "*"
    signal: str = "*"


class Silence(Struct, frozen=True):
    """One that the worker has taken."""

    matcher: Matcher
    until: float
    """Seconds since 1970; 0: until somebody ends it."""
    author: str = ""
    comment: str = ""


class Case(Struct, frozen=True):
    """One incident."""

    model_name: str
    severity: str
    title: str
    signals: tuple[str, ...]
    since: datetime
    over: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)
    """By destination."""
    muted: Mapping[str, str] = field(default_factory=dict)
    """Destination → what is not told now, and why, as two words. Destination "": there is none."""


class Desk(Struct):
    """All of it."""

    cases: dict[str, Case] = field(default_factory=dict)
    silences: dict[str, Silence] = field(default_factory=dict)
    disabled: dict[str, float] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    suppressed: dict[str, dict[str, int]] = field(default_factory=dict)


def desk(partitions: Sequence[Keys]) -> Operation[Desk]:
    """What lies in all partitions, as one. Raises CanvasbusError for what another release has written."""
    whole = Desk()
    for keys in partitions:
        raw = check((yield command("GET", keys.state(GROUP, "desk")))[0], "look at the alerts worker's state")
        if raw:
            _add(whole, _decoded(raw[TOKEN:]))
    return whole


def _decoded(data: bytes) -> Desk:
    try:
        return msgspec.msgpack.decode(data, type=Desk)
    except msgspec.MsgspecError as error:
        raise CanvasbusError(f"the alerts worker's state is of another release than this command: {error}") from None


def _add(whole: Desk, one: Desk) -> None:
    whole.cases |= one.cases
    whole.silences |= one.silences
    for name, until in one.disabled.items():
        whole.disabled[name] = max(until, whole.disabled.get(name, 0.0))
    for name, count in one.told.items():
        whole.told[name] = whole.told.get(name, 0) + count
    for name, reasons in one.suppressed.items():
        sums = whole.suppressed.setdefault(name, {})
        for reason, count in reasons.items():
            sums[reason] = sums.get(reason, 0) + count
