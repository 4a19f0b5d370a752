"""/livez and /readyz for orchestrators: forty lines of HTTP, because a framework would weigh more than the worker.

`/livez` fails only when a worker's loop makes no progress, so that a long handler or a server that is away never gets
the process killed. `/readyz` fails while a group is not joined, while the server does not answer, and during a drain.
It names paused groups, which is no failure: what was paused to be put right must be able to roll out.
"""

import json
from collections.abc import Callable

import trio

from canvasbus.bus import EventBus
from canvasbus.errors import ConfigError, TransportError

REQUEST_SECONDS = 5.0
REQUEST_BYTES = 8192
PING_SECONDS = 2.0


async def serve_health(
    bus: EventBus,
    host: str,
    port: int,
    trouble: Callable[[], str] = lambda: "",
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `trouble` says what the start still waits for. Raises ConfigError when the port is taken."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise ConfigError(f"--health-port {port}: cannot listen on {host} ({error.strerror or error})") from error

    async def handle(stream: trio.SocketStream) -> None:
        try:
            with trio.move_on_after(REQUEST_SECONDS):
                head = b""
                while b"\r\n\r\n" not in head and len(head) < REQUEST_BYTES:
                    data = await stream.receive_some(REQUEST_BYTES)
                    if not data:
                        return
                    head += data
                await stream.send_all(await _answer(bus, head, trouble()))
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    task_status.started()
    await trio.serve_listeners(handle, listeners)


async def _answer(bus: EventBus, head: bytes, trouble: str = "") -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _response(405, {"error": "GET only"})
    if path not in (b"/livez", b"/readyz"):
        return _response(404, {"error": "there are /livez and /readyz"})
    if path == b"/livez":
        alive = bus.progressing
        return _response(200 if alive else 503, {"alive": alive})
    states = bus.statistics()
    problems = [f"worker {s.group} is {s.state}" for s in states if s.state not in ("running", "paused")]
    problems += [f"worker {s.group}: its heartbeat is refused ({s.unheard})" for s in states if s.unheard]
    paused = [s.group for s in states if s.state == "paused"]
    if states:
        problems += await _unanswered(bus)
    else:  # the probes are served before the bus is open
        problems += ["no worker has started", *([f"server: {trouble}"] if trouble else [])]
    body = {"ready": not problems, "problems": problems} | ({"paused": paused} if paused else {})
    if resting := [f"{s.group}/{handler}" for s in states for handler in s.open_circuits]:
        body["resting"] = resting  # for people: a worker is no less ready because something outside is down
    return _response(200 if not problems else 503, body)


async def _unanswered(bus: EventBus) -> list[str]:
    try:
        with trio.fail_after(PING_SECONDS):
            await bus.link.call("PING")
    except TransportError as error:
        return [f"server: {error}"]
    except trio.TooSlowError:
        return [f"server: no answer within {PING_SECONDS:g} s"]
    return []


def _response(status: int, body: dict[str, object]) -> bytes:
    reason = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}[status]
    data = json.dumps(body).encode() + b"\n"
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + data
