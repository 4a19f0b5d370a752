"""What an Alertmanager is told. That a real one takes it, and does what is meant: `test_real_alertmanager.py`."""

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import pytest
import trio
from serving import Server, answering
from trio.testing import MockClock
from workers.alerts.destinations.telling import LOCAL, about, tell

from canvasbus_workers.alerts.destinations import Undelivered
from canvasbus_workers.alerts.destinations.alert import labels
from canvasbus_workers.alerts.destinations.alertmanager import SAMPLE, Open, alerts, endpoint, question

NOW = about().at + timedelta(seconds=3)
OVER, HELD = about().at, NOW + timedelta(hours=1)


def open_as(*severities: str) -> list[Open]:
    """What an Alertmanager says is open of the incident."""
    return [Open(labels(about(severity=severity))) for severity in severities]


def ends(*open_now: str, **changes: Any) -> dict[str, datetime]:
    """Severity → end, for each alert of a notification."""
    found = alerts(about(**changes), open_as(*open_now), NOW, 3600.0)
    return {one["labels"]["severity"]: one["endsAt"] for one in found}


def test_an_open_incident_is_held_and_its_milder_self_is_over() -> None:
    """Severity is a label: an escalation that only opened the new alert would leave the old one open for ever."""
    assert ends(severity="warning") == {"warning": HELD}
    assert ends("warning", kind="escalated") == {"warning": OVER, "critical": HELD}
    assert ends("info", "warning", "critical", kind="escalated") == {"info": OVER, "warning": OVER, "critical": HELD}


def test_a_resolved_incident_is_over_in_every_severity_that_is_open() -> None:
    """Also in those whose end was lost; and its own, when nobody heard that it was opened."""
    assert ends("warning", "critical", kind="resolved") == {"warning": OVER, "critical": OVER}
    assert ends(kind="resolved") == {"critical": OVER}


@pytest.mark.parametrize(
    ("kind", "asks"), [("opened", 0), ("repeated", 0), ("test", 0), ("escalated", 1), ("resolved", 1)]
)
def test_what_is_open_is_asked_where_it_matters(kind: str, asks: int) -> None:
    """By the name of the incident, quoted as a matcher and for a URL."""
    found = question(about(kind=kind, incident_id='a"b\\c&d'))
    assert (found is not None) == asks
    if found is not None:
        filters = [("filter", 'alertname="CanvasbusIncident"'), ("filter", 'incident_id="a\\"b\\\\c&d"')]
        assert parse_qsl(found.query) == filters


def test_nothing_ends_before_it_starts() -> None:
    """Alertmanager would refuse it, for ever."""
    early = about().since - timedelta(hours=1)
    assert ends(kind="resolved", at=early) == {"critical": about().since}


def test_a_sample_is_over_by_itself() -> None:
    """Nobody resolves a test."""
    assert ends(kind="test", severity="info") == {"info": NOW + timedelta(seconds=SAMPLE)}


def test_labels_are_the_incident_and_names_are_prometheus_s() -> None:
    """The same labels from opening to end; empty values, which mean none, are left out."""
    first, later = (
        about(labels={"team-a": "x", "9": "y", "empty": ""}),
        about(labels={"team-a": "x", "9": "y"}, title="!"),
    )
    assert labels(first) == labels(later)
    assert labels(first)["team_a"] == "x"
    assert labels(first)["_9"] == "y"
    assert "model_name" not in labels(about(model_name="", labels={}))
    assert labels(about(labels={"incident_id": "forged", "alertname": "forged"}))["alertname"] == "CanvasbusIncident"


@pytest.mark.parametrize("url", ["http://am:9093", "http://am:9093/", "http://am:9093/api/v2/alerts"])
def test_the_front_page_is_enough(url: str) -> None:
    """The path of the API is ours to know."""
    assert endpoint(url) == "http://am:9093/api/v2/alerts"
    assert endpoint("https://host/am/") == "https://host/am/api/v2/alerts"


SETTINGS = {"kind": "alertmanager", "authorization_env": "AM_KEY", **LOCAL}


async def test_an_escalation_is_two_requests(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question and what follows from its answer, with the authorization of the settings."""
    monkeypatch.setenv("AM_KEY", "Bearer sesame")
    known = msgspec.json.encode([{"labels": labels(about(severity="warning")), "status": {"state": "active"}}])
    server = await Server(answering(200, known)).start(nursery)
    await tell({"url": server.url, **SETTINGS}, about(kind="escalated"))
    asked, told = server.requests
    assert (asked.method, asked.target.partition("?")[0]) == ("GET", "/hook/api/v2/alerts")
    assert (told.method, told.target) == ("POST", "/hook/api/v2/alerts")
    assert asked.headers["authorization"] == told.headers["authorization"] == "Bearer sesame"
    assert told.headers["content-type"] == "application/json"
    assert [one["labels"]["severity"] for one in msgspec.json.decode(told.body)] == ["warning", "critical"]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'[{"labels": 1}]', b""])
async def test_an_answer_that_is_none(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """Nothing is posted when it is not known what is open."""
    monkeypatch.setenv("AM_KEY", "Bearer sesame")
    server = await Server(answering(200, body)).start(nursery)
    with pytest.raises(Undelivered, match=r"^ops: its answer is not what it was asked for$"):
        await tell({"url": server.url, **SETTINGS}, about(kind="resolved"))
    assert [request.method for request in server.requests] == ["GET"]


async def test_both_requests_have_one_deadline(
    nursery: trio.Nursery, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow answer leaves the second request less time."""
    monkeypatch.setenv("AM_KEY", "Bearer sesame")

    async def script(stream: trio.abc.Stream) -> None:
        mock_clock.jump(3)
        if len(server.requests) == 1:
            await answering(200, b"[]")(stream)
        else:
            await trio.sleep_forever()

    server = await Server(script).start(nursery)
    with pytest.raises(Undelivered, match="no answer within 5 s"):
        await tell({"url": server.url, "timeout_seconds": 5, **SETTINGS}, about(kind="resolved"))
    assert trio.current_time() == pytest.approx(6)
