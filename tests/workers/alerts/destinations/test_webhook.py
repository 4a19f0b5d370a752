"""Requests to any endpoint, verified by the reference library of Standard Webhooks and by the CloudEvents SDK."""

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from cloudevents.core.formats.json import JSONFormat
from serving import Request, Server, answering
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from workers.alerts.destinations.telling import LOCAL, about, tell

from canvasbus import clock
from canvasbus_workers.alerts.destinations.alert import fingerprint, webhook_body
from canvasbus_workers.alerts.destinations.webhook import Key, form, signed
from canvasbus_workers.outside.secret import Secret

OLD, NEW, STRANGE = ("whsec_" + base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3))


async def sent(nursery: trio.Nursery, notification: Any = None, **settings: Any) -> Request:
    """The request that arrives."""
    server = await Server(answering(200)).start(nursery)
    await tell({"kind": "webhook", "url": server.url, **LOCAL, **settings}, notification)
    (request,) = server.requests
    return request


@pytest.mark.parametrize("body", ["cloudevents", "alertmanager"])
async def test_signatures_verify_during_and_after_a_rotation(nursery: trio.Nursery, tmp_path: Path, body: str) -> None:
    """Both keys sign: a receiver that knows the old one or the new one accepts it, one that knows another does not."""
    (tmp_path / "both").write_text(f"{NEW}\n{OLD}\n")
    request = await sent(nursery, body=body, secret_file=str(tmp_path / "both"))
    assert len(request.headers["webhook-signature"].split()) == 2
    for key in (OLD, NEW):
        Webhook(key).verify(request.body, dict(request.headers))
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(STRANGE).verify(request.body, dict(request.headers))
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(NEW).verify(request.body.replace(b"StyleGAN", b"StyleGUN"), dict(request.headers))


async def test_after_a_rotation_the_old_key_is_worth_nothing(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One key, one signature; from a variable, this time."""
    monkeypatch.setenv("PAGER_KEY", NEW)
    request = await sent(nursery, secret_env="PAGER_KEY")
    Webhook(NEW).verify(request.body, dict(request.headers))
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(request.body, dict(request.headers))


def test_what_was_recorded_is_refused_later() -> None:
    """The timestamp is signed: neither an old request nor one with a new timestamp verifies."""
    then = int((datetime.now(UTC) - timedelta(minutes=6)).timestamp())
    headers = signed("k-1", then, b"{}", [Key(Secret(NEW))])
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(NEW).verify(b"{}", dict(headers))
    headers["webhook-timestamp"] = str(int(datetime.now(UTC).timestamp()))
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Webhook(NEW).verify(b"{}", dict(headers))


class Fixed:
    """A clock that shows one time."""

    def __init__(self, nanoseconds: int) -> None:
        self.nanoseconds = nanoseconds

    def time_ns(self) -> int:
        return self.nanoseconds

    def monotonic(self) -> float:
        return self.nanoseconds / 1e9


def test_an_attempt_has_its_own_time_and_the_same_id() -> None:
    """A receiver drops what it has had by the id, and a retry is not refused for its age."""
    make = form("ops", "cloudevents", [Key(Secret(NEW))]).make
    found = []
    for second in (1_000, 2_000):
        with clock.using(Fixed(second * 10**9 + 999_999_999)):
            found.append(make(about(), b""))
    first, second_ = found
    assert first.headers["webhook-timestamp"] == "1000"
    assert second_.headers["webhook-timestamp"] == "2000"
    assert first.headers["webhook-id"] == second_.headers["webhook-id"] == "0192-opened-ops"
    assert first.headers["webhook-signature"] != second_.headers["webhook-signature"]
    assert first.body == second_.body


@pytest.mark.parametrize("name", ["a.b", "a b", "ä", "a\r\nX-Evil: 1", "1:ops/2", "x" * 300])
def test_any_key_makes_an_id(name: str) -> None:
    """Without dots, which delimit what is signed, and nothing that a header cannot hold; different keys, different ids."""
    headers = signed(name, int(clock.time()), b"{}", [Key(Secret(NEW))])
    assert headers["webhook-id"].isascii() and headers["webhook-id"].isprintable()
    assert "." not in headers["webhook-id"] and " " not in headers["webhook-id"]
    assert headers["webhook-id"] != signed(name + ".", 0, b"", [])["webhook-id"]
    Webhook(NEW).verify(b"{}", headers)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("whsec_not base64!", "is not whsec_ and base64"),
        ("whsec_" + base64.b64encode(b"short").decode(), "has 5 bytes"),
        ("whsec_", "has 0 bytes"),
        ("päss", "is not whsec_ and base64"),
    ],
)
def test_a_key_that_is_none(text: str, wrong: str) -> None:
    """It is refused at start, and not repeated."""
    with pytest.raises(ValueError, match=wrong) as caught:
        Key(Secret(text))
    assert text.removeprefix("whsec_") == "" or text.removeprefix("whsec_") not in str(caught.value)


@pytest.mark.parametrize("text", [NEW, NEW.removeprefix("whsec_"), NEW.rstrip("=")])
def test_keys_come_with_and_without_trimmings(text: str) -> None:
    """Prefix and padding are optional, as for the reference library."""
    headers = signed("k", int(clock.time()), b"{}", [Key(Secret(text))])
    Webhook(text).verify(b"{}", headers)


async def test_without_keys_nothing_is_signed(nursery: trio.Nursery) -> None:
    """The id is there all the same."""
    request = await sent(nursery)
    assert "webhook-signature" not in request.headers
    assert request.headers["webhook-id"] == "0192-opened-ops"


@pytest.mark.parametrize("kind", ["opened", "escalated", "repeated", "resolved", "test"])
async def test_a_cloud_event_is_read_by_the_sdk(nursery: trio.Nursery, kind: str) -> None:
    """Every attribute, and the fields of the notification as data."""
    request = await sent(nursery, about(kind=kind))
    assert request.headers["content-type"] == "application/cloudevents+json"
    event = from_structured_event(HTTPMessage(dict(request.headers), request.body), JSONFormat())
    attributes = event.get_attributes()
    assert attributes["id"] == "0192-opened-ops"
    assert attributes["type"] == f"alert.{kind}"
    assert attributes["source"] == "canvasbus/alerts"
    assert attributes["subject"] == "StyleGAN-Canvas-v3"
    assert attributes["time"] == about().at
    assert attributes["correlationid"] == str(about().correlation_id)
    assert msgspec.convert(event.get_data(), type(about())) == about(kind=kind)


async def test_a_cloud_event_about_no_model_has_no_subject(nursery: trio.Nursery) -> None:
    """The specification has no empty subjects."""
    request = await sent(nursery, about(model_name=""))
    assert "subject" not in msgspec.json.decode(request.body)


def test_the_body_of_an_alertmanager() -> None:
    """The fields of version 4, and one alert, as a receiver that was written for Alertmanager expects them."""
    body = msgspec.json.decode(msgspec.json.encode(webhook_body("ops", about())))
    assert body["version"] == "4"
    assert (body["status"], body["receiver"], body["truncatedAlerts"]) == ("firing", "ops", 0)
    (alert,) = body["alerts"]
    assert alert["labels"] == {
        "alertname": "CanvasbusIncident",
        "group": "studio",
        "incident_id": "StyleGAN-Canvas-v3/0123456789ab",
        "model_name": "StyleGAN-Canvas-v3",
        "severity": "critical",
    }
    assert alert["startsAt"] == "2026-11-26T10:00:00Z"
    assert alert["endsAt"] == "0001-01-01T00:00:00Z"
    assert alert["annotations"]["summary"] == about().title
    assert alert["generatorURL"] == "https://studio.example/m?a=1&b=2"
    assert body["groupLabels"].items() <= body["commonLabels"].items() == alert["labels"].items()
    resolved = webhook_body("ops", about(kind="resolved"))
    assert resolved["status"] == resolved["alerts"][0]["status"] == "resolved"
    assert resolved["alerts"][0]["endsAt"] == about().at
    escalated = webhook_body("ops", about(kind="escalated", severity="warning"))
    assert escalated["groupKey"] == resolved["groupKey"] == body["groupKey"]  # of the incident


def test_the_fingerprint_is_fnv_1a() -> None:
    """Known values of FNV-1a, 64 bits; that it is Alertmanager's own is tested with a real one."""
    assert fingerprint({}) == "cbf29ce484222325"
    assert fingerprint({"b": "2", "a": "1"}) == fingerprint({"a": "1", "b": "2"}) != fingerprint({"a": "12", "b": ""})
