"""The door to CloudEvents 1.0: an event with its envelope as an object or as an HTTP request, and back.

    to_structured(ctx.envelope, event)      a dict for json.dumps, of the media type STRUCTURED_TYPE
    to_binary(ctx.envelope, event)          headers and body of a request in binary mode
    from_structured(body)                   an envelope and an event of the newest version
    from_binary(headers, body)              the same
    from_http(headers, body)                whichever of the two the request is

What comes in is anybody's: whatever is wrong with it is a DecodeError, whose `reason` says what kind it is. How attributes
and envelope correspond stands in `canvasbus.wire.cloudevents`; `canvasbus tail --json` and JSON entries on a stream are the
same objects.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from canvasbus.contract.event import Event
from canvasbus.errors import DecodeError
from canvasbus.wire.cloudevents import (
    STRUCTURED_TYPE,
    Attributes,
    read_headers,
    read_json,
    to_binary,
    to_structured,
)
from canvasbus.wire.codec import MAX_EVENT_BYTES, Codec
from canvasbus.wire.envelope import Envelope

__all__ = [
    "STRUCTURED_TYPE",
    "Envelope",
    "from_binary",
    "from_http",
    "from_structured",
    "to_binary",
    "to_structured",
]

_codec = Codec()


def from_structured(value: bytes | str | Mapping[str, Any]) -> tuple[Envelope, Event]:
    """Read a structured object, as JSON or already parsed. Raises DecodeError."""
    if isinstance(value, Mapping):
        try:
            value = msgspec.json.encode(dict(value))
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise DecodeError(f"not a CloudEvents object: {error}") from error
    _check_size(len(value))
    return _opened(read_json(value))


def from_binary(headers: Mapping[str, str], body: bytes) -> tuple[Envelope, Event]:
    """Read a request in binary mode; names of headers in whatever case. Raises DecodeError."""
    found = read_headers(headers, body)
    _check_size(len(body))
    return _opened(found)


def from_http(headers: Mapping[str, str], body: bytes) -> tuple[Envelope, Event]:
    """Read a request in the mode that its content type says. Raises DecodeError."""
    if not all(isinstance(text, str) for pair in headers.items() for text in pair):
        raise DecodeError("not a CloudEvent: the names and values of its headers are to be texts")
    kind = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    kind = kind.partition(";")[0].strip().lower()
    if kind == STRUCTURED_TYPE:
        return from_structured(body)
    if kind.startswith("application/cloudevents"):
        raise DecodeError(f"content type {kind!r} is not read here: send one event a request, as JSON")
    if not any(name.lower().startswith("ce-") for name in headers):
        raise DecodeError(
            f"not a CloudEvent: the request has no headers ce-..., and its content type {kind!r} is not {STRUCTURED_TYPE}"
        )
    return from_binary(headers, body)


def _opened(found: Attributes) -> tuple[Envelope, Event]:
    return _codec.decode_json(found.whole())


def _check_size(size: int) -> None:
    if size > MAX_EVENT_BYTES:
        raise DecodeError(f"{size:,} bytes, over the limit of {MAX_EVENT_BYTES:,}", reason="oversize")
