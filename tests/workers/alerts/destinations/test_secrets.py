"""Nothing that is shown, logged, raised or dead-lettered holds a secret."""

import base64
import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from serving import Server, answering, hang, sending, speaking_first
from trio.testing import MockClock
from workers.alerts.destinations.telling import LOCAL, about

from canvasbus_workers.alerts.destinations import Destinations, read
from canvasbus_workers.outside.dial import Network
from canvasbus_workers.outside.secret import Secret

TOKEN, BEARER, PASSWORD = "T0OPEN/B0SESAME/xoXOxoSECRETxo", "OPENSESAMEBEARER", "OPENSESAMEPROXY"
KEY = base64.b64encode(b"OPENSESAMESIGNINGKEY-32-bytes-xx").decode()
FORBIDDEN = (*TOKEN.split("/"), BEARER, PASSWORD, KEY, "OPENSESAMESIGNINGKEY")


def everything_of(error: BaseException) -> str:
    """All that a traceback can show: every exception of the chain, also those that `from None` hides, with the locals of
    every frame that is not of the tests."""
    found, left = [], [error]
    while left:
        one = left.pop()
        found += [str(one), repr(one), repr(one.args)]
        for frame in traceback.StackSummary.extract(traceback.walk_tb(one.__traceback__), capture_locals=True):
            if "/tests/" not in frame.filename and "/_pytest/" not in frame.filename:
                found.append(f"{frame.filename}: {frame.locals}")
        left += [inner for inner in (one.__cause__, one.__context__) if inner is not None]
        left += getattr(one, "exceptions", ())
    return "\n".join(found)


ECHO = b"Cannot POST /services/" + TOKEN.encode() + b" with " + BEARER.encode()
SCRIPTS: dict[str, Callable[[trio.abc.Stream], Any]] = {
    **{f"status {status}": answering(status, ECHO) for status in (200, 301, 400, 404, 408, 410, 429, 500, 503)},
    "redirect to itself": answering(302, Location=f"/services/{TOKEN}"),
    "no HTTP": sending(ECHO + b"\r\n\r\n"),
    "closed": sending(),
    "reason": sending(b"HTTP/1.1 404 " + ECHO + b"\r\nContent-Length: 0\r\n\r\n"),
    "hanging": hang,
}


@pytest.fixture
def secret_files(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings whose secrets lie in files."""

    def settings(kind: str, url: str, **more: Any) -> dict[str, Any]:
        (tmp_path / "url").write_text(f"{url}/services/{TOKEN}\n")
        (tmp_path / "bearer").write_text(f"Bearer {BEARER}\n")
        (tmp_path / "key").write_text(f"whsec_{KEY}\n")
        found: dict[str, Any] = {"kind": kind, "url_file": str(tmp_path / "url"), "timeout_seconds": 5, **LOCAL, **more}
        if kind != "slack":
            found["authorization_file"] = str(tmp_path / "bearer")
        if kind == "webhook":
            found["secret_file"] = str(tmp_path / "key")
        return found

    return settings


async def seen(destinations: Destinations, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> str:
    """All that there is to see when one notification is sent."""
    caplog.set_level(logging.DEBUG)
    found = []
    async with destinations:
        try:
            await destinations["ops"].send(about())
        except Exception as error:
            found.append(everything_of(error))
        found += [repr(destinations), repr(destinations["ops"]), repr(vars(destinations["ops"]))]
    found += [str(destinations.statistics()), *capfd.readouterr(), caplog.text]
    return "\n".join(found)


@pytest.mark.parametrize("kind", ["slack", "webhook", "alertmanager"])
@pytest.mark.parametrize("script", SCRIPTS)
async def test_no_answer_brings_a_secret_to_light(
    nursery: trio.Nursery,
    mock_clock: MockClock,
    secret_files: Callable[..., dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    script: str,
) -> None:
    """Also one that repeats the request, with every logger at DEBUG, and tracebacks with locals."""
    server = await Server(SCRIPTS[script]).start(nursery)
    settings = read({"ops": secret_files(kind, f"http://127.0.0.1:{server.port}")})

    async def pass_time() -> None:
        await server.arrived.wait()
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(6)

    if script == "hanging":
        nursery.start_soon(pass_time)
    shown = await seen(Destinations(settings), caplog, capfd) + repr(settings)
    (request,) = server.requests
    assert TOKEN in request.target  # it was really sent …
    assert kind == "slack" or BEARER in request.headers["authorization"]
    assert "ops" in shown
    assert [secret for secret in FORBIDDEN if secret in shown] == []  # … and is nowhere to be seen


@pytest.mark.parametrize("kind", ["slack", "webhook", "alertmanager"])
@pytest.mark.parametrize("case", ["refused by the guard", "unknown name", "nobody listens", "no TLS", "proxy"])
async def test_no_failure_to_connect_brings_a_secret_to_light(
    nursery: trio.Nursery,
    tmp_path: Path,
    secret_files: Callable[..., dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    case: str,
) -> None:
    """The same for what happens before a request is sent, and for a proxy that refuses."""

    async def look_up(host: str, port: int) -> list[str]:
        if case == "unknown name":
            raise OSError(f"no {host}")
        return ["10.0.0.1"] if case == "refused by the guard" else ["127.0.0.1"]

    server = await Server(answering(407, ECHO)).start(nursery)
    port = {"nobody listens": 1, "no TLS": await speaking_first(nursery)}.get(case, server.port)
    scheme = "http" if case == "proxy" else "https"
    more: dict[str, Any] = {"proxy": f"http://mia:{PASSWORD}@127.0.0.1:{server.port}"} if case == "proxy" else {}
    settings = read({"ops": secret_files(kind, f"{scheme}://ops.example:{port}", **more)})
    shown = await seen(Destinations(settings, network=Network(look_up)), caplog, capfd) + repr(settings)
    assert "ops: " in shown or "ops answers" in shown
    assert [secret for secret in FORBIDDEN if secret in shown] == []


def test_a_secret_shows_itself_as_stars() -> None:
    """In every way that a text can be made of it, and pickle refuses it."""
    secret = Secret(TOKEN)
    assert {str(secret), repr(secret), f"{secret}", f"{secret!r:>3}"} == {"***"}
    assert repr([secret]) == "[***]"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    assert not hasattr(secret, "__dict__")  # nothing for those who print `vars`
