"""What a namespace keeps of a type, and what it tells publishers when that is too much: both lie on the server as JSON."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

WhenFull = Literal["block", "reject", "drop_with_loss_event"]


MOST = 2**53 - 1
"""No number may be more: the server's Lua counts in doubles."""

SHOWN = 5
"""Names of groups in one text."""

_Count = Annotated[int, Meta(ge=1, le=MOST)]


class Retention(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of one type. None: as much as there is."""

    max_age: Annotated[float, Meta(gt=0)] | None = 7 * 86400.0
    """Seconds; older entries go once every declared group has handled them."""
    max_length: _Count | None = 1_000_000
    """Entries of one partition; more than that go once every declared group has handled them, a hundredth at a time."""
    max_bytes: _Count | None = None
    """Memory of one partition's stream on the server; the same."""
    cap: _Count | None = None
    """Entries of one partition, handled or not, at which `when_full` decides."""
    when_full: WhenFull = "block"
    """At the cap publishers wait, or get StreamFull, or the oldest entries go and bus.loss tells."""


class Full(Struct, frozen=True):
    """Why a stream takes no more for the moment."""

    when_full: WhenFull
    group: str
    """The group that keeps the oldest entries; empty: none does."""
    length: int
    """Entries."""

    cap: int = 0
    """What it may hold; 0: whoever wrote this did not say."""
    others: tuple[str, ...] = ()
    """More groups that have not handled the oldest entry."""

    def __str__(self) -> str:
        holds = f"the stream holds {self.length:,} entries" + (
            f", its cap is {self.cap:,}" if self.cap else " and is at its cap"
        )
        if not self.group:
            return f"{holds}; raise it"
        names = [repr(name) for name in (self.group, *self.others)]
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        who = f"group {names[0]} has" if len(names) == 1 else f"groups {', '.join(names[:SHOWN])}{more} have"
        return f"{holds}; {who} not handled the oldest: start or scale its workers, or `canvasbus groups forget`"


_decode = msgspec.json.Decoder(Retention).decode


def read_policy(value: bytes) -> Retention:
    """What is on record of a type. Raises ValueError when that is no policy."""
    try:
        return _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def is_policy(value: bytes) -> bool:
    """Whether a record can be read."""
    try:
        read_policy(value)
    except ValueError:
        return False
    return True


_decode_full = msgspec.json.Decoder(dict[str, Full]).decode


def read_full(value: bytes | None) -> dict[str, Full]:
    """The types that take no more, from what maintainers write down; what cannot be read stops nobody."""
    try:
        return _decode_full(value) if value else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
