"""Debian's Alertmanager takes what it is told, tells its receivers what is meant, and its own words are those of our bodies."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpcore2
import msgspec
import pytest
import trio
from serving import Server, answering
from waiting import until
from workers.alerts.destinations.telling import LOCAL, about, tell

from canvasbus import clock
from canvasbus.worker import Reject
from canvasbus_workers.alerts.destinations.alert import fingerprint, webhook_body

pytestmark = pytest.mark.interop
BINARY = "prometheus-alertmanager"
CONFIG = """
route:
  receiver: ops
  group_by: [incident_id]
  group_wait: 0s
  group_interval: 1s
  repeat_interval: 1h
receivers:
  - name: ops
    webhook_configs: [{{url: "{url}", send_resolved: true}}]
"""


@dataclass
class Alertmanager:
    """A real one, and what it tells its receiver."""

    url: str
    receiver: Server

    async def tell(self, **changes: Any) -> None:
        """A notification, by our destination."""
        now = clock.now()
        times = {"since": now - timedelta(minutes=5), "at": now} | changes
        await tell({"kind": "alertmanager", "url": self.url, **LOCAL}, about(**times))

    async def alerts(self, query: str = "") -> list[dict[str, Any]]:
        """What it holds for open."""
        async with httpcore2.AsyncConnectionPool() as pool:
            answer = await pool.request("GET", f"{self.url}/api/v2/alerts?{query}")
        found: list[dict[str, Any]] = msgspec.json.decode(answer.content)
        return found

    def told(self) -> list[dict[str, Any]]:
        """The bodies that its receiver got."""
        return [msgspec.json.decode(request.body) for request in self.receiver.requests]

    def states(self) -> list[dict[str, str]]:
        """Severity → status, for each of them."""
        return [{one["labels"]["severity"]: one["status"] for one in body["alerts"]} for body in self.told()]


@pytest.fixture
async def alertmanager(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Alertmanager]:
    """Started on a free loopback port, without its cluster, and ended with the test."""
    if shutil.which(BINARY) is None:
        raise RuntimeError(f"{BINARY} is not installed: apt install {BINARY}")
    receiver = await Server(answering(200)).start(nursery)
    (tmp_path / "alertmanager.yml").write_text(CONFIG.format(url=receiver.url))
    process = await trio.lowlevel.open_process(
        [BINARY, f"--config.file={tmp_path}/alertmanager.yml", f"--storage.path={tmp_path}/data",
         "--web.listen-address=127.0.0.1:0", "--cluster.listen-address="],
        stderr=-1,
    )  # fmt: skip
    assert process.stderr is not None
    said = b""
    try:
        with trio.fail_after(30):
            while b'msg="Listening on" address=' not in said or not said.endswith(b"\n"):
                some = await process.stderr.receive_some()
                assert some, said.decode()
                said += some
        address = said.partition(b'msg="Listening on" address=')[2].split()[0].decode()

        async def drain(source: Any) -> None:
            async for _ in source:
                pass

        nursery.start_soon(drain, process.stderr)
        found = Alertmanager(f"http://{address}", receiver)
        yield found
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()


async def test_an_incident_from_opening_to_end(alertmanager: Alertmanager) -> None:
    """Opened, repeated, escalated, resolved: one alert at a time, and its receiver is told each change once."""
    since = clock.now() - timedelta(minutes=5)
    await alertmanager.tell(severity="warning", since=since)
    await until(lambda: alertmanager.states() == [{"warning": "firing"}])
    (alert,) = await alertmanager.alerts()
    assert alert["labels"]["severity"] == "warning"
    assert alert["annotations"]["summary"] == about().title
    assert alert["endsAt"] > f"{clock.now() + timedelta(hours=23):%Y-%m-%dT%H}"  # not ended by resolve_timeout

    await alertmanager.tell(kind="repeated", severity="warning", since=since)
    assert len(await alertmanager.alerts()) == 1

    await alertmanager.tell(kind="escalated", severity="critical", since=since)
    await until(lambda: {"critical": "firing", "warning": "resolved"} in alertmanager.states())
    assert [one["labels"]["severity"] for one in await alertmanager.alerts()] == ["critical"]

    await alertmanager.tell(kind="resolved", severity="critical", since=since)
    await until(lambda: alertmanager.states()[-1] == {"critical": "resolved"})
    assert await alertmanager.alerts() == []
    assert len(alertmanager.told()) == 3


async def test_the_end_of_what_it_never_heard_of_is_told_to_nobody(alertmanager: Alertmanager) -> None:
    """So every severity may be ended with every notification."""
    await alertmanager.tell(kind="resolved", incident_id="lost")
    await alertmanager.tell(incident_id="other")
    await until(lambda: alertmanager.states() != [])
    assert alertmanager.states() == [{"critical": "firing"}]
    assert [one["labels"]["incident_id"] for one in await alertmanager.alerts()] == ["other"]


async def test_two_incidents_are_two_alerts(alertmanager: Alertmanager) -> None:
    """Of one model, too; ending one leaves the other."""
    await alertmanager.tell(incident_id="first")
    await alertmanager.tell(incident_id="second")
    assert len(await alertmanager.alerts()) == 2
    await alertmanager.tell(incident_id="first", kind="resolved")
    assert [one["labels"]["incident_id"] for one in await alertmanager.alerts()] == ["second"]


async def test_our_body_of_version_4_is_its_own(alertmanager: Alertmanager) -> None:
    """The same fields with the same types; the same labels and annotations; and the fingerprint, to the digit."""
    now = clock.now()
    opened = about(since=now - timedelta(minutes=5), at=now, severity="info", labels={"group": "stüdio", "team-a": "x"})
    await tell({"kind": "alertmanager", "url": alertmanager.url, **LOCAL}, opened)
    await until(lambda: alertmanager.told() != [])
    (theirs,) = alertmanager.told()
    ours = msgspec.json.decode(msgspec.json.encode(webhook_body("ops", opened)))
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in theirs.items()}
    (our_alert,), (their_alert,) = ours["alerts"], theirs["alerts"]
    assert our_alert.keys() == their_alert.keys()
    for key in ("status", "labels", "annotations", "fingerprint", "generatorURL"):
        assert our_alert[key] == their_alert[key]
    for key in ("version", "status", "receiver", "commonLabels", "commonAnnotations", "truncatedAlerts"):
        assert ours[key] == theirs[key]
    (held,) = await alertmanager.alerts()
    assert held["fingerprint"] == fingerprint(held["labels"])


async def test_a_sample_and_a_wrong_path(alertmanager: Alertmanager) -> None:
    """A test is an alert that is over in minutes; an API that is not there is a dead letter."""
    await alertmanager.tell(kind="test")
    (alert,) = await alertmanager.alerts()
    assert alert["endsAt"] < f"{clock.now() + timedelta(minutes=10):%Y-%m-%dT%H:%M:%S}"
    with pytest.raises(Reject, match=r"^ops answers 404"):
        await tell({"kind": "alertmanager", "url": f"{alertmanager.url}/nowhere", **LOCAL})
