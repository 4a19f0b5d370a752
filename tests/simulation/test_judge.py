"""The oracle can fail: what is put wrong by hand after a sound run, it finds."""

from collections.abc import Callable

import pytest
import trio
from simulation.judge import ends, judge
from simulation.plan import Plan, Producing, Publish, Rung
from simulation.repeatable import repeatable
from simulation.world import World
from studio import Eyes

from canvasbus.wire.codec import Codec


def sound_run() -> World:
    """Eight quick events and one poison, and three of a program with a Producer; no faults."""
    plan = Plan(7, seconds=2.0, processes=1, parts=frozenset({"state", "timers", "instances", "producer"}))
    plan.behaviours = {**dict.fromkeys(range(12), "quick"), 8: "poison"}
    plan.publishes = [Publish(n / 10, (n,), "one") for n in range(9)]
    plan.producing = Producing(spool=True)
    plan.produces = [Publish(n / 10, (n,), "one") for n in range(9, 12)]
    world = World(plan)
    with repeatable(7) as clock:
        trio.run(world.run, clock=clock)
    return world


def copy(eyes: Eyes, key: bytes, at: int = 0) -> None:
    """Add an entry of a stream once more."""
    eyes.call("XADD", key, "*", *eyes.call("XRANGE", key, "-", "+")[at][1])


def remove(eyes: Eyes, key: bytes, at: int = 0) -> None:
    eyes.call("XDEL", key, eyes.call("XRANGE", key, "-", "+")[at][0])


def rung(eyes: Eyes, n: int) -> list[bytes]:
    """An entry of a timer's event."""
    return [b"e", Codec().encode(Rung(n=n)).data]


WRONG: dict[str, Callable[[World, Eyes], object]] = {
    "an effect is lost": lambda _, eyes: remove(eyes, eyes.stream("sim.framed")),
    "an effect is doubled": lambda _, eyes: copy(eyes, eyes.stream("sim.framed")),
    "an event is lost": lambda _, eyes: remove(eyes, eyes.stream("sim.placed")),
    "an event is doubled": lambda _, eyes: copy(eyes, eyes.stream("sim.placed")),
    "a dead letter is lost": lambda _, eyes: remove(eyes, eyes.keys.dead("framers")),
    "a dead letter is doubled": lambda _, eyes: copy(eyes, eyes.keys.dead("framers")),
    "an announcement is lost": lambda _, eyes: remove(eyes, eyes.stream("handler.failed")),
    "a refused event is there": lambda world, _: world.history.fate.update({3: "refused"}),
    "an event is there that nobody published": lambda world, _: world.history.fate.pop(3),
    "an accepted event has another id": lambda world, _: world.history.entry.update({3: "1-1"}),
    "an innocent one was given up": lambda world, _: world.plan.behaviours.update({8: "quick"}),
    "too many attempts": lambda world, _: world.history.runs.extend(world.history.runs[-1:] * 4),
    "an attempt has the number of another": lambda world, _: setattr(world.history.runs[-1], "attempt", 2),
    "a state has counted wrongly": lambda _, eyes: eyes.call(
        "SET", eyes.keys.state("framers", "count 1"), b"t" * 16 + b"\x09"
    ),
    "a state is lost": lambda _, eyes: eyes.call("DEL", eyes.keys.state("framers", "count 2")),
    "a part is lost": lambda _, eyes: eyes.call("HDEL", eyes.keys.parts("framers", "all"), "3"),
    "a part is nobody's": lambda _, eyes: eyes.call("HSET", eyes.keys.parts("framers", "all"), "19", b"\x13"),
    "a timer never came": lambda _, eyes: remove(eyes, eyes.stream("sim.rung")),
    "a timer came twice": lambda _, eyes: copy(eyes, eyes.stream("sim.rung")),
    "a timer came that was removed": lambda _, eyes: eyes.call("XADD", eyes.stream("sim.rung"), "*", *rung(eyes, 5)),
    "an effect has another id": lambda world, _: setattr(world.plan, "batch", True),
    "an instance missed an event": lambda _, eyes: remove(eyes, eyes.stream("sim.seen")),
    "a Producer never told what became of an event": lambda world, _: world.history.attempts[-1].told.clear(),
    "a Producer knows not what became of an event": lambda world, _: setattr(
        world.history.attempts[-1].told[0], "fate", "unknown"
    ),
    "a Producer dropped an event for nothing": lambda world, _: setattr(
        world.history.attempts[-1].told[0], "fate", "refused"
    ),
    "a Producer told two things of an event": lambda world, _: world.history.attempts[0].own.append("refused"),
    "a Producer's events are out of order": lambda world, _: world.history.attempts.reverse(),
    "an instance saw an event twice": lambda _, eyes: copy(eyes, eyes.stream("sim.seen")),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_judge_finds(what: str) -> None:
    """A sound run is sound; with one thing put wrong it is not."""
    world = sound_run()
    assert judge(world.plan, world.history, world.partitions) == []
    WRONG[what](world, world.eyes)
    assert judge(world.plan, world.history, world.partitions) != []


def test_the_model_knows_what_becomes_of_an_event() -> None:
    """An event that fails less often than it may has an effect, any other is one dead letter."""
    plan = Plan(0, attempts=2, behaviours=dict(enumerate(["quick", "fails once", "fails twice", "poison", "rejected"])))
    assert [ends(plan, n) for n in range(5)] == [(1, 0), (1, 0), (0, 1), (0, 1), (0, 1)]
    plan.attempts = 3
    assert ends(plan, 2) == (1, 0)
