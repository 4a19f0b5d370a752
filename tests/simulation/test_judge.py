"""The oracle can fail: what is put wrong by hand after a sound run, it finds."""

from collections.abc import Callable

import pytest
import trio
from simulation.judge import ends, judge
from simulation.plan import Plan, Publish
from simulation.repeatable import repeatable
from simulation.world import World
from studio import Eyes


def sound_run() -> World:
    """Eight quick events and one poison, no faults."""
    plan = Plan(7, seconds=2.0, processes=1)
    plan.behaviours = {**dict.fromkeys(range(8), "quick"), 8: "poison"}
    plan.publishes = [Publish(n / 10, (n,), "one") for n in range(9)]
    world = World(plan)
    with repeatable(7) as clock:
        trio.run(world.run, clock=clock)
    return world


def copy(eyes: Eyes, key: bytes, at: int = 0) -> None:
    """Add an entry of a stream once more."""
    eyes.call("XADD", key, "*", *eyes.call("XRANGE", key, "-", "+")[at][1])


def remove(eyes: Eyes, key: bytes, at: int = 0) -> None:
    eyes.call("XDEL", key, eyes.call("XRANGE", key, "-", "+")[at][0])


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
}


@pytest.mark.parametrize("what", WRONG)
def test_the_judge_finds(what: str) -> None:
    """A sound run is sound; with one thing put wrong it is not."""
    world = sound_run()
    assert judge(world.plan, world.history, world.eyes) == []
    WRONG[what](world, world.eyes)
    assert judge(world.plan, world.history, world.eyes) != []


def test_the_model_knows_what_becomes_of_an_event() -> None:
    """An event that fails less often than it may has an effect, any other is one dead letter."""
    plan = Plan(0, attempts=2, behaviours=dict(enumerate(["quick", "fails once", "fails twice", "poison", "rejected"])))
    assert [ends(plan, n) for n in range(5)] == [(1, 0), (1, 0), (0, 1), (0, 1), (0, 1)]
    plan.attempts = 3
    assert ends(plan, 2) == (1, 0)
