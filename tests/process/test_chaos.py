"""The chaos run, a short one, and whether its judge and its nemesis are worth anything."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from process.chaos import chaos
from process.nemesis import HEARTBEAT_LIMIT, plan
from process.verdict import History, verdict
from seeds import seeds
from servers import ServerProcess

pytestmark = pytest.mark.long


@pytest.mark.parametrize("seed", seeds(1, "chaos"))
async def test_nothing_is_lost_and_nothing_doubled_under_blows(
    make_server: Callable[..., ServerProcess], tmp_path: Path, seed: int
) -> None:
    """Four kills and a stop of workers, a killed server and a poison event: each event has one answer, the poison is the
    one dead letter, no entry and no name is left over, and all workers leave in order."""
    outcome = await chaos(
        make_server(persistent=True),
        tmp_path,
        events=6000,
        seconds=10,
        seed=seed,
        kills=4,
        pauses=1,
        restarts=1,
        attempts=2,
    )
    assert outcome.wrong == [], outcome.figures()
    assert len(outcome.history.accepted) == 6000
    assert [blow.kind for blow in outcome.struck].count("restart") == 1
    assert len(outcome.struck) >= 3  # a blow at somebody who is not there goes nowhere


def kept() -> History:
    """A history in which every promise was kept: 20 events, number 7 is poison."""
    asked = [(f"id-{number}", number) for number in range(20)]
    return History(
        workers=3,
        accepted=set(range(20)),
        asked=asked,
        answered=[(event_id, number) for event_id, number in asked if number != 7],
        poison={7},
        dead=[("id-7", "lost_workers")],
        consumers=["a", "b", "c"],
    )


def test_a_good_history_is_acquitted() -> None:
    """Also one in which something was stored although nobody was told so: that is no promise broken."""
    history = kept()
    assert verdict(history) == []
    history.accepted.discard(3)
    assert verdict(history) == []


def break_it(history: History, how: str) -> None:
    """Plant one fault."""
    if how == "an accepted event is gone":
        history.accepted.add(99)
    elif how == "an event was stored twice":
        history.asked.append(("id-again", 4))
        history.answered.append(("id-again", 4))
    elif how == "an id was used twice":
        history.asked.append(("id-4", 99))
    elif how == "an answer is missing":
        history.answered.remove(("id-4", 4))
    elif how == "an answer is doubled":
        history.answered.append(("id-4", 4))
    elif how == "one is missing, another doubled":
        history.answered.remove(("id-4", 4))
        history.answered.append(("id-5", 5))
    elif how == "an answer without a question":
        history.answered.append(("id-99", 99))
    elif how == "a wrong answer":
        history.answered[history.answered.index(("id-4", 4))] = ("id-4", 5)
    elif how == "the poison was answered":
        history.answered.append(("id-7", 7))
    elif how == "the poison vanished":
        history.dead.clear()
    elif how == "an innocent died":
        history.dead.append(("id-4", "lost_workers"))
    elif how == "the poison died of something else":
        history.dead[0] = ("id-7", "exhausted")
    elif how == "the poison died twice":
        history.dead.append(("id-7", "lost_workers"))
    elif how == "something is pending":
        history.pending = 1
    elif how == "a dead worker's name is left":
        history.consumers.append("d")
    elif how == "a worker is gone":
        history.consumers.pop()
    elif how == "a loss was told":
        history.losses.append("entry 1-1 was trimmed")


FAULTS = {
    "an accepted event is gone": "1 accepted and not on the stream: 99",
    "an event was stored twice": "1 more than once on the stream: 4",
    "an id was used twice": "1 event ids used twice: id-4",
    "an answer is missing": "1 lost: without an answer: 4",
    "an answer is doubled": "1 doubled: more than one answer: 4",
    "one is missing, another doubled": "1 lost: without an answer: 4",
    "an answer without a question": "1 answers to something that nobody asked: id-99",
    "a wrong answer": "1 answers to another number: 5",
    "the poison was answered": "1 poison with an answer: 7",
    "the poison vanished": "1 poison that is no dead letter: 7",
    "an innocent died": "1 dead letters that are no poison: 4",
    "the poison died of something else": "1 dead letters for other reasons: exhausted",
    "the poison died twice": "1 in the dead letters twice: id-7",
    "something is pending": "1 entries are pending",
    "a dead worker's name is left": "4 consumers for 3 workers: ['a', 'b', 'c', 'd']",
    "a worker is gone": "2 consumers for 3 workers: ['a', 'b']",
    "a loss was told": "1 losses were told: entry 1-1 was trimmed",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_planted_fault_is_found(how: str) -> None:
    """Each kind of broken promise is named, with the event that it befell."""
    history = copy.deepcopy(kept())
    break_it(history, how)
    assert FAULTS[how] in verdict(history)


def test_the_nemesis_is_drawn_from_its_seed() -> None:
    """The same seed means the same blows, another seed others; as many as asked, in order, all while events are
    published, and every stop is longer than the heartbeat limit."""
    blows = plan(5, 100, kills=60, pauses=15, restarts=5, workers=3)
    assert blows == plan(5, 100, kills=60, pauses=15, restarts=5, workers=3)
    assert blows != plan(6, 100, kills=60, pauses=15, restarts=5, workers=3)
    assert [sum(blow.kind == kind for blow in blows) for kind in ("kill", "pause", "restart")] == [60, 15, 5]
    assert [blow.at for blow in blows] == sorted(blow.at for blow in blows)
    assert all(0 <= blow.at <= 100 for blow in blows)
    assert all(blow.seconds > HEARTBEAT_LIMIT for blow in blows if blow.kind == "pause")
    assert {blow.worker for blow in blows} == {0, 1, 2}
