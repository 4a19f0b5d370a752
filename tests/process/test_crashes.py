"""Real processes and real signals: killed workers, rolling restarts, and an event that kills whoever touches it."""

import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from process.asked import Asked
from studio import Eyes, quiet
from waiting import until

from canvasbus import Producer

pytestmark = pytest.mark.long


def answers(eyes: Eyes) -> Counter[int]:
    return Counter(answer.number for answer in eyes.events("crash.answered"))


async def joined(*programs: Any, times: int = 1) -> None:
    await until(lambda: all(len(program.said("worker joined")) >= times for program in programs), 20)


async def test_workers_that_are_killed_and_restarted_lose_nothing(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any]
) -> None:
    """kill -9 of one, SIGTERM of another, new ones in between, while a Producer goes on publishing: each event has
    exactly one answer, and nobody waits longer than a worker takes to be declared dead."""
    where = ("--url", server_url, "--namespace", namespace)
    victim, leaver = start(*where), start(*where)
    await joined(victim, leaver)
    with Producer(server_url, namespace=namespace) as bus:
        for number in range(1500):
            bus.publish(Asked(number=number))
            if number == 1000:
                await until(lambda: eyes.count("crash.answered") > 200)
                victim.process.kill()
                assert eyes.pending("unit", "crash.asked")
                leaver.process.send_signal(signal.SIGTERM)
                start(*where)
        assert bus.flush(20)
    await until(lambda: eyes.count("crash.answered") >= 1500, 30)
    await quiet(eyes, event_type="crash.asked", timeout=20)
    assert answers(eyes) == dict.fromkeys(range(1500), 1)
    assert leaver.process.wait(20) == 0
    assert eyes.dead("unit") == []


async def test_an_event_that_kills_its_process_is_given_up(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any]
) -> None:
    """Under --processes 2 a deadly event among others ends as one dead letter; the others are answered once."""
    program = start("--url", server_url, "--namespace", namespace, "--processes", "2")
    await joined(program, times=2)
    with Producer(server_url, namespace=namespace) as bus:
        for number in range(300):
            bus.publish(Asked(number=number, deadly=number == 150))
        assert bus.flush(20)
    await until(lambda: eyes.dead("unit"), 60)
    await until(lambda: eyes.count("crash.answered") >= 299, 20)
    await quiet(eyes, event_type="crash.asked")
    (letter,) = eyes.dead("unit")
    assert (letter.reason, letter.attempts) == ("lost_workers", 1)
    assert answers(eyes) == {number: 1 for number in range(300) if number != 150}
    assert len(program.said("a worker process ended")) == 3  # among all others, among a few, alone


FAILING = """
from canvasbus import Event, event
from canvasbus.worker import Backoff, Worker

@event("crash.asked")
class Asked(Event):
    number: int

worker = Worker("unit")

@worker.on(Asked, retry={ValueError: Backoff(attempts=3, base=3600, cap=3600)})
async def on_asked(event: Asked) -> None:
    raise ValueError("not today")
"""


async def test_attempts_survive_the_processes_that_made_them(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any]
) -> None:
    """Each process fails once on the event and is killed while it waits: the third failure is the last of three."""
    with Producer(server_url, namespace=namespace) as bus:
        bus.publish(Asked(number=1))
        assert bus.flush(20)
    failed = "a handler failed; the event waits for another attempt"
    for attempt in (1, 2):
        program = start("--url", server_url, "--namespace", namespace, unit=FAILING)
        (told,) = await until(lambda program=program: program.said(failed), 30)
        assert (told["attempt"], told["of"]) == (attempt, 3)
        counted = attempt + 1
        await until(lambda n=counted: [count for _, _, count in eyes.pending("unit", "crash.asked")] == [n])
        program.process.kill()
    start("--url", server_url, "--namespace", namespace, unit=FAILING)
    (letter,) = await until(lambda: eyes.dead("unit"), 30)
    assert (letter.reason, letter.attempts) == ("exhausted", 3)
    await quiet(eyes, event_type="crash.asked")


IN_AN_OUTAGE = FAILING.replace(
    "{ValueError: Backoff(attempts=3,",
    "{ConnectionError: Backoff(attempts=20, base=0), ValueError: Backoff(attempts=20,",
).replace("(event: Asked) -> None:\n", "(event: Asked, ctx) -> None:\n    if ctx.attempt < 7: raise ConnectionError\n")


async def test_what_fails_in_an_outage_is_not_given_up_when_its_process_is_killed(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any]
) -> None:
    """It has failed seven times of twenty, and a worker may die five times of an event. The next version of the worker, whose
    exceptions all have five attempts, runs it all the same."""
    with Producer(server_url, namespace=namespace) as bus:
        for number in range(20):
            bus.publish(Asked(number=number))
        assert bus.flush(20)
    failing = start("--url", server_url, "--namespace", namespace, unit=IN_AN_OUTAGE)
    failed = "a handler failed; the event waits for another attempt"
    await until(lambda: [told["attempt"] for told in failing.said(failed)].count(7) == 20, 30)
    await until(lambda: {count % 1000 for _, _, count in eyes.pending("unit", "crash.asked")} == {8})
    failing.process.kill()

    start("--url", server_url, "--namespace", namespace)
    await until(lambda: eyes.count("crash.answered") >= 20, 30)
    await quiet(eyes, event_type="crash.asked")
    assert answers(eyes) == dict.fromkeys(range(20), 1) and eyes.dead("unit") == []


async def test_everything_that_is_published_after_a_flushall_is_handled_once(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any]
) -> None:
    """Somebody empties the server three times under three workers and a Producer in full flight, and a worker is killed
    right after the last: what is published from then on is answered once each, and bus.loss tells of what went."""
    where = ("--url", server_url, "--namespace", namespace)
    programs = [start(*where) for _ in range(3)]
    await joined(*programs)
    with Producer(server_url, namespace=namespace) as bus:
        number = 0
        for flushed in range(3):
            for _ in range(600):
                bus.publish(Asked(number=number))
                number += 1
            await until(lambda: eyes.call("EXISTS", eyes.stream("crash.answered")))
            await until(lambda: eyes.count("crash.answered") > 20)
            await until(lambda: eyes.call("XLEN", eyes.stream("crash.asked")))  # answers may be to what went before
            eyes.call("FLUSHALL")
            first = number
            if flushed == 2:
                programs[0].process.kill()
        for _ in range(900):
            bus.publish(Asked(number=number))
            number += 1
        assert bus.flush(20)
    await until(lambda: set(range(first, number)) <= answers(eyes).keys(), 40)
    await quiet(eyes, "unit", event_type="crash.asked", timeout=30)
    assert {count for one, count in answers(eyes).items() if one >= first} == {1}
    assert eyes.dead("unit") == []
    assert {loss.reason for loss in eyes.events("bus.loss")} & {"stream_recreated", "group_recreated"}
