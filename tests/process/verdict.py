"""The judge of a chaos run. It knows nothing of the bus: it compares what was promised with what is there."""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

_SHOWN = 5


@dataclass
class History:
    """What a run leaves behind."""

    workers: int
    """How many there are at the end."""
    accepted: set[int] = field(default_factory=set)
    """Numbers that a producer was told the bus has."""
    asked: list[tuple[Hashable, int]] = field(default_factory=list)
    """(event id, number) of every event on the stream."""
    answered: list[tuple[Hashable, int]] = field(default_factory=list)
    """(causation id, number) of every derived event."""
    poison: set[int] = field(default_factory=set)
    """Numbers of the events that kill who handles them."""
    dead: list[tuple[Hashable, str]] = field(default_factory=list)
    """(event id, reason) of every dead letter."""
    pending: int = 0
    consumers: list[str] = field(default_factory=list)
    """Names in the group, without the pools."""
    losses: list[str] = field(default_factory=list)
    """What bus.loss said."""


def verdict(history: History) -> list[str]:
    """Everything that is wrong, one sentence each; empty: all promises were kept."""
    poison = {event_id for event_id, number in history.asked if number in history.poison}
    asked = dict(history.asked)
    stored = Counter(number for _, number in history.asked)
    answers = Counter(cause for cause, _ in history.answered)
    wrong = [
        _listed("accepted and not on the stream", history.accepted - stored.keys()),
        _listed("more than once on the stream", (number for number, count in stored.items() if count > 1)),
        _listed("event ids used twice", (i for i, count in Counter(i for i, _ in history.asked).items() if count > 1)),
        _listed("lost: without an answer", (asked[i] for i in asked if i not in answers and i not in poison)),
        _listed("doubled: more than one answer", (asked.get(i, i) for i, count in answers.items() if count > 1)),
        _listed("answers to something that nobody asked", (i for i in answers if i not in asked)),
        _listed("answers to another number", (n for i, n in history.answered if i in asked and asked[i] != n)),
        _listed("poison with an answer", (asked[i] for i in poison if i in answers)),
        _listed("poison that is no dead letter", (asked[i] for i in poison - {i for i, _ in history.dead})),
        _listed("dead letters that are no poison", (asked.get(i, i) for i, _ in history.dead if i not in poison)),
        _listed("dead letters for other reasons", (reason for _, reason in history.dead if reason != "lost_workers")),
        _listed("in the dead letters twice", (i for i, n in Counter(i for i, _ in history.dead).items() if n > 1)),
        f"{history.pending} entries are pending" if history.pending else "",
        _listed("losses were told", history.losses),
    ]
    if len(history.consumers) != history.workers:
        wrong.append(f"{len(history.consumers)} consumers for {history.workers} workers: {sorted(history.consumers)}")
    return [sentence for sentence in wrong if sentence]


def _listed(what: str, found: Iterable[Any]) -> str:
    items = sorted(map(str, found))
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {what}: {', '.join(items[:_SHOWN])}{more}" if items else ""
