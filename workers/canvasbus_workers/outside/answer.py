"""What answers have in common: when to come again, and what of their text is told. Pure."""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from canvasbus_workers.outside.secret import repeats

SHOWN = 200
"""Characters of an answer that are told."""


def retry_after(text: str, now: datetime) -> float | None:
    """Seconds to wait by a header Retry-After: a number of seconds or an HTTP date; may be negative. None: it says nothing."""
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        return seconds if math.isfinite(seconds) else None
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - now).total_seconds()


def shown(body: bytes, *secrets: str) -> str:
    """What of a body is told: its beginning in one line, where it is text and repeats no secret."""
    text = body.decode("utf-8", "replace").strip()
    if repeats(text, *secrets):
        return "its text repeats a secret and is not shown"
    if "\ufffd" in text:
        return ""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
