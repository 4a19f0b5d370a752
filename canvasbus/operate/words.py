"""Numbers and names as people read them."""

from collections.abc import Iterable


def size(count: int) -> str:
    """Bytes in the largest unit that fits."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def span(seconds: float) -> str:
    """A length of time in the largest unit of which there are two."""
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def count(number: int, thing: str) -> str:
    """1 entry, 2 entries, 1,000 topics, 1 dead letter."""
    if number == 1:
        return f"1 {thing}"
    return f"{number:,} {thing[:-1]}ies" if thing.endswith("ry") else f"{number:,} {thing}s"


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - limit:,} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more


def text(name: bytes) -> str:
    """A name that may be no text."""
    return name.decode(errors="backslashreplace")


def versions(oldest: int, newest: int) -> str:
    """The versions from the oldest to the newest."""
    return f"v{newest}" if oldest == newest else f"v{oldest}–v{newest}"
