"""What a seed decides before a run begins: who takes part, what is published, what handlers do, which faults happen.

Each seed switches on a part of the faults only (swarm testing: a run with everything at once is mostly outages). The
events come during the whole time of the faults. Kills, pauses and lost networks end early: later ones would heal what
an earlier fault has left stuck, because the dead's entries are taken over. Lost packets and moods go on to the end.
"""

from dataclasses import dataclass, field
from random import Random

from simulation.network import CALM, MOODS, Weather

from canvasbus import Event, event


@event("sim.placed", key="n")
class Placed(Event):
    n: int
    weight: float = 0.0


@event("sim.framed")
class Framed(Event):
    n: int


@event("sim.tagged")
class Tagged(Event):
    n: int


@event("sim.hung")
class Hung(Event):
    n: int


GROUPS: dict[str, tuple[type[Event], type[Event]]] = {
    "framers": (Placed, Framed),
    "taggers": (Placed, Tagged),
    "hangers": (Framed, Hung),
}
"""Each group with what it handles and what it derives from that."""

BEHAVIOURS = {
    "quick": 40,
    "brief": 30,  # sleeps for less than a second
    "fails once": 8,
    "fails twice": 4,
    "poison": 3,  # always fails
    "later": 5,  # asks for another time, twice
    "rejected": 3,
}
"""What handlers do with an event, and how often that is so. Besides, in some runs: "slow" works for longer than the
heartbeat limit, "hangs" does so until its timeout, once, and "kills" ends its worker, whichever that is."""


@dataclass(frozen=True)
class Publish:
    """One call of a publisher."""

    at: float
    numbers: tuple[int, ...]
    how: str
    """one, many, impatient (cancelled soon), stale (expires soon), bad (cannot be encoded), foreign (not by canvasbus)"""


@dataclass(frozen=True)
class Happening:
    """A fault at a time of its own."""

    at: float
    kind: str
    who: int = 0
    """Which worker process."""
    seconds: float = 0.0
    how: str = ""


@dataclass
class Plan:
    """One run."""

    seed: int
    groups: tuple[str, ...] = ("framers",)
    processes: int = 2
    concurrency: int = 8
    batch: bool = False
    attempts: int = 3
    timeout: float = 8.0
    grace: float = 1.0
    patience: float | None = None
    seconds: float = 15.0
    """How long faults happen."""
    publishes: list[Publish] = field(default_factory=list)
    behaviours: dict[int, str] = field(default_factory=dict)
    weather: Weather = CALM
    happenings: list[Happening] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.processes} processes with {' '.join(self.groups)}, concurrency "
            f"{self.concurrency}{', batches' if self.batch else ''}, {self.attempts} attempts, {len(self.behaviours)} "
            f"events in {self.seconds:.0f} s\n  {self.weather}\n"
            + "".join(f"  {h.at:6.2f} {h.kind} {h.who} {h.seconds:.2f} {h.how}\n" for h in self.happenings)
        )


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    dice = Random(seed)
    plan = Plan(seed)
    plan.groups = dice.choice([("framers",), ("framers",), ("framers", "taggers"), ("framers", "hangers")])
    plan.processes = dice.choice([1, 2, 2, 3])
    plan.concurrency = dice.choice([1, 4, 16])
    plan.batch = dice.random() < 0.15
    plan.attempts = dice.choice([2, 3, 3, 4])
    plan.grace = dice.choice([0.0, 0.5, 3.0])
    plan.patience = dice.choice([None, None, 0.5])
    plan.seconds = dice.uniform(9.0, 13.0)
    _draw_events(plan, dice)
    _draw_weather(plan, dice)
    _draw_happenings(plan, dice)
    return plan


def _draw_events(plan: Plan, dice: Random) -> None:
    names, weights = list(BEHAVIOURS), list(BEHAVIOURS.values())
    n, total = 0, dice.choice([20, 40, 60])
    bursts = [dice.uniform(0, plan.seconds) for _ in range(8)]
    while n < total:
        how = dice.choices(["one", "many", "impatient", "stale", "bad", "foreign"], weights=[30, 12, 5, 2, 1, 2])[0]
        count = dice.randrange(2, 12) if how == "many" else 1
        numbers = tuple(range(n, n + count))
        n += count
        plan.behaviours.update(zip(numbers, dice.choices(names, weights, k=count), strict=True))
        at = dice.choice(bursts) + dice.choice([0.0, 0.003]) if dice.random() < 0.7 else dice.uniform(0, plan.seconds)
        plan.publishes.append(Publish(at, numbers, how))
    for behaviour, chance in ("slow", 0.5), ("hangs", 0.3):
        if dice.random() < chance:
            plan.behaviours[dice.randrange(n)] = behaviour
    plan.publishes.sort(key=lambda publish: publish.at)


def _draw_weather(plan: Plan, dice: Random) -> None:
    """Rough weather hides things: with five packets in a hundred lost no watcher sees the others for long enough to
    call one dead, so most runs have less."""
    scale = dice.choice([0.1, 0.3, 1.0])

    def chance(most: float) -> float:
        return dice.uniform(0, most) * scale if dice.random() < 0.5 else 0.0

    plan.weather = Weather(
        drop=chance(0.03),
        swallow=chance(0.004),
        part=chance(0.02),
        lose=chance(0.04),
        mute=chance(0.004),
        late=chance(0.02),
        delay=chance(0.05),
        busy=chance(0.03),
    )


def _draw_happenings(plan: Plan, dice: Random) -> None:
    early = plan.seconds * 0.5
    found = plan.happenings

    def who() -> int:
        return dice.randrange(plan.processes)

    if dice.random() < 0.6:
        for _ in range(dice.randrange(1, 4)):
            how = dice.choice(["now", "before", "after"])
            found.append(Happening(dice.uniform(0, early), "kill", who(), dice.randrange(1, 20), how))
    if dice.random() < 0.25:
        found.append(Happening(dice.uniform(0, early), "kill publisher"))
    if dice.random() < 0.4:
        for _ in range(dice.randrange(1, 3)):
            found.append(Happening(dice.uniform(0, early), "stop", who()))
    if dice.random() < 0.3:
        found.append(Happening(dice.uniform(0, early), "pause", who(), dice.choice([1.0, 7.0, 9.0])))
    if dice.random() < 0.25:
        how = dice.choice(["refuse", "hole"])
        found.append(Happening(dice.uniform(0, early), "cut off", who(), dice.choice([1.0, 7.0]), how))
    if dice.random() < 0.25:
        how = dice.choice(["refuse", "hole"])
        found.append(Happening(dice.uniform(0, plan.seconds), "outage", 0, dice.choice([0.5, 3.0, 6.0]), how))
    if dice.random() < 0.3:
        how = dice.choice(list(MOODS))
        found.append(Happening(dice.uniform(0, plan.seconds), "mood", 0, dice.uniform(0.5, 4), how))
    if dice.random() < 0.3:
        found.append(Happening(dice.uniform(0, plan.seconds), "scripts flushed"))
    if dice.random() < 0.15:
        for _ in range(3):
            found.append(Happening(dice.uniform(0, plan.seconds), "trim"))
    if dice.random() < 0.1:
        found.append(Happening(dice.uniform(0, plan.seconds), "group lost", dice.randrange(len(plan.groups))))
    if dice.random() < 0.15 and plan.behaviours:
        victim = dice.choice(plan.publishes[: max(1, len(plan.publishes) // 5)])
        for n in plan.behaviours:
            if plan.behaviours[n] in ("slow", "hangs"):
                plan.behaviours[n] = "quick"
        plan.behaviours[victim.numbers[0]] = "kills"
        plan.attempts = 2
        plan.seconds = 24.0
    found.sort(key=lambda happening: happening.at)
