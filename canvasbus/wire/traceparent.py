"""W3C trace context (https://www.w3.org/TR/trace-context/): which trace an event belongs to, as its envelope says it.

A root event carries what is in force where it is published; what follows from an event carries what that one had, or the
span of the run that made it (`ctx.traceparent`). Nothing but the bus is needed for that: a program between two that trace
hands the context on although it has no tracing of its own.

What is no `traceparent` counts as none, as the standard wants it: it comes from strangers (the headers of a request, JSON
from another language), and a trace that is torn is no reason to fail. So it is looked at where it is handed on, and an
envelope shows what was published, whatever that is.

`tracestate`, the vendors' list beside it, is not carried: it may be left out without breaking the trace, and would be up
to 512 bytes more on every event of 200, for those few samplers that read it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from canvasbus.errors import ContractError

_IDS = "((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f]{2})"
_version_00 = re.compile(f"00-{_IDS}").fullmatch
_later_version = re.compile(f"(?!00|ff)[0-9a-f]{{2}}-{_IDS}(?:-.*)?", re.DOTALL).fullmatch

_in_force: ContextVar[str | None] = ContextVar("canvasbus_traceparent", default=None)

current = _in_force.get
"""What events carry that are published here; None: nothing."""
set_current = _in_force.set
"""Set that for what follows in this context (used per delivery; see `traceparent`). The text is a sound one, or None."""


@contextmanager
def traceparent(value: str | None) -> Iterator[str | None]:
    """Events published inside the block carry this W3C `traceparent`, like that of a request's headers. None, and what
    is none by the standard: they carry nothing. Yields what they carry.

    Raises ContractError for what is no text at all (the bytes of a raw header).
    """
    if not isinstance(value, str | None):
        raise ContractError(f"traceparent({value!r}): a text is wanted, not {type(value).__name__}")
    value = sound(value)
    token = _in_force.set(value)
    try:
        yield value
    finally:
        _in_force.reset(token)


def sound(value: str | None) -> str | None:
    """The text if it is a traceparent, else None. One of a version after 00 becomes what 00 knows of it."""
    if not value or _version_00(value):
        return value or None
    found = _later_version(value)
    return f"00-{found[1]}-{int(found[2], 16) & 1:02x}" if found else None
