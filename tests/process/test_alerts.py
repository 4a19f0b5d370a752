"""The alerts worker in real processes on a real server, under kill -9."""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from studio import Eyes, quiet
from waiting import until

from canvasbus import Producer
from canvasbus.events import DriftDetected, DriftResolved
from canvasbus_workers.alerts import events  # noqa: F401  the types are known

UNIT = "from canvasbus_workers.alerts import worker\n"
MODELS = [f"m{number}" for number in range(40)]


async def test_three_workers_share_a_storm_and_two_are_killed(
    server_url: str,
    namespace: str,
    eyes: Eyes,
    start: Callable[..., Any],
    configure: Callable[[str], None],
) -> None:
    """Forty models with five episodes each, the debounce of each a timer, and two workers killed in the midst of it: one
    incident a model, opened once and resolved once, and one notification for each of these, in every incident in order."""
    configure("[workers.alerts]\nfor_seconds = 0.5\nburst = 1000\nrate_per_minute = 6000\n")
    where = ("--url", server_url, "--namespace", namespace)
    programs = [start(*where, unit=UNIT) for _ in range(3)]
    await until(lambda: all(program.said("worker joined") for program in programs), 60)
    with Producer(server_url, namespace=namespace) as bus:
        for number in range(200):
            fields = {"drift_score": 1.0, "drift_type": "ks", "episode_id": f"e{number // 40}"}
            bus.publish(DriftDetected(model_name=MODELS[number % 40], **fields))
        assert bus.flush(10)
        await until(lambda: eyes.count("incident.opened") >= 3, 60)
        os.kill(programs.pop(0).process.pid, 9)
        await until(lambda: eyes.count("incident.opened") == 40, 60)
        # What the killed worker held comes seconds later; after the end of its model's other episodes it would be an
        # incident of its own.
        await quiet(eyes, "alerts", event_type="drift.detected", timeout=60)
        for number in range(200):
            bus.publish(DriftResolved(model_name=MODELS[number % 40], episode_id=f"e{number // 40}"))
        assert bus.flush(10)
        await until(lambda: eyes.count("incident.resolved") >= 3, 60)
        os.kill(programs.pop(0).process.pid, 9)
    await until(lambda: eyes.count("alert.notification_due") == 80, 60)
    await quiet(eyes, event_type="alert.notification_due", timeout=30)
    for what in ("incident.opened", "incident.resolved"):
        assert Counter(event.model_name for event in eyes.events(what)) == dict.fromkeys(MODELS, 1)
    told: dict[str, list[tuple[int, str]]] = {}
    for event in eyes.events("alert.notification_due"):
        told.setdefault(event.notification.model_name, []).append((event.number, event.notification.kind))
    assert told == {model: [(1, "opened"), (2, "resolved")] for model in MODELS}
    assert eyes.dead("alerts") == []
