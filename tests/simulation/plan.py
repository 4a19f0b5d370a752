"""What a seed decides before a run begins: who takes part, what is published, what handlers do, which faults happen.

Each seed switches on a part of the faults, and of what a bus can do, only (swarm testing: a run with everything at once
is mostly outages). The events come during the whole time of the faults. Kills, pauses and lost networks end early: later ones would heal what
an earlier fault has left stuck, because the dead's entries are taken over. Lost packets and moods go on to the end.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from random import Random

from simulation.weather import CALM, MOODS, Weather

from canvasbus import Event, event
from canvasbus.contract.registry import registry
from canvasbus.produce.buffer import BUFFER_BYTES, SPOOL_BYTES, WhenFull


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


@event("sim.rung")
class Rung(Event):
    n: int


@event("sim.seen")
class Seen(Event):
    n: int
    who: str


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
heartbeat limit, "hangs" does so until its timeout, once, "stuck" hangs behind a shield, a few times, for as long as there
is anything else to do, and "kills" ends its worker, whichever that is."""


def input_of(group: str) -> str:
    """The type that a group of the plan reads."""
    return registry.of(GROUPS[group][0]).name


STUCK = 0.2
"""How often an event gets stuck, where there is a slot for others."""

PAUSED = 0.2
"""How often somebody pauses groups for a while."""

REDRIVEN = 0.2
"""How often somebody gives dead letters back to their group."""

PRODUCERS = 0.25
"""How often programs with a Producer take part."""

PARTS = {
    "state": 0.5,  # handlers count in ctx.state and write ctx.parts
    "timers": 0.5,  # handlers return Later and Cancel, and some events are published with a delay
    "retention": 0.75,  # streams are trimmed as far as their groups allow
    "breaker": 0.2,  # what the handlers call is away for a while; they have a circuit breaker
    "instances": 0.2,  # each process has a group of its own besides
    "partitions": 0.2,  # two
}
"""What is switched on in a run besides plain publishing and handling, and how often."""


@dataclass(frozen=True)
class Timer:
    """What a handler does about a timer: to set it for so many seconds (None: to remove it). Without a name it is one
    that nobody can set again or remove."""

    name: str
    after: float | None


def timer_of(n: int) -> Timer | None:
    """What is done about timers for an event."""
    name = f"{n // 4 % 2}"
    return (Timer("", n % 7 / 2), Timer(name, 0.5 + n % 3), Timer(name, None), None)[n % 4]


@dataclass(frozen=True)
class Publish:
    """One call of a publisher."""

    at: float
    numbers: tuple[int, ...]
    how: str
    """one, many, impatient (cancelled soon), stale (expires soon), bad (cannot be encoded), foreign (not by canvasbus),
    delayed"""


STALE_SECONDS = 0.2

HOW = {"one": 30, "many": 12, "impatient": 5, "stale": 4, "bad": 1, "foreign": 5, "delayed": 6}


@dataclass(frozen=True)
class Happening:
    """A fault at a time of its own."""

    at: float
    kind: str
    who: int = 0
    """Which worker process."""
    seconds: float = 0.0
    how: str = ""


@dataclass(frozen=True)
class Producing:
    """How programs use a Producer."""

    spool: bool = False
    threads: int = 1
    nervous: float = 0.0
    """How often a thread has to wait for the others where it takes or leaves a lock."""
    flushes: float = 0.2
    """How often it flushes after a publish."""
    buffer_bytes: int = BUFFER_BYTES
    spool_bytes: int = SPOOL_BYTES
    when_full: WhenFull | None = None
    max_block: float = 1.0
    dedupe: bool = False
    signals: float = 0.0
    """How often its main thread is interrupted where it has a lock, by a handler that publishes."""
    echoes: float = 0.0
    """How often on_delivery publishes."""
    ctrl_c: float = 0.0
    """How often publish is interrupted by Ctrl-C while it writes into the spool."""

    @property
    def drops(self) -> bool:
        """There may be no room for an event."""
        return self.buffer_bytes < BUFFER_BYTES or self.spool_bytes < SPOOL_BYTES


@dataclass
class Plan:
    """One run."""

    seed: int
    parts: frozenset[str] = frozenset()
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
    keep: int = 1
    """With retention: how many handled entries are kept of a type."""
    cap: int | None = None
    """With retention: at how many entries publishers are refused."""
    away: tuple[float, float] = (0.0, 0.0)
    """From when to when what the handlers call is away."""
    producing: Producing = Producing()
    produces: list[Publish] = field(default_factory=list)
    """What programs with a Producer publish."""

    @property
    def partitions(self) -> int:
        return 2 if "partitions" in self.parts else 1

    @property
    def capped(self) -> bool:
        """Whether publishers may be refused."""
        return self.cap is not None and "retention" in self.parts

    def happens(self, kind: str) -> bool:
        """Whether a fault of this kind is planned."""
        return any(happening.kind == kind for happening in self.happenings)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.processes} processes with {' '.join(self.groups)}, concurrency "
            f"{self.concurrency}{', batches' if self.batch else ''}, {self.attempts} attempts, {len(self.behaviours)} "
            f"events in {self.seconds:.0f} s, {' '.join(sorted(self.parts)) or 'no parts'}\n  {self.weather}\n"
            + (f"  {len(self.produces)} calls of {self.producing}\n" if self.produces else "")
            + "".join(f"  {h.at:6.2f} {h.kind} {h.who} {h.seconds:.2f} {h.how}\n" for h in self.happenings)
        )


_WISHES = {"kills", "calm", "company", "slow", "stuck", "batch", "spool", "small", "blocks", "nervous"}


def draw(seed: int, *, wanted: AbstractSet[str] = frozenset()) -> Plan:
    """The plan of a seed. Wanted parts, kinds of happenings and "kills" are there whatever the seed says of them;
    "calm" weather is without lost packets, "company" means two processes at least, "slow" two slow events at least, "stuck"
    one that hangs, "batch" that handlers take several events, "spool", "small", "blocks" and "nervous" say how Producers are.
    A happening may be wanted in one way only, like "stop, commit late"; a "pause, long" is one that others take for death."""
    dice = Random(seed)
    plan = Plan(seed)
    plan.groups = dice.choice([("framers",), ("framers",), ("framers", "taggers"), ("framers", "hangers")])
    plan.processes = dice.choice([1, 2, 2, 2, 3])
    plan.concurrency = dice.choice([1, 4, 16])
    plan.batch = dice.random() < 0.15
    plan.attempts = dice.choice([2, 3, 3, 4])
    plan.grace = dice.choice([0.0, 0.0, 0.5, 3.0])
    plan.patience = dice.choice([None, None, 0.5])
    plan.seconds = dice.uniform(9.0, 13.0)
    plan.parts = frozenset(
        {part for part, chance in PARTS.items() if dice.random() < chance} | PARTS.keys() & set(wanted)
    )
    _draw_events(plan, dice)
    _draw_weather(plan, dice)
    _draw_happenings(plan, dice)
    if "kills" in wanted and "kills" not in plan.behaviours.values():
        _draw_killer(plan, dice)
    if "slow" in wanted:
        for n in Random(f"{seed} slow").sample([n for n, how in plan.behaviours.items() if how == "quick"], 2):
            plan.behaviours[n] = "slow"
    for wish in sorted(wanted - PARTS.keys() - _WISHES):
        if "producer" in wish:
            continue
        kind, _, how = wish.partition(", ")
        once = kind in ("restart", "group lost") or how == "long"
        times = (0.4,) if once else (0.2, 0.5, 0.8) if kind == "outage" else (0.2, 0.3, 0.4)
        if sum(one.kind == kind and how in ("", one.how) for one in plan.happenings) < len(times):
            if kind == "restart":  # what one of them has undone is all that the judge can tell
                plan.happenings = [one for one in plan.happenings if one.kind != kind]
            how = how or ("now" if kind == "kill" else "" if kind == "stop" else "refuse")
            seconds = 7.0 if how == "long" else 2.0
            plan.happenings += [Happening(plan.seconds * time, kind, dice.randrange(9), seconds, how) for time in times]
    _draw_parts(plan, dice, set(wanted))
    if any((happening.kind, happening.how) == ("stop", "commit late") for happening in plan.happenings):
        plan.grace = 0.0  # else what was lost is said again
    if "calm" in wanted:
        plan.weather = CALM
        plan.happenings = [one for one in plan.happenings if one.kind not in ("late", "lose")]
    if "company" in wanted:
        plan.processes = max(2, plan.processes)
    dice = Random(f"{seed} stuck")
    if "stuck" in wanted or (dice.random() < STUCK and plan.concurrency > 1 and not plan.batch):
        plan.concurrency, plan.batch = max(2, plan.concurrency), False
        quick = [n for n, how in plan.behaviours.items() if how == "quick"]
        start, end = plan.away  # then it may be what a breaker probes with
        away = {n for publish in plan.publishes if start < publish.at < end for n in publish.numbers}
        plan.behaviours[dice.choice([n for n in quick if n in away] or quick)] = "stuck"
    dice = Random(f"{seed} paused")
    for _ in range(dice.randrange(1, 4) if dice.random() < PAUSED else 0):
        at, seconds = dice.uniform(0, plan.seconds), dice.choice([1.0, 4.0, 8.0])
        plan.happenings.append(Happening(at, "group paused", dice.randrange(9), seconds, dice.choice(["", "reset"])))
    if any(one.how == "reset" for one in plan.happenings):  # that and these are told apart by nobody
        plan.parts -= {"partitions"}
        plan.happenings = [one for one in plan.happenings if one.kind not in ("group lost", "restart")]
    dice = Random(f"{seed} redriven")
    for _ in range(dice.randrange(1, 4) if dice.random() < REDRIVEN else 0):
        plan.happenings.append(Happening(dice.uniform(1.0, plan.seconds), "redrive", dice.randrange(9)))
    if plan.happens("redrive"):
        plan.happenings = [one for one in plan.happenings if one.kind != "restart"]
    dice = Random(f"{seed} producer")  # its own, so that what happens in the other runs does not hang on this part
    if dice.random() < PRODUCERS or any("producer" in wish for wish in wanted):
        plan.parts |= {"producer"}
        _draw_producing(plan, dice, wanted)
    return plan


WHEN_FULL: list[WhenFull | None] = [None, None, "block", "raise"]


def _draw_producing(plan: Plan, dice: Random, wanted: AbstractSet[str]) -> None:
    """A part of what is published comes from programs with a Producer, which fare no better than others."""
    rest = []
    for publish in plan.publishes:
        if publish.how == "foreign" or dice.random() < 0.4:
            rest.append(publish)
        else:
            how = "one" if publish.how == "impatient" else publish.how
            keyed = how == "one" and dice.random() < 0.2
            plan.produces.append(replace(publish, how="keyed" if keyed else how))
    plan.publishes = rest
    n, bursts = max(plan.behaviours) + 1, [dice.uniform(0, plan.seconds) for _ in range(4)]
    for _ in range(dice.choice([5, 10, 20])):  # close to each other, so that some come while others are sent
        how = dice.choice(["one", "one", "one", "keyed", "many"])
        numbers = tuple(range(n, n + (dice.randrange(2, 6) if how == "many" else 1)))
        n += len(numbers)
        plan.behaviours |= dict.fromkeys(numbers, "quick")
        at = dice.choice(bursts) + dice.choice([0.0, 0.001, 0.003, 0.01, 0.02, 0.05])
        plan.produces.append(Publish(at, numbers, how))
    plan.produces.sort(key=lambda publish: publish.at)
    spool = dice.random() < 0.6 if "small" not in wanted else False
    spool = spool or "spool" in wanted
    small = dice.random() < 0.3 or "small" in wanted
    plan.producing = Producing(
        spool=spool,
        threads=dice.choice([1, 1, 2]),
        nervous=0.5 if "nervous" in wanted else dice.choice([0.0, 0.1, 0.4]),
        flushes=dice.choice([0.0, 0.2, 0.5]),
        buffer_bytes=dice.choice([600, 2000]) if small else BUFFER_BYTES,
        spool_bytes=dice.choice([6000, 20_000])
        if spool and (dice.random() < 0.3 or "small" in wanted)
        else SPOOL_BYTES,
        when_full="block" if "blocks" in wanted else None if "small" in wanted else dice.choice(WHEN_FULL),
        max_block=dice.choice([0.0, 0.5, 20.0]),
        dedupe=dice.random() < 0.15,
        signals=dice.choice([0.0, 0.0, 0.1]),
        echoes=dice.choice([0.0, 0.0, 0.2]),
        ctrl_c=dice.choice([0.0, 0.0, 0.1]),
    )
    happenings: list[Happening] = []
    early = plan.seconds * 0.8

    wishes = {kind: how for kind, _, how in (wish.partition(", ") for wish in wanted)}

    def some(kind: str, chance: float, most: int, *hows: str) -> None:
        hows = (wishes[kind],) if wishes.get(kind) else hows
        if dice.random() < chance or kind in wishes:
            for _ in range(most if kind in wishes else dice.randint(1, most)):
                how, count = dice.choice(hows or ("",)), dice.choice([1, 1, 1, 2, 3])
                count = dice.randint(1, 40) if how == "disk" else count
                happenings.append(Happening(dice.uniform(0, early), kind, count, dice.choice([0.5, 4.0, 8.0]), how))

    some("kill producer", 0.7, 4, "now", "before", "after", "late", *(["after", "disk", "disk"] if spool else []))
    some("producer leaves", 0.3, 2)
    some("producer late", 0.4, 2)
    some("producer lost", 0.4, 2)
    some("pause producer", 0.1, 1)
    plan.happenings = sorted([*plan.happenings, *happenings], key=lambda one: one.at)


def _draw_parts(plan: Plan, dice: Random, wanted: set[str]) -> None:
    """Details of the parts, without those that the oracle could not tell apart from a fault or from each other."""
    for kind, others in _CLASHES.items():
        if plan.happens(kind):
            if wanted & others:
                plan.happenings = [happening for happening in plan.happenings if happening.kind != kind]
            else:
                plan.parts -= others
    if "kills" in plan.behaviours.values() and "breaker" not in wanted:
        plan.parts -= {"breaker"}  # six attempts are too many deaths for one run
    if "breaker" in plan.parts:
        plan.behaviours = {n: "quick" if how == "kills" else how for n, how in plan.behaviours.items()}
        plan.parts -= {"state"}
        plan.attempts = 6
        start = dice.uniform(0.0, plan.seconds * 0.7)
        plan.away = start, start + dice.uniform(3.0, 5.0)
    if "batch" in wanted:
        plan.batch, plan.parts = True, plan.parts - {"state", "timers"}
    if plan.parts & {"state", "timers"}:
        plan.batch = False
    if plan.batch and "breaker" in plan.parts:  # each of six attempts would take as long as all of its batch
        plan.behaviours = {n: "quick" if how in ("slow", "hangs") else how for n, how in plan.behaviours.items()}
    plan.keep = dice.choice([1, 1, 5])
    plan.cap = dice.choice([None, 10, 20, 40])


_CLASHES = {
    "trim": {"retention", "instances"},
    "restart": {"retention", "instances"},
    "group lost": {"partitions"},
}
"""Faults that leave no rule by which a part could be judged."""


def _draw_events(plan: Plan, dice: Random) -> None:
    names, weights = list(BEHAVIOURS), list(BEHAVIOURS.values())
    n, total = 0, dice.choice([20, 40, 60])
    bursts = [dice.uniform(0, plan.seconds) for _ in range(8)]
    while n < total:
        how = dice.choices(list(HOW), list(HOW.values()))[0]
        if how == "delayed" and "timers" not in plan.parts:
            how = "one"
        count = dice.randrange(2, 12) if how == "many" else 1
        numbers = tuple(range(n, n + count))
        n += count
        plan.behaviours.update(zip(numbers, dice.choices(names, weights, k=count), strict=True))
        at = dice.choice(bursts) + dice.choice([0.0, 0.003]) if dice.random() < 0.7 else dice.uniform(0, plan.seconds)
        plan.publishes.append(Publish(at, numbers, how))
    for behaviour, chance in ("slow", 0.8), ("hangs", 0.3):
        if dice.random() < chance:
            plan.behaviours[dice.randrange(n)] = behaviour
    for how in "foreign", "stale":  # at least one of each
        plan.behaviours[n] = "quick"
        plan.publishes.append(Publish(dice.choice(bursts) + 0.001, (n,), how))
        n += 1
    plan.publishes.sort(key=lambda publish: publish.at)


def _draw_weather(plan: Plan, dice: Random) -> None:
    """Rough weather hides things: with five packets in a hundred lost no watcher sees the others for long enough to
    call one dead, so most runs have less."""
    scale = dice.choice([0.2, 0.5, 1.0])

    def chance(most: float, share: float = 0.5) -> float:
        return dice.uniform(0, most) * scale if dice.random() < share else 0.0

    plan.weather = Weather(
        drop=chance(0.03),
        swallow=chance(0.004),
        part=chance(0.02),
        lose=chance(0.04, 0.9),
        mute=chance(0.004),
        late=chance(0.02, 0.8),
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
            found.append(Happening(dice.uniform(0, early), "kill", who(), dice.randrange(1, 5), how))
    if dice.random() < 0.25:
        found.append(Happening(dice.uniform(0, early), "kill publisher"))
    for kind in ("late", "lose", "publish late", "publish lost"):
        if dice.random() < 0.7:
            for _ in range(dice.randrange(1, 4)):
                found.append(Happening(dice.uniform(0, plan.seconds), kind, who()))
    if dice.random() < 0.4:
        kind = dice.choice(["take late", "release late", "raise late"])
        found.append(Happening(dice.uniform(0, plan.seconds), kind))
    if dice.random() < 0.4:
        for _ in range(dice.randrange(1, 3)):
            found.append(
                Happening(dice.uniform(0, early), "stop", who(), 0.0, dice.choice(["", "", "commit late", "mute"]))
            )
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
        at, who = dice.uniform(0, plan.seconds), dice.randrange(len(plan.groups))
        found.append(Happening(at, "group lost", who, 0.0, dice.choice(["", "leave"])))
    if dice.random() < 0.15:
        how = dice.choice(["refuse", "hole", "commit late"])
        found.append(Happening(dice.uniform(2.0, plan.seconds), "restart", 0, dice.choice([0.1, 0.5, 2.0]), how))
    elif dice.random() < 0.15:
        # Forward only: fakeredis gives an entry that was read before a clock went back a negative idle time, and then
        # XCLAIM does not move it. (Servers have no idle time below 0.)
        found.append(Happening(dice.uniform(0, plan.seconds), "clock", 0, dice.choice([1.0, 5.0, 30.0])))
    if dice.random() < 0.15:
        _draw_killer(plan, dice)
    found.sort(key=lambda happening: happening.at)


def _draw_killer(plan: Plan, dice: Random) -> None:
    victim = dice.choice(plan.publishes[: max(1, len(plan.publishes) // 5)])
    for n in plan.behaviours:
        if plan.behaviours[n] in ("slow", "hangs"):
            plan.behaviours[n] = "quick"
    plan.behaviours[victim.numbers[0]] = "kills"
    plan.attempts = 2
    plan.seconds = 24.0
