"""Times as people write them on a command line: 10m, 2026-01-31T23:59:00Z, or an entry id."""

import re
from datetime import datetime

from canvasbus import clock
from canvasbus.cli.output import short
from canvasbus.errors import ConfigError

_ENTRY_ID = re.compile("[0-9]+(-[0-9]+)?")
_AGO = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""Seconds."""


def start_of(text: str, option: str = "--from") -> str:
    """A place in a stream as the entry id to begin with. Raises ConfigError that names the option."""
    if _ENTRY_ID.fullmatch(text):
        if any(part.lstrip("0")[20:] or int(part[-20:]) >= 2**64 for part in text.split("-")):
            raise ConfigError(f"{option} {short(text, 50)}: the parts of an entry id are numbers below 2^64")
        return text
    ago = _AGO.fullmatch(text)
    if ago:
        since = clock.time() - float(ago[1]) * UNITS[ago[2]]
        return str(int(since * 1000)) if since > 0 else "0"
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text}: give 0, an entry id (1700000000000-0), a time (2026-01-31T23:59:00Z) or how long ago (10m)"
        ) from None
    if when.tzinfo is None:
        raise ConfigError(
            f"{option} {text}: a time needs its zone, like {when.isoformat()}Z or {when.isoformat()}+01:00"
        )
    return str(max(0, int(when.timestamp() * 1000)))


def seconds_of(text: str, option: str) -> float:
    """A length of time. Raises ConfigError that names the option."""
    length = _AGO.fullmatch(text.strip().lower())
    seconds = float(length[1]) * UNITS[length[2]] if length else 0.0
    if not 0 < seconds <= 10 * 366 * 86400:
        raise ConfigError(
            f"{option} {short(text, 50)}: give a length of time of up to ten years, like 90s, 30m, 2h, 1d or 2w"
        )
    return seconds
