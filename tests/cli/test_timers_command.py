"""canvasbus timers: what comes later, and what is late."""

import time

import pytest
from cli.commands import Run
from studio import Eyes, PaintingMade

from canvasbus import Producer, clock
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import LATER_INBOX
from canvasbus.wire.later import body


def fill(eyes: Eyes, name: str, seconds: float, number: int = 0) -> str:
    made = Codec("lab").encode(PaintingMade(number=number))
    eyes.call("ZADD", eyes.keys.timers, int((time.time() + seconds) * 1000), name)
    eyes.call("HSET", eyes.keys.timer_bodies, name, body(made.type, made.data))
    return str(made.id)


def test_the_next_ones_are_shown(run: Run, eyes: Eyes) -> None:
    """The earliest first, with type, event and who set them; hostile names do not reach the terminal."""
    second = fill(eyes, "framers\nde\x1b[2Jbounce", 90)
    first = fill(eyes, "~1-0", 30)
    ran = run("timers", "--json")
    assert ran.code == 0
    assert [(r["event_id"], r["group"], r["timer"]) for r in ran.records] == [
        (first, None, None),
        (second, "framers", "de\x1b[2Jbounce"),
    ]
    shown = run("timers")
    assert shown.code == 0 and "\x1b[2J" not in shown.out and "painting.made" in shown.out
    assert "2 timers in all: -n 10" in run("timers", "-n", "1").err
    for wrong in ("0", "-1", "x", "", str(10**9 + 1), str(10**25), "9" * 5000):
        run("timers", "-n", wrong).failed(2, "argument -n: ", "at least 1 and at most 1,000,000,000")


def test_what_is_late_is_told(run: Run, eyes: Eyes) -> None:
    """Nobody maintains the namespace: 1, and why."""
    assert run("timers").code == 0 and "no timers" in run("timers").err
    fill(eyes, "~1-0", -60)
    eyes.call("HSET", eyes.keys.timer_bodies, "~2-0", b"\xff junk")
    eyes.call("ZADD", eyes.keys.timers, "inf", "~2-0")
    ran = run("timers")
    assert ran.code == 1 and "late" in ran.out and "unreadable" in ran.out
    assert "while a worker or an EventBus" in ran.err


class Off:
    """A machine whose clock is wrong by so many seconds."""

    monotonic = staticmethod(time.perf_counter)

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def time_ns(self) -> int:
        return time.time_ns() + self.seconds * 10**9


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_what_is_late_goes_by_the_servers_clock(run: Run, eyes: Eyes, seconds: int) -> None:
    """Timers come by it. A laptop whose clock is wrong neither raises an alarm nor keeps one back."""
    with clock.using(Off(seconds)):
        fill(eyes, "~1-0", 600)
        ran = run("timers")
        assert (ran.code, ran.err) == (0, "") and "\nin 9m" in ran.out
        fill(eyes, "~2-0", -600)
        ran = run("timers")
        assert ran.code == 1 and "10m" in ran.out and "late" in ran.out


def test_what_nobody_has_sorted_in_is_told(run: Run, eyes: Eyes) -> None:
    """A Producer alone: its delayed events wait in the inbox. That is wrong once they have waited there for longer than they
    do beside a worker that runs."""
    with Producer(eyes.server.name, namespace=eyes.keys.namespace) as producer:
        producer.publish(PaintingMade(), delay=3600)
        assert producer.flush(10)
    inbox = eyes.stream(LATER_INBOX)
    ((entry_id, fields),) = eyes.call("XRANGE", inbox, "-", "+")
    ran = run("timers")
    assert ran.code == 0 and "1 more is not listed yet: a second or two is usual" in ran.err
    eyes.call("DEL", inbox)
    eyes.call("XADD", inbox, f"{int(entry_id.partition(b'-')[0]) - 10_000}-0", *fields)
    ran = run("timers")
    assert ran.code == 1 and "1 more is not listed yet" in ran.err
