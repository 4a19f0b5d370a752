"""What was done in a run, and what was seen: all that the judge knows of it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from simulation.producers import Attempt
from simulation.site import Site

RETRIED = "redriven "
"""Before the entry ids of what was redriven, which lies in a stream of its own."""


@dataclass
class Run:
    """One run of a handler."""

    group: str
    n: int
    partition: int
    entry_id: str
    site: Site
    consumer: str
    attempt: int
    suspect: bool
    """Its worker before had died: in quarantine an attempt is counted before it begins."""
    began: float
    ended: float = math.inf
    end: str = "runs"
    """returned, raised, down, later, rejected, cancelled, killed (with its worker), kills (it ended its worker)"""

    @property
    def retried(self) -> bool:
        """It was given up before, and given back."""
        return self.entry_id.startswith(RETRIED)

    @property
    def died(self) -> bool:
        """Its worker went with it."""
        return self.end in ("killed", "kills")


@dataclass
class Instance:
    """A process with a group of its own."""

    group: str
    since: int
    """From which ms of the server's clock on it reads."""
    stayed: bool = True
    """It was there to the end."""


@dataclass(frozen=True)
class Cut:
    """A restart of the server after which it knows nothing of what happened between two moments."""

    since: float
    milliseconds: range


@dataclass
class History:
    """What the judge needs to know."""

    fate: dict[int, str] = field(default_factory=dict)
    """Of each event: accepted, refused or unknown."""
    entry: dict[int, str] = field(default_factory=dict)
    """The entry ids of what was accepted."""
    foreign: set[str] = field(default_factory=set)
    """Entry ids of what strangers wrote."""
    trimmed: dict[bytes, list[tuple[str, list[bytes]]]] = field(default_factory=lambda: defaultdict(list))
    """By stream: entries that were trimmed by hand."""
    retained: dict[bytes, list[tuple[str, list[bytes]]]] = field(default_factory=lambda: defaultdict(list))
    """The same: by retention."""
    lost_pending: dict[str, set[str]] = field(default_factory=dict)
    """By group that was destroyed: the entry ids that were pending then."""
    lost_done: dict[str, set[str]] = field(default_factory=dict)
    """The same: those that were acknowledged; and by group that was set back: all that it had read."""
    lost_held: dict[str, dict[str, Run]] = field(default_factory=dict)
    """The same: what ran then, in whose name it was pending."""
    redriven: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By group: the ids of events whose dead letters were given back to it, and how often."""
    runs: list[Run] = field(default_factory=list)
    deaths: Counter[str] = field(default_factory=Counter)
    """Kills, pauses and cut networks: each may cost what ran an attempt. Stops do not."""
    stale: dict[int, float] = field(default_factory=dict)
    """Events that expire soon, and when: handled before that or skipped."""
    due: dict[int, float] = field(default_factory=dict)
    """Events published with a delay: before which ms they must not come."""
    instances: dict[str, Instance] = field(default_factory=dict)
    cut: Cut | None = None
    attempts: list[Attempt] = field(default_factory=list)
    """What programs with a Producer published, in this order."""
    ended_well: set[str] = field(default_factory=set)
    """Their lives that ended of themselves, with nothing left to do."""
    wrong: list[str] = field(default_factory=list)
    """What was seen to be wrong on the way."""
