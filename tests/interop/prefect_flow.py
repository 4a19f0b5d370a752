"""The prefect launcher against a real Prefect 3: `python tests/interop/prefect_flow.py [FOLDER]`. Not in CI.

Installs Prefect in an environment of its own (170 MB; in FOLDER, else in a temporary one that is removed), starts its
server on this machine and a flow that is served, and has the retrain worker order runs of it:

    ordered twice under one key            one flow run
    a parameter of the wrong type          refused at once, with Prefect's words
    one that the flow does not have        taken, and the flow run fails
    a flow that raises                     failed, with its message
    retrain.requested on the bus           a flow run, model.promoted, one correlation id

Prints what happened, a line each, and ends with 0 when all of it was so.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import trio

from canvasbus.bus import EventBus
from canvasbus.events import ModelPromoted, RetrainRequested, RetrainStarted
from canvasbus_workers.outside.client import Client
from canvasbus_workers.retrain.launchers.prefect import Prefect
from canvasbus_workers.retrain.launchers.protocol import (
    Busy,
    Ended,
    Launched,
    Order,
    Rejected,
    Running,
    Unreachable,
)
from canvasbus_workers.retrain.settings import Policy

# What resolves anew breaks: fastapi 0.165 dropped an argument that Prefect's server passes.
PACKAGES = ("prefect==3.*", "fastapi==0.140.*", "starlette<1.9")

FLOW = """
from prefect import flow

@flow
def train(order: dict, fail: bool = False) -> str:
    if fail:
        raise ValueError("not enough labels")
    return order["model_version"]

if __name__ == "__main__":
    train.serve(name="nightly")
"""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def installed(folder: Path) -> Path:
    """The Python of an environment with Prefect."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", *PACKAGES], check=True)
    version = (
        "import importlib.metadata as m; print(m.version('prefect'), m.version('fastapi'), m.version('starlette'))"
    )
    found = subprocess.run([python, "-c", version], check=True, capture_output=True, text=True).stdout.split()
    say("prefect {}, fastapi {}, starlette {}".format(*found))
    return python


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def started(command: list[Any], log: Path, environ: dict[str, str]) -> Iterator[None]:
    """A program and all that it starts, until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environ, cwd=log.parent, start_new_session=True
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def until(what: str, so: Callable[[], Any], seconds: float = 120.0) -> Any:
    """The first true answer; a server that answers 503 is asked again, as the worker does."""
    with trio.move_on_after(seconds):
        while True:
            with contextlib.suppress(Busy, Unreachable):
                if found := await so():
                    return found
            await trio.sleep(0.2)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def order() -> Order:
    fields = {"run_id": "m/v7", "model_name": "m", "model_version": "v7", "fence": 7, "episode_id": "e", "reason": "x"}
    more = {"windows": 1, "correlation_id": str(uuid.uuid4()), "traceparent": "", "ordered": 0.0}
    return Order(key=str(uuid.uuid4()), **fields, **more)


async def ordered(launcher: Prefect, one: Order) -> Launched | Ended:
    return await until("Prefect takes an order", lambda: launcher.launch(one))


async def ended(launcher: Prefect, said: Launched | Ended) -> Ended:
    async def look() -> Ended | None:
        stands = await launcher.status(said.external_id)
        return None if isinstance(stands, Running) else stands

    return await until("the flow run ends", look)


async def ask(url: str, folder: Path) -> None:
    table = {"url": url, "deployment": "train/nightly", "order_parameter": "order"}

    def launcher(**options: Any) -> Prefect:
        return Prefect(msgspec.convert({"launcher": "prefect", "prefect": table | options}, Policy), client)

    async with Client("canvasbus-retrain") as client:

        async def first() -> Launched | Ended | None:
            try:
                return await launcher().launch(one)
            except Rejected as error:
                if "no deployment" in str(error):
                    return None  # it is not served yet
                raise

        one = order()
        began = time.monotonic()
        said = await until("Prefect takes an order", first)
        say(f"ordered: {said}, {time.monotonic() - began:.1f} s after it was asked for")
        again = await ordered(launcher(), one)
        assert again == Launched(external_id=said.external_id, duplicate=True), again
        say("ordered again under the same key: the same run")
        done = await ended(launcher(), said)
        assert done.error == "", done
        say(f"it has succeeded: {done.duration:.1f} s")
        failing = launcher(parameters={"fail": True})
        done = await ended(failing, await ordered(failing, order()))
        assert "FAILED" in done.error and "not enough labels" in done.error, done
        say(f"one that raises: {done.error!r}")
        try:
            await launcher(parameters={"fail": "perhaps"}).launch(order())
        except Rejected as error:
            say(f"a parameter of the wrong type: {error}")
        else:
            raise AssertionError("a parameter of the wrong type was accepted")
        surplus = launcher(parameters={"epochs": 3})
        done = await ended(surplus, await ordered(surplus, order()))
        assert done.error, "a parameter that the flow does not have was accepted"
        say(f"one that it does not have: {done.error!r}")
    await chain(url, folder)


async def chain(url: str, folder: Path) -> None:
    """From a request on the bus to the promoted model."""
    from canvasbus_workers import retrain

    config = folder / "canvasbus.toml"
    config.write_text(
        '[workers.retrain]\nlauncher = "prefect"\nanswer = "state"\npoll_seconds = 0.5\n[workers.retrain.prefect]\n'
        f'url = "{url}"\ndeployment = "train/nightly"\norder_parameter = "order"\n'
    )
    os.environ["CANVASBUS_CONFIG"] = str(config)
    told: list[Any] = []
    began = time.monotonic()
    async with EventBus("memory://") as bus:
        for kind in (RetrainStarted, ModelPromoted):
            bus.subscribe(kind, told.append, group=f"told-{kind.__name__}")
        bus.add(retrain.worker)
        asked = RetrainRequested(model_name="StyleGAN")
        await bus.publish(asked)

        async def promoted() -> bool:
            return len(told) == 2

        await until("model.promoted", promoted)
    assert {event.correlation_id for event in told} == {asked.correlation_id}
    assert isinstance(told[1], ModelPromoted) and told[1].fence == 1, told
    say(f"retrain.requested to model.promoted: {time.monotonic() - began:.1f} s, one correlation id")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="canvasbus-prefect-") as temporary:
        folder = Path(temporary)
        python = installed(Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "env")
        port = free_port()
        url = f"http://127.0.0.1:{port}/api"
        environ = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
        environ |= {"PREFECT_HOME": str(folder / "home"), "PREFECT_API_URL": url, "DO_NOT_TRACK": "1"}
        environ |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        (folder / "flow.py").write_text(FLOW)
        server = [python, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with started(server, folder / "server.log", environ):
            try:
                trio.run(ready, url)
                with started([python, "flow.py"], folder / "flow.log", environ):
                    trio.run(ask, url, folder)
            except BaseException:
                for log in sorted(folder.glob("*.log")):
                    print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
                raise
    say("all of it was so")


async def ready(url: str) -> None:
    """The server answers."""
    began = time.monotonic()
    async with Client("canvasbus-retrain") as client:

        async def health() -> bool:
            with contextlib.suppress(Exception):
                reply = await client.request("GET", f"{url}/health", body=None, headers={}, seconds=5)
                return reply.status == 200
            return False

        await until("the server answers", health, 180)
    say(f"the server answers, {time.monotonic() - began:.1f} s after its start")


if __name__ == "__main__":
    main()
