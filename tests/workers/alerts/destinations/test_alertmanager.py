"""What an Alertmanager is told. That a real one takes it, and does what is meant: `test_real_alertmanager.py`."""

from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
import trio
from workers.alerts.destinations.serving import LOCAL, Server, about, answering, tell

from canvasbus_workers.alerts.destinations.alert import labels
from canvasbus_workers.alerts.destinations.alertmanager import SAMPLE, alerts, endpoint

NOW = about().at + timedelta(seconds=3)


def ends(**changes: Any) -> dict[str, datetime]:
    """Severity → end, for each alert of a notification."""
    return {one["labels"]["severity"]: one["endsAt"] for one in alerts(about(**changes), NOW, 3600.0)}


def test_an_open_incident_is_held_and_its_milder_selves_are_over() -> None:
    """Severity is a label: an escalation that only opened the new alert would leave the old one open for ever."""
    over, held = about().at, NOW + timedelta(hours=1)
    assert ends(severity="info") == {"info": held}
    assert ends(severity="warning") == {"info": over, "warning": held}
    assert ends(severity="critical", kind="escalated") == {"info": over, "warning": over, "critical": held}


def test_a_resolved_incident_is_over_in_every_severity() -> None:
    """Also in those whose end was lost."""
    over = about().at
    assert ends(kind="resolved") == {"info": over, "warning": over, "critical": over}


def test_nothing_ends_before_it_starts() -> None:
    """Alertmanager would refuse it, for ever."""
    early = about().since - timedelta(hours=1)
    assert set(ends(kind="resolved", at=early).values()) == {about().since}


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


async def test_a_request(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the API, with the authorization of the settings."""
    monkeypatch.setenv("AM_KEY", "Bearer sesame")
    server = await Server(answering(200)).start(nursery)
    await tell({"kind": "alertmanager", "url": server.url, "authorization_env": "AM_KEY", **LOCAL})
    (request,) = server.requests
    assert request.target == "/hook/api/v2/alerts"
    assert request.headers["authorization"] == "Bearer sesame"
    assert request.headers["content-type"] == "application/json"
    assert [one["labels"]["severity"] for one in msgspec.json.decode(request.body)] == ["info", "warning", "critical"]
