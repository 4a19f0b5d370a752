"""The plan of a chaos run: who is killed or paused when. Drawn from a seed, before anything starts."""

from dataclasses import dataclass
from random import Random
from typing import Literal

HEARTBEAT_LIMIT = 5.0
"""Seconds after which the others take a silent worker for dead."""


@dataclass(frozen=True, slots=True)
class Blow:
    """Something that the nemesis does."""

    at: float
    """Seconds after the start."""
    kind: Literal["kill", "pause", "restart"]
    """kill -9 of a worker; SIGSTOP of a worker; kill -9 and restart of the server."""
    worker: int = 0
    """Which one; when it is not there, the next."""
    seconds: float = 0.0
    """How long it stays dead, or paused."""


def plan(seed: int, seconds: float, *, kills: int, pauses: int, restarts: int, workers: int) -> list[Blow]:
    """So many blows over so many seconds, in order of time."""
    random = Random(seed)
    blows = [
        Blow(random.uniform(0, seconds), "kill", random.randrange(workers), random.uniform(0, 1.5))
        for _ in range(kills)
    ]
    longer = HEARTBEAT_LIMIT + 1
    blows += [
        Blow(random.uniform(0, seconds), "pause", random.randrange(workers), random.uniform(longer, longer + 3))
        for _ in range(pauses)
    ]
    blows += [
        Blow((number + random.uniform(0.2, 0.8)) * seconds / restarts, "restart", 0, random.uniform(0, 1.0))
        for number in range(restarts)
    ]
    return sorted(blows, key=lambda blow: blow.at)
