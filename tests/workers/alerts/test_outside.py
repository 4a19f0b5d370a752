"""From a signal on a real server to requests at real HTTP servers: worker, settings and destinations together."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from serving import Server, answering
from studio import Eyes, running
from waiting import until

from canvasbus.config import load
from canvasbus.events import DriftDetected, DriftResolved
from canvasbus.operate.alerts import desk
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus_workers import alerts
from canvasbus_workers.alerts.sampling import send_samples

TABLE = (
    '[workers.alerts.destinations.{name}]\nkind = "{kind}"\nurl = "{url}"\nplain_http = true\nallow = ["127.0.0.1"]\n'
)


def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **urls: str) -> None:
    kinds = {"hook": "webhook", "chat": "slack"}
    path = tmp_path / "canvasbus.toml"
    path.write_text("".join(TABLE.format(name=name, kind=kinds[name], url=url) for name, url in urls.items()))
    monkeypatch.setenv("CANVASBUS_CONFIG", str(path))


async def test_from_a_drift_to_requests(
    server_url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The webhook gets both notifications as CloudEvents, under the ids of their events and with the drift's correlation;
    Slack, which says that the webhook is gone, is called once and named in the state."""
    eyes, link = Eyes(server_url, namespace), BlockingLink(open_server(server_url))
    async with trio.open_nursery() as nursery:
        hook = await Server(answering(204)).start(nursery)
        chat = await Server(answering(410)).start(nursery)
        configure(tmp_path, monkeypatch, hook=hook.url, chat=chat.url)
        drifted = DriftDetected(model_name="StyleGAN", drift_score=0.5, drift_type="ks", episode_id="e1")
        async with running(server_url, alerts.worker, namespace=namespace) as bus:
            await bus.publish(drifted)
            await until(lambda: len(hook.requests) == 1 and len(chat.requests) == 1, 20)
            await until(lambda: list(link.run(desk([eyes.keys])).disabled) == ["chat"], 20)
            await bus.publish(DriftResolved(model_name="StyleGAN", episode_id="e1"))
            await until(lambda: len(hook.requests) == 2, 20)
        nursery.cancel_scope.cancel()
    bodies: list[dict[str, Any]] = [json.loads(request.body) for request in hook.requests]
    assert [body["type"] for body in bodies] == ["alert.opened", "alert.resolved"]
    assert {body["correlationid"] for body in bodies} == {str(drifted.correlation_id)}
    due = {str(envelope.id): event for envelope, event in eyes.entries("alert.notification_due")}
    assert [due[body["id"]].notification.kind for body in bodies] == ["opened", "resolved"]
    assert len(chat.requests) == 1 and eyes.dead("alerts") == []
    eyes.close()
    link.close()


def test_samples_reach_real_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`canvasbus alerts test`: one takes it, one refuses it, and the refusal says whose move is next."""
    found: dict[str, str | None] = {}
    asked: list[Server] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            hook = await Server(answering(204)).start(nursery)
            chat = await Server(answering(404, b"no_service")).start(nursery)
            asked.extend((hook, chat))
            configure(tmp_path, monkeypatch, hook=hook.url, chat=chat.url)
            found.update(await trio.to_thread.run_sync(send_samples, load()))
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert found["hook"] is None
    assert found["chat"] is not None and "it refuses" in found["chat"] and "404" in found["chat"]
    assert [len(server.requests) for server in asked] == [1, 1]
    assert json.loads(asked[0].requests[0].body)["type"] == "alert.test"
