"""What the doctor says."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "error"]
"""ok: as it should be. note: worth knowing, or not to be found out. warning: something promised is in danger, or work
lies about. error: something promised does not hold here."""

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    check: str
    """One word for what was looked at, for programs: durability, eviction, pending, …"""
    found: str
    """In plain words. May hold names from the server: make it safe before a terminal sees it."""
    advice: str = ""
    """What to do about it."""
    group: str | None = None
    topic: str | None = None
    estimate: bool = False
    """Found by a sample, or up to a limit: there may be more."""


def wrong(level: Level) -> bool:
    """True for levels that mean that somebody must act."""
    return level in ("warning", "error")
