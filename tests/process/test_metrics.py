"""The metrics worker in real processes on a real server, under kill -9."""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from studio import Eyes, quiet
from waiting import until

from canvasbus import Producer
from canvasbus.events import MetricReported

UNIT = "from canvasbus_workers.metrics import worker\n"
DYING = """
import os
from canvasbus_workers.metrics import handlers
real, told = handlers.telling.told, []

def dying(*given):
    told.append(real(*given))
    if len(told) == 5:
        os.kill(os.getpid(), 9)
    return told[-1]

handlers.telling.told = dying
"""
RULES = """
[workers.metrics.rules.fid]
metric = "fid"
max = 30.0

[workers.metrics.rules.silence]
metric = "alive"
absent_seconds = 2.0
"""


async def test_three_workers_share_the_reports_and_two_are_killed(
    server_url: str,
    namespace: str,
    eyes: Eyes,
    start: Callable[..., Any],
    configure: Callable[[str], None],
) -> None:
    """Models, each with five reports that break a rule, five that end it, and one that is the last of its metric. More
    and more of them, until one worker has had enough and is killed with breaches that it has found and not told; one is
    killed while recoveries are told: each breach, each recovery and each silence is told once."""
    configure(RULES)
    where = ("--url", server_url, "--namespace", namespace)
    doomed, *others = [start(*where, unit=UNIT + more) for more in (DYING, "", "")]
    await until(lambda: all(program.said("worker joined") for program in (doomed, *others)), 60)

    models: list[str] = []

    def report(metric: str, value: float, names: list[str]) -> None:
        for name in names:
            bus.publish(MetricReported(model_name=name, metric=metric, value=value))
        assert bus.flush(10)

    def is_dead() -> bool:
        more = [f"m{len(models) + number}" for number in range(10)]
        models.extend(more)
        report("fid", 40.0, more)
        return doomed.process.poll() is not None

    with Producer(server_url, namespace=namespace) as bus:
        await until(is_dead, 60)
        assert doomed.process.returncode == -9
        report("fid", 40.0, models * 4)
        report("alive", 1.0, models)
        await until(lambda: eyes.count("metric.threshold_breached") >= len(models), 60)
        # What the killed worker held comes seconds later; after the end of the breach it would be one of its own.
        await quiet(eyes, event_type="metric.reported", timeout=60)
        report("fid", 10.0, models * 5)
        await until(lambda: eyes.count("metric.recovered") >= 3, 60)
        os.kill(others.pop().process.pid, 9)
    await until(lambda: eyes.count("metric.recovered") >= len(models), 60)
    await until(lambda: eyes.count("metric.threshold_breached") >= 2 * len(models), 60)
    for event_type in ("metric.reported", "metrics.report_due"):
        await quiet(eyes, event_type=event_type, timeout=60)
    breaches, ends = eyes.events("metric.threshold_breached"), eyes.events("metric.recovered")
    for rule, found in (("fid", breaches), ("silence", breaches), ("fid", ends)):
        assert Counter(event.model_name for event in found if event.rule == rule) == dict.fromkeys(models, 1)
    assert len(breaches) == 2 * len(models) and len(ends) == len(models)
    opened = {event.episode_id for event in breaches if event.rule == "fid"}
    assert opened == {event.episode_id for event in ends}
    assert eyes.dead("metrics") == []
