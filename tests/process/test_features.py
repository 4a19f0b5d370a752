"""The features worker in real processes on a real server, under kill -9."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest
from studio import Eyes, quiet
from waiting import until

from canvasbus import Producer, clock
from canvasbus.events import FeaturesComputed
from canvasbus_workers.features import FeatureReader
from canvasbus_workers.features.online import OnlineKeys

UNIT = "from canvasbus_workers.features import worker\n"
DYING = """
import os
from canvasbus_workers.features.sinks.{kind} import {sink}
real = {sink}.write

async def dying(self, rows):
    await real(self, rows)
    os.kill(os.getpid(), 9)

{sink}.write = dying
"""
ENTITIES = [f"e{number}" for number in range(50)]


@pytest.mark.long
async def test_two_of_three_workers_are_killed(
    server_url: str,
    namespace: str,
    eyes: Eyes,
    start: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configure: Callable[[str], None],
) -> None:
    """One dies when it has written a batch to the first of its stores, one when it has written to both and acknowledged
    nothing: the log has every row, the history has each once, and online is each entity's latest."""
    path = tmp_path / "features.db"
    sinks = '[workers.features.sinks.online]\nkind = "redis"\n[workers.features.sinks.log]\nkind = "sqlite"\n'
    configure(f"{sinks}path = {json.dumps(str(path))}\n")
    monkeypatch.setenv("CANVASBUS_URL", server_url)
    where = ("--url", server_url, "--namespace", namespace)
    doomed = [
        start(*where, unit=UNIT + DYING.format(kind="redis", sink="RedisSink")),
        start(*where, unit=UNIT + DYING.format(kind="sqlite", sink="SqliteSink")),
    ]
    third = start(*where, unit=UNIT)
    await until(lambda: all(program.said("worker joined") for program in (*doomed, third)), 60)
    made: list[str] = []
    began = clock.now() - timedelta(hours=1)

    def both_are_dead() -> bool:
        for number in range(len(made), len(made) + 10):
            row = FeaturesComputed(
                feature_set="scores",
                entity=ENTITIES[number % len(ENTITIES)],
                event_time=began + timedelta(milliseconds=number),
                values={"number": float(number)},
            )
            made.append(bus.publish(row).hex)
        assert bus.flush(10)
        return all(program.process.poll() == -9 for program in doomed)

    with Producer(server_url, namespace=namespace) as bus:
        await until(both_are_dead, 60)
    await quiet(eyes, "features", event_type="features.computed", timeout=60)
    with closing(connect(path)) as log:
        logged = [event_id for (event_id,) in log.execute("SELECT event_id FROM rows")]
    assert sorted(logged) == sorted(made)
    history = eyes.call("XRANGE", OnlineKeys(namespace, "scores").history, "-", "+")
    seen = Counter(dict(zip(fields[::2], fields[1::2], strict=True))[b"event_id"].decode() for _, fields in history)
    assert seen == dict.fromkeys(made, 1)
    with FeatureReader(server_url, namespace) as online:
        found = online.get("scores", ENTITIES)
    latest = {ENTITIES[number % len(ENTITIES)]: float(number) for number in range(len(made))}
    assert {row.entity: row.values["number"] for row in found if row is not None} == latest
    assert eyes.dead("features") == []
