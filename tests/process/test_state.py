"""State and timers of real processes under kill -9: the README's worked example, taken at its word."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from studio import Eyes, quiet
from waiting import until

from canvasbus import Event, Producer, event

pytestmark = pytest.mark.long

README = (Path(__file__).parent.parent.parent / "README.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", README, re.DOTALL))
# One file in place of two: the fixture writes one.
UNIT = FILES["my_events.py"] + FILES["my_counts.py"].replace("from my_events import PictureScored\n", "")


@event("picture.scored", version=1, key="model_name")
class PictureScored(Event):
    model_name: str
    aesthetic: float


@event("pictures.counted", key="model_name")
class PicturesCounted(Event):
    model_name: str
    pictures: int


async def test_counts_are_exact_under_kill_9(
    server_url: str, namespace: str, eyes: Eyes, start: Callable[..., Any]
) -> None:
    """Three workers on two counters, one killed after the other while events come: no event is missing from a count, none
    is in it twice, and the timers that they set fire all the same."""
    where = ("--url", server_url, "--namespace", namespace)
    programs = [start(*where, unit=UNIT) for _ in range(3)]
    await until(lambda: all(program.said("worker joined") for program in programs), 30)
    models = ("a", "b")

    def count(model: str) -> int:
        raw = eyes.call("GET", eyes.keys.state("counts", model))
        return int(msgspec.msgpack.decode(raw[16:])["pictures"]) if raw else 0

    with Producer(server_url, namespace=namespace) as bus:
        for number in range(1200):
            bus.publish(PictureScored(model_name=models[number % 2], aesthetic=0.5))
            if number in (300, 700):
                assert bus.flush(10)
                await until(lambda number=number: sum(map(count, models)) > number - 200, 20)
                os.kill(programs.pop(0).process.pid, 9)
        assert bus.flush(20)
    await until(lambda: [count(model) for model in models] == [600, 600], 40)
    await quiet(eyes, event_type="picture.scored", timeout=20)
    last = {"a": 0, "b": 0}
    await until(
        lambda: (
            last.update({e.model_name: e.pictures for e in eyes.events("pictures.counted")})
            or last == {"a": 600, "b": 600}
        ),
        10,
    )
    assert [count(model) for model in models] == [600, 600]
