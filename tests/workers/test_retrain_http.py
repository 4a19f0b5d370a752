"""Training elsewhere: orders over HTTP to a real server, answers that get lost, and Prefect's API."""

import json
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from serving import Server, answering, hang, replying, sending
from studio import Eyes, running
from waiting import until
from workers.orders import ORDER

from canvasbus import clock
from canvasbus.errors import ConfigError
from canvasbus.events import RetrainRequested
from canvasbus_workers import retrain
from canvasbus_workers.outside.client import Client
from canvasbus_workers.retrain.launchers.http import Http
from canvasbus_workers.retrain.launchers.prefect import Prefect
from canvasbus_workers.retrain.launchers.protocol import (
    Ambiguous,
    Busy,
    Ended,
    Launched,
    Rejected,
    Running,
    Unreachable,
)
from canvasbus_workers.retrain.settings import PLACE, Policy, authorization

DROP = sending()


@pytest.fixture
async def trainer(nursery: trio.Nursery) -> Server:
    return await Server(replying(404, {"detail": "nothing here"})).start(nursery)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client("canvasbus-retrain") as one:
        yield one


@pytest.fixture
def http(trainer: Server, client: Client, tmp_path: Path) -> Callable[..., Http]:
    """http(settings of [workers.retrain.http])"""

    def make(**options: Any) -> Http:
        table = {"url": f"{trainer.base}/runs", "timeout_seconds": 20, **options}
        policy = msgspec.convert({"launcher": "http", "folder": str(tmp_path), "http": table}, Policy)
        return Http(policy, client, authorization(PLACE, policy))

    return make


async def test_an_order_is_a_post(http: Callable[..., Http], trainer: Server, monkeypatch: Any) -> None:
    """With key, authorization and trace in headers, and the order with the parameters as JSON."""
    monkeypatch.setenv("TRAINER_AUTHORIZATION", "Bearer s3cret")
    trainer.on("POST /runs", replying(201, {"run": {"id": "r-1"}}))
    one = http(
        authorization_env="TRAINER_AUTHORIZATION",
        parameters={"gpu": 2},
        id_field="run.id",
        status_url=f"{trainer.base}/runs/{{id}}",
    )
    assert await one.launch(ORDER) == Launched(external_id="r-1")
    (asked,) = trainer.requests
    assert asked.headers["idempotency-key"] == ORDER.key and asked.headers["traceparent"] == ORDER.traceparent
    assert asked.headers["authorization"] == "Bearer s3cret" and asked.headers["content-type"] == "application/json"
    assert asked.json == {
        "key": ORDER.key,
        "run_id": "m/v7",
        "model_name": "m",
        "model_version": "v7",
        "fence": 7,
        "episode_id": "e1",
        "reason": "accuracy 0.5",
        "windows": 3,
        "correlation_id": ORDER.correlation_id,
        "traceparent": ORDER.traceparent,
        "parameters": {"gpu": 2},
    }


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (replying(422, {"detail": "no such model"}), Rejected, '127.0.0.1 answered 422: {"detail": "no such model"}'),
        (replying(422, {"got": "Bearer s3cret"}), Rejected, "127.0.0.1 answered 422: its text repeats a secret"),
        (replying(401, {}), Rejected, "127.0.0.1 answered 401: look at its authorization_file or authorization_env"),
        (replying(302, {}, Location="http://elsewhere/"), Rejected, "127.0.0.1 answered 302"),
        (replying(429, {}, Retry_After="7"), Busy, "127.0.0.1 answered 429"),
        (replying(503, {}), Busy, "127.0.0.1 answered 503"),
        (replying(500, {}), Ambiguous, "127.0.0.1 answered 500"),
        (DROP, Ambiguous, "127.0.0.1: the connection was closed before an answer"),
        (hang, Ambiguous, "127.0.0.1: no answer within 0.5 s"),
        (
            answering(200, b"x" * 1_100_000),
            Ambiguous,
            "127.0.0.1: its answer broke off, or has more than 1048576 bytes",
        ),
    ],
)
async def test_how_it_fails(
    http: Callable[..., Http], trainer: Server, tmp_path: Path, answer: Any, error: type[Exception], said: str
) -> None:
    """Each in its own way, in one line, without the token."""
    (tmp_path / "token").write_text("Bearer s3cret\n")
    trainer.on("POST /runs", answer)
    with pytest.raises(error) as caught:
        patience = 0.5 if answer is hang else 20
        await http(authorization_file=str(tmp_path / "token"), timeout_seconds=patience).launch(ORDER)
    assert str(caught.value).startswith(said) and "s3cret" not in str(caught.value)
    assert len(trainer.requests) == 1
    if isinstance(caught.value, Busy):
        assert caught.value.after == (7 if "429" in said else 10)


async def test_nobody_is_there(client: Client, tmp_path: Path) -> None:
    """Nothing was sent, so that it may be sent again, with a key or without."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        for keyed in (True, False):
            policy = {"launcher": "http", "folder": str(tmp_path), "http": {"url": url, "keyed": keyed}}
            with pytest.raises(
                Unreachable, match=r"127.0.0.1: 127.0.0.1:\d+ cannot be connected to: Connection refused"
            ):
                await Http(msgspec.convert(policy, Policy), client).launch(ORDER)


async def test_with_a_key_it_is_sent_again(http: Callable[..., Http], trainer: Server) -> None:
    """The same key, so that the other side knows it."""
    trainer.on("POST /runs", DROP, replying(200, {"id": "r-1"}))
    one = http(status_url=f"{trainer.base}/runs/{{id}}")
    with pytest.raises(Ambiguous):
        await one.launch(ORDER)
    assert await one.launch(ORDER) == Launched(external_id="r-1")
    assert [asked.headers["idempotency-key"] for asked in trainer.requests] == [ORDER.key, ORDER.key]


async def test_without_keys_it_is_sent_once(http: Callable[..., Http], trainer: Server) -> None:
    """An answer that was lost makes the run fail, and says where to look; so does an order that comes again. One that was
    answered is known when it comes again, and one that was refused as busy is sent again."""
    trainer.on("POST /runs", DROP)
    for _ in range(2):
        with pytest.raises(Rejected, match=r"unknown outcome: .*look at http.*/runs for the key 01a2/order"):
            await http(keyed=False).launch(ORDER)
    assert len(trainer.requests) == 1
    other = msgspec.structs.replace(ORDER, key="other")
    trainer.on("POST /runs", replying(503, {}), replying(201, {"id": "r-2"}))
    with pytest.raises(Busy):
        await http(keyed=False).launch(other)
    one = http(keyed=False, status_url=f"{trainer.base}/runs/{{id}}")
    assert await one.launch(other) == Launched(external_id="r-2")
    again = await one.launch(other)
    assert isinstance(again, Launched) and (again.external_id, again.duplicate) == ("r-2", True)
    assert len(trainer.requests) == 3


async def test_without_keys_it_is_looked_up(http: Callable[..., Http], trainer: Server) -> None:
    """It is there: found. It is not, twice: it is sent again, since nothing has begun."""
    options = {"lookup_url": f"{trainer.base}/by-key/{{key}}", "status_url": f"{trainer.base}/runs/{{id}}"}
    trainer.on("POST /runs", hang)
    trainer.on("GET /by-key/01a2%2Forder", replying(200, {"id": "r-1"}))
    found = await http(keyed=False, timeout_seconds=2, **options).launch(ORDER)
    assert isinstance(found, Launched) and (found.external_id, found.duplicate) == ("r-1", True)
    other = msgspec.structs.replace(ORDER, key="other")
    trainer.on("POST /runs", DROP, replying(201, {"id": "r-2"}))
    for _ in range(2):
        with pytest.raises(Busy, match="the other side does not know it"):
            await http(keyed=False, **options).launch(other)
    assert await http(keyed=False, **options).launch(other) == Launched(external_id="r-2")
    assert len(trainer.seen("POST /runs")) == 3 and len(trainer.seen("GET /by-key/other")) == 2


async def test_an_order_that_comes_late(http: Callable[..., Http], trainer: Server) -> None:
    """When the time is over in which it could start, one that was sent is found, and its own time counts from then; one that
    was not, or was refused, is sent no more. Where nothing is written down, whoever asked is told where to look."""
    options = {"lookup_url": f"{trainer.base}/by-key/{{key}}", "status_url": f"{trainer.base}/runs/{{id}}"}
    one = http(keyed=False, **options)
    answered, lost, refused, new = (msgspec.structs.replace(ORDER, key=key) for key in ("a", "l", "r", "n"))
    trainer.on("POST /runs", replying(201, {"id": "r-1"}), DROP, replying(503, {}))
    trainer.on("GET /by-key/l", replying(404, {}), replying(200, {"id": "r-2"}))
    begun = clock.time()
    await one.launch(answered)
    for order in (lost, refused):
        with pytest.raises(Busy):
            await one.launch(order)
    for order, external_id in ((answered, "r-1"), (lost, "r-2"), (lost, "r-2")):
        said = await one.launch(order, late=True)
        assert isinstance(said, Launched) and (said.external_id, said.duplicate) == (external_id, True)
        assert begun <= said.began <= clock.time()
    for order in (refused, new):
        with pytest.raises(Rejected, match=r"^it could not be started in time$"):
            await one.launch(order, late=True)
    with pytest.raises(
        Rejected, match=r"before it was known to have begun; look at http.*/runs for the key 01a2/order"
    ):
        await http(**options).launch(ORDER, late=True)
    assert len(trainer.seen("POST /runs")) == 3


async def test_where_a_run_stands(http: Callable[..., Http], trainer: Server) -> None:
    """By its state, in any case of letters; a run that is gone has failed."""
    one = http(status_url=f"{trainer.base}/runs/{{id}}", state_field="status.phase")
    phases = ("Pending", "Running", "SUCCEEDED", "Failed")
    trainer.on("GET /runs/r%201", *(replying(200, {"status": {"phase": phase}}) for phase in phases), replying(404, {}))
    said = [await one.status("r 1") for _ in range(5)]
    assert said[:3] == [Running(), Running(), Ended()]
    assert [each.error for each in said[3:]] == ["r 1: Failed", "the other side knows no run r 1"]
    trainer.on("GET /runs/r%201", replying(500, {}))
    with pytest.raises(Unreachable):
        await one.status("r 1")


async def test_prefect(trainer: Server, client: Client, monkeypatch: Any) -> None:
    """The deployment is looked up by name, a flow run is created under the key, and its state is asked for. (The shapes are
    those of a server 3; tests/interop/prefect_flow.py asks a real one.) The page says how to make a Basic authorization."""
    page = (Path(retrain.__file__).parent / "README.md").read_text()
    (line,) = re.findall(r'`(echo "Basic .*?)`', page)
    basic = subprocess.run(
        ["sh", "-c", line.replace("user:password", "admin:pw")], capture_output=True, text=True, check=True
    )
    monkeypatch.setenv("PREFECT_AUTHORIZATION", basic.stdout)
    table = {
        "url": f"{trainer.base}/api/",
        "deployment": "train flow/nightly",
        "authorization_env": "PREFECT_AUTHORIZATION",
        "parameters": {"epochs": 3},
        "order_parameter": "order",
    }
    policy = msgspec.convert({"launcher": "prefect", "prefect": table}, Policy)
    one = Prefect(policy, client, authorization(PLACE, policy))
    lookup, create = "GET /api/deployments/name/train%20flow/nightly", "POST /api/deployments/d-1/create_flow_run"
    with pytest.raises(Rejected, match="Prefect has no deployment train flow/nightly"):
        await one.launch(ORDER)
    trainer.on(lookup, replying(200, {"id": "d-1"}))
    trainer.on(
        create,
        replying(201, {"id": "f-1"}),
        replying(200, {"id": "f-1"}),
        replying(409, {"detail": "Validation failed: 'epochs'"}),
    )
    assert await one.launch(ORDER) == Launched(external_id="f-1")
    assert await one.launch(ORDER) == Launched(external_id="f-1", duplicate=True)
    with pytest.raises(Rejected, match=r"409: .*Validation failed"):
        await one.launch(ORDER)
    asked = trainer.seen(create)[0]
    assert asked.headers["authorization"] == "Basic YWRtaW46cHc="
    assert (asked.json["idempotency_key"], asked.json["name"]) == (ORDER.key, "m/v7")
    assert asked.json["parameters"]["epochs"] == 3 and asked.json["parameters"]["order"]["fence"] == 7
    states = ("SCHEDULED", "RUNNING", "COMPLETED")
    crashed = {"name": "m/v7", "state_type": "CRASHED", "state": {"message": "out of memory"}, "total_run_time": 2.5}
    trainer.on(
        "GET /api/flow_runs/f-1",
        *(replying(200, {"state_type": state}) for state in states),
        replying(200, crashed),
        replying(404, {}),
    )
    said = [await one.status("f-1") for _ in range(5)]
    assert said[:3] == [Running(), Running(), Ended()]
    assert said[3] == Ended(error="m/v7: CRASHED, out of memory", duration=2.5)
    assert said[4] == Ended(error="Prefect knows no flow run f-1")


async def test_from_request_to_promotion(
    any_url: str, namespace: str, eyes: Eyes, trainer: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side is busy, then takes the order and runs it: asked until it has ended, promoted under the request's
    correlation. The key is the id of retrain.started, each time."""
    monkeypatch.setenv("CANVASBUS_CONFIG", str(tmp_path / "canvasbus.toml"))
    table = {"url": f"{trainer.base}/runs", "status_url": f"{trainer.base}/runs/{{id}}"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    (tmp_path / "canvasbus.toml").write_text(
        f'[workers.retrain]\nlauncher = "http"\nfolder = "{tmp_path}"\nanswer = "state"\npoll_seconds = 0.01\n[workers.retrain.http]\n'
        + "\n".join(lines)
    )
    trainer.on("POST /runs", replying(503, {}, Retry_After="0"), replying(201, {"id": "r-1"}))
    trainer.on(
        "GET /runs/r-1", replying(200, {"state": "running"}), replying(500, {}), replying(200, {"state": "succeeded"})
    )
    asked = RetrainRequested(model_name="m")
    async with running(any_url, retrain.worker, namespace=namespace) as bus:
        await bus.publish(asked)
        await until(lambda: eyes.events("model.promoted"), 30)
    ((envelope, started),) = eyes.entries("retrain.started")
    (promoted,) = eyes.events("model.promoted")
    assert {one.headers["idempotency-key"] for one in trainer.seen("POST /runs")} == {str(envelope.id)}
    assert (promoted.run_id, promoted.fence) == (started.run_id, 1)
    assert promoted.correlation_id == asked.correlation_id
    assert eyes.dead("retrain") == []


async def test_a_missing_package_is_told(namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and how to get it; not with the first order."""
    import sys

    from canvasbus_workers.retrain.edge import Launchers
    from canvasbus_workers.retrain.settings import Settings

    monkeypatch.setitem(sys.modules, "httpx2", None)
    table = {"launcher": "http", "http": {"url": "http://h/"}, "folder": str(tmp_path)}
    settings = msgspec.convert({"models": {"m": table}, "folder": str(tmp_path)}, Settings)
    with pytest.raises(ConfigError, match=r"needs httpx2, which is not installed: pip install 'canvasbus\[retrain\]'"):
        async with Launchers(settings):
            pass


async def test_a_missing_authorization_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, also of a single model; of a launcher that is not used nothing is wanted. The first glob that fits says
    which it is."""
    from canvasbus_workers.retrain.edge import Launchers
    from canvasbus_workers.retrain.settings import Settings

    remote = {"url": "http://h/", "authorization_file": str(tmp_path / "token")}
    other = {"launcher": "http", "http": {"url": "http://h/", "authorization_env": "TRAINER_AUTHORIZATION"}}
    table = {"folder": str(tmp_path), "http": remote, "models": {"m": {"launcher": "http"}, "*": other}}
    other["http"]["authorization_file"] = ""  # type: ignore[index]
    with pytest.raises(
        ConfigError, match=r'\[workers.retrain.models."m"\]: http: authorization_file names .*token, which'
    ):
        async with Launchers(msgspec.convert(table, Settings)):
            pass
    (tmp_path / "token").write_text("Bearer 1")
    with pytest.raises(ConfigError, match=r'models."\*"\]: http: .* variable TRAINER_AUTHORIZATION, which is not set'):
        async with Launchers(msgspec.convert(table, Settings)):
            pass
    monkeypatch.setenv("TRAINER_AUTHORIZATION", "Bearer 2")
    async with Launchers(msgspec.convert(table, Settings)):
        pass
    async with Launchers(msgspec.convert({"http": {**remote, "authorization_file": "gone"}}, Settings)):
        pass


def test_a_url_that_is_none_is_told() -> None:
    """Whoever reads the settings: the worker before it begins, the doctor."""
    from canvasbus_workers.retrain.settings import Settings

    table = {"url": "http://h/", "status_url": "http://h:abc/{id}"}
    with pytest.raises(ConfigError, match=r'models."m"\]: http.status_url: it is not a URL'):
        msgspec.convert({"models": {"m": {"launcher": "http", "http": table}}}, Settings)
