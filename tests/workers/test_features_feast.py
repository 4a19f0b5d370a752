"""The sink of Feast's feature server, against a server of this test that answers as Feast's does."""

import json
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from struct import pack
from typing import Any

import msgspec
import pytest
import trio
from serving import Server, answering, hang

from canvasbus.errors import ConfigError
from canvasbus.events import FloatArray
from canvasbus_workers.features.edge import opened
from canvasbus_workers.features.rows import FeatureRow
from canvasbus_workers.features.settings import FeastSettings
from canvasbus_workers.features.sinks import Away, RowsRefused
from canvasbus_workers.features.sinks.feast import FeastSink, pushes
from canvasbus_workers.outside.secret import Secret

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VIEWS = {
    "drift": {"push_source": "drift_push", "entity": "model", "columns": {"ks:x": "ks_x"}},
    "a": {"push_source": "a_push"},
}


def settings(url: str = "http://x", **options: Any) -> FeastSettings:
    return msgspec.convert({"kind": "feast", "url": url, "views": VIEWS, **options}, FeastSettings)


def row(entity: str = "e", seconds: float = 0, view: str = "a", **options: Any) -> FeatureRow:
    moment = NOW + timedelta(seconds=seconds)
    return FeatureRow(view=view, entity=entity, event_time=moment, event_id="0" * 32, **options)


PUSH = "POST /feast/push"


@pytest.fixture
async def feast(nursery: trio.Nursery) -> Server:
    """Answers 200, unless a test says otherwise."""
    return await Server(answering(200, b"null"), keep=True).start(nursery)


def test_rows_with_the_same_columns_are_one_request_in_the_order_of_their_times() -> None:
    """Join key, time and features as columns; renamed where that is said; nothing of feature sets that nobody named."""
    packed = FloatArray(shape=(2,), data=pack("<2f", 1, 2))
    rows = [
        row("late", 2, values={"n": 1.0}),
        row("m", view="drift", values={"ks:x": 0.5, "effect": 1.0}),
        row("early", 1, values={"n": 2.0}),
        row("wide", 0, values={"n": 3.0}, vectors={"v": packed}),
        row("x", view="unknown", values={"n": 4.0}),
    ]
    made = [(json.loads(push.body), push.positions) for push in pushes(rows, settings(to="online_and_offline"))]
    assert {body["to"] for body, _ in made} == {"online_and_offline"}
    assert [(body["push_source_name"], body["df"], list(at)) for body, at in made] == [
        ("drift_push", {"model": ["m"], "ks_x": [0.5], "event_timestamp": ["2026-01-01T00:00:00+00:00"]}, [1]),
        ("a_push", {"entity": ["wide"], "n": [3.0], "v": [[1.0, 2.0]], "event_timestamp": ["2026-01-01T00:00:00+00:00"]}, [3]),
        (
            "a_push",
            {
                "entity": ["early", "late"],
                "n": [2.0, 1.0],
                "event_timestamp": ["2026-01-01T00:00:01+00:00", "2026-01-01T00:00:02+00:00"],
            },
            [2, 0],
        ),
    ]  # fmt: skip


async def test_it_posts_to_push(feast: Server) -> None:
    """Below the path of the URL, as JSON, with the header that it was given, over one connection."""
    sink = FeastSink("feast", settings(f"{feast.base}/feast"), Secret("Bearer x"))
    await sink.write([row(values={"n": 1.0})])
    await sink.write([row(values={"n": 1.0})])
    await sink.aclose()
    assert [request.target for request in feast.requests] == ["/feast/push"] * 2
    assert feast.connections == 1
    headers, body = feast.requests[0].headers, feast.requests[0].json
    assert (headers["content-type"], headers["authorization"]) == ("application/json", "Bearer x")
    assert body["df"]["n"] == [1.0]


@pytest.mark.parametrize("status", [307, 401, 403, 404, 429, 503])
async def test_what_is_not_the_rows_fault_is_tried_again(feast: Server, status: int) -> None:
    """Load, a wrong key, a wrong address and a redirect, with what the server said."""
    feast.on(PUSH, answering(status, b"not now"))
    sink = FeastSink("feast", settings(f"{feast.base}/feast"))
    with pytest.raises(Away, match=f"feast: Feast answered {status} not now"):
        await sink.write([row(values={"n": 1.0})])
    await sink.aclose()


async def test_what_is_the_rows_fault_costs_those_rows(feast: Server) -> None:
    """The requests beside it are sent."""
    feast.on(PUSH, answering(422, b"no such feature"), answering(200))
    sink = FeastSink("feast", settings(f"{feast.base}/feast"))
    with pytest.raises(RowsRefused) as caught:
        await sink.write([row("good", 1, values={"n": 1.0}), row("bad", 0, values={"m": 1.0})])
    await sink.aclose()
    assert caught.value.refused == {1: "feast: Feast answered 422 no such feature"}
    assert len(feast.requests) == 2


async def test_an_unknown_push_source_is_not_the_rows_fault(feast: Server) -> None:
    """Feast answers it with 422; the registry or the settings must change."""
    feast.on(PUSH, answering(422, b'{"class": "PushSourceNotFoundException"}'))
    sink = FeastSink("feast", settings(f"{feast.base}/feast"))
    with pytest.raises(Away, match="PushSourceNotFound"):
        await sink.write([row(values={"n": 1.0})])
    await sink.aclose()


async def test_rows_that_feast_fails_over_are_found_one_by_one(feast: Server) -> None:
    """A column that is missing is answered with 500: it counts as an attempt of that row, and of no other."""
    feast.on(PUSH, answering(500, b"all"), answering(200, b""), answering(500, b"this"), answering(422, b"that"))
    sink = FeastSink("feast", settings(f"{feast.base}/feast"))
    with pytest.raises(RowsRefused) as caught:
        await sink.write([row(str(at), at, values={"n": 1.0}) for at in range(3)])
    await sink.aclose()
    assert [request.json["df"]["entity"] for request in feast.requests] == [["0", "1", "2"], ["0"], ["1"], ["2"]]
    assert caught.value.failed == {1: "feast: Feast answered 500 this"}
    assert caught.value.refused == {2: "feast: Feast answered 422 that"}


async def test_nobody_there_is_tried_again() -> None:
    """One line, and no more."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        sink = FeastSink("feast", settings(f"http://127.0.0.1:{unused.getsockname()[1]}"))
        with pytest.raises(Away, match=r"^feast: 127.0.0.1:\d+ cannot be connected to: Connection refused$"):
            await sink.write([row(values={"n": 1.0})])
        await sink.aclose()


async def test_an_answer_that_does_not_come_is_tried_again(feast: Server) -> None:
    """Within the deadline."""
    feast.script = hang
    sink = FeastSink("feast", settings(f"{feast.base}/feast", timeout_seconds=0.05))
    with pytest.raises(Away, match=r"^feast: no answer within 0.05 s$"):
        await sink.write([row(values={"n": 1.0})])
    await sink.aclose()


async def test_a_token_that_comes_back_is_not_told(feast: Server) -> None:
    """What is refused ends in dead letters and logs; what Feast says besides does not keep its rows from being found."""
    feast.on(PUSH, answering(422, b"no rights: Bearer s3cret-token"))
    sink = FeastSink("feast", settings(f"{feast.base}/feast"), Secret("Bearer s3cret-token"))
    with pytest.raises(RowsRefused) as caught:
        await sink.write([row(values={"n": 1.0})])
    await sink.aclose()
    assert caught.value.refused == {0: "feast: Feast answered 422 its text repeats a secret and is not shown"}


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", r"authorization_file names .*, which is empty"),
        ("Bearer a\nBearer b", "the authorization does not fit into a header"),
        ("Bearer é", "the authorization does not fit into a header"),
    ],
)
async def test_an_authorization_that_cannot_be_sent_is_told_at_the_start(tmp_path: Path, token: str, said: str) -> None:
    """By the file that holds it, and without it."""
    (tmp_path / "token").write_text(token)
    one = settings(authorization_file=str(tmp_path / "token"))
    with pytest.raises(ConfigError, match=rf"\[workers.features.sinks.f\]: {said}"):
        async with opened({"f": one}):
            pass


async def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and how to get it."""
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigError, match=r"needs httpx2, which is not installed: pip install 'canvasbus\[features\]'"):
        async with opened({"f": settings()}):
            pass


@pytest.mark.parametrize(("url", "said"), [("http://h:abc", "is not a URL"), ("http://h/?a=1", "has more than a path")])
def test_a_url_that_is_none_is_told(url: str, said: str) -> None:
    """Whoever reads the settings: the worker before it begins, the doctor."""
    with pytest.raises(msgspec.ValidationError, match=f"the url {said}"):
        settings(url)
