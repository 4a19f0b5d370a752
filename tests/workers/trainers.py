"""An order to train, and a real HTTP server that plays a training service: each request is answered by the script's next
line for it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from canvasbus_workers.retrain.launchers.protocol import Order

ORDER = Order(
    key="01a2/order",
    run_id="m/v7",
    model_name="m",
    model_version="v7",
    fence=7,
    episode_id="e1",
    reason="accuracy 0.5",
    windows=3,
    correlation_id="01a20000-0000-7000-8000-000000000000",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ordered=0.0,
)

DROP = "drop"
"""Read the request, and close the connection without an answer."""
HANG = "hang"
"""Read the request, and say nothing until the server is closed."""


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Service:
    """What it was asked, and what it will say."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    script: dict[str, list[Any]] = field(default_factory=dict)
    """`METHOD /path` → answers in turn, the last one again and again: (status, JSON), (status, JSON, headers), DROP, HANG."""
    closing: threading.Event = field(default_factory=threading.Event)

    def on(self, what: str, *answers: Any) -> None:
        self.script[what] = list(answers)

    def seen(self, what: str) -> list[Asked]:
        return [one for one in self.asked if f"{one.method} {one.path}" == what]


@contextmanager
def service() -> Iterator[Service]:
    """One on a port of its own."""
    played = Service()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            data = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked = Asked(
                self.command,
                self.path,
                {name.lower(): value for name, value in self.headers.items()},
                json.loads(data) if data else None,
            )
            played.asked.append(asked)
            answers = played.script.get(f"{self.command} {self.path}", [(404, {"detail": "nothing here"})])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer == HANG:
                played.closing.wait(30)
            if answer in (DROP, HANG):
                self.close_connection = True
                return
            status, body, *more = answer
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    played.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield played
    finally:
        played.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
