"""Marks: what has been done with an event's id, kept for a while.

    once:<id>           a publisher stored the event; holds the entry id that it got (behind ~: in the inbox)
    done:<group>:<id>   a group handled the event to its effect; holds the id of the entry under which it did (behind ~: of
                        a redriven one, whose stream counts for itself)

The key by which a double is known is always the id of the event, nothing else. A `dedupe_key` only makes the id: uuid5 of
type and key, so the same key is the same event in every process and after every restart, for handlers too, who may keep
marks for longer than publishers. Two types with one key are two events. Of two events with one key the first one counts,
with its fields and its correlation.

A mark is a key of its own with an expiry of its own, set when the event is stored and never lengthened by a double. The
window must be longer than anything can be late: a packet that comes after its mark has gone stores the event again.

Measured (tests/bench/dedupe.py): a mark takes about 210 bytes on Redis 7.0.15 and 135 on Valkey, beside the 230 to 270 of
an entry of 200 bytes. A million events a day, all marked for a day, are 0.2 GB; that is why nothing is marked unless
somebody asks for it. Rejected: a hash for each slice of the window (a third less memory, but a double must be looked for
in every slice, and a hash of millions that expires stops the server for seconds), and a Bloom filter (it would call some
first events doubles).
"""

import math

from canvasbus.errors import CanvasbusError, ConfigError

WINDOW_SECONDS = 24 * 3600.0
"""How long a publisher's mark is kept by default: a job that is started again the next morning is still known."""
LONGEST = 10 * 366 * 86400.0


def window_ms(seconds: float, what: str, error: type[CanvasbusError] = ConfigError) -> int:
    """A window in ms. Raises `error` for what is none."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise error(f"{what}={seconds!r} is no number of seconds")
    if not 1 <= seconds <= LONGEST:
        raise error(f"{what}={seconds!r}: use seconds, from 1 to ten years")
    return round(seconds * 1000)
