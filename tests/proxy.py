"""A TCP proxy on loopback, in a thread, that loses what a network can lose: requests, replies, whole connections.

    with Proxy(server.port) as proxy:
        proxy.next(b"XADD", "lose")           # the next request with XADD in it is executed, its reply is lost
        Producer(proxy.url)

A rule is used once. A request is whatever has come when the last command is whole and every MULTI has its EXEC, which
fits a blocking link: it sends one packet and waits.
"""

import contextlib
import select
import socket
import threading
import time
from collections import deque
from typing import Literal, Self

Fault = Literal["cut", "tear", "lose", "hold"]
"""cut: the connection ends before the server sees the request. tear: it sees the first half. lose: it executes the
request, then the connection ends.
hold: the connection ends for the client, and the server gets the request when `release` is called."""


class Proxy:
    """Forwards connections to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._rules: deque[tuple[bytes, Fault]] = deque()
        self._held: list[tuple[socket.socket, bytes]] = []
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._moves = threading.Event()
        self._moves.set()
        self.delay = 0.0
        """Seconds that each piece takes to come through, either way."""
        self._listener: socket.socket | None = None
        self.port = 0
        self.accepted = 0
        """Connections taken so far."""
        self.faults: list[Fault] = []
        """Rules that were used, in order."""
        self.accept()

    @property
    def url(self) -> str:
        """redis://127.0.0.1:port."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pending(self) -> int:
        """Rules that wait for their request."""
        return len(self._rules)

    def next(self, match: bytes, fault: Fault) -> None:
        """Let the next request that contains `match` suffer a fault; several rules are used in order."""
        self._rules.append((match, fault))

    def forget(self) -> None:
        """Forget the rules that wait for their request."""
        self._rules.clear()

    def lead_to(self, port: int) -> None:
        """Forward connections to another port from now on; those that are open stay where they are."""
        self._target = ("127.0.0.1", port)

    def accept(self) -> None:
        """Take connections (again), on the same port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen()
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._listen, args=(listener,), daemon=True).start()

    def refuse(self) -> None:
        """Take no more connections and cut those that are open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """End all connections, now."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                _end(end)

    def stall(self) -> None:
        """Let nothing through, either way, and end nothing, until `go_on`."""
        self._moves.clear()

    def go_on(self) -> None:
        """Let through what has gathered, and what comes."""
        self._moves.set()

    def release(self) -> None:
        """Send what was held on to the server, and return when the server has executed it."""
        held, self._held = self._held, []
        for upstream, data in held:
            with contextlib.suppress(OSError):  # the server has died since
                _execute(upstream, data)
            upstream.close()

    def close(self) -> None:
        self.go_on()
        self.refuse()
        for upstream, _ in self._held:
            upstream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                upstream = socket.create_connection(self._target, 5)
            except OSError:
                client.close()
                continue
            pair = (client, upstream)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, client: socket.socket, upstream: socket.socket) -> None:
        keep = False
        request = b""
        try:
            while True:
                readable, _, _ = select.select([client, upstream], [], [])
                self._moves.wait()
                if self.delay:
                    time.sleep(self.delay)
                if upstream in readable:
                    data = upstream.recv(1 << 20)
                    if not data:
                        return
                    client.sendall(data)
                if client in readable:
                    data = client.recv(1 << 20)
                    if not data:
                        return
                    request += data
                    if not _is_whole(request):
                        continue
                    fault = self._fault(request)
                    if fault == "tear":
                        upstream.sendall(request[: len(request) // 2])
                    elif fault == "lose":
                        _execute(upstream, request)
                    elif fault == "hold":
                        keep = True
                        self._held.append((upstream, request))
                    if fault is not None:
                        self.faults.append(fault)
                        return
                    upstream.sendall(request)
                    request = b""
        except (OSError, ValueError):
            return
        finally:
            with self._lock:
                self._pairs.discard((client, upstream))
            client.close()
            if not keep:
                upstream.close()

    def _fault(self, data: bytes) -> Fault | None:
        if self._rules and self._rules[0][0] in data:
            return self._rules.popleft()[1]
        return None


def _is_whole(request: bytes) -> bool:
    """It ends where a command does. A transaction may end in the next packet."""
    at, size = 0, len(request)
    while at < size:
        line = request.find(b"\r\n", at)
        if line < 0:
            return False
        parts, at = int(request[at + 1 : line]), line + 2
        for _ in range(parts):
            line = request.find(b"\r\n", at)
            if line < 0:
                return False
            at = line + 4 + int(request[at + 1 : line])
            if at > size:
                return False
    return True


def _execute(upstream: socket.socket, data: bytes) -> None:
    """Send, and wait until the server has answered: a PING behind it tells. What was only begun is taken back for it."""
    upstream.settimeout(5)
    begun = data.rfind(b"\r\nMULTI\r\n") > data.rfind(b"\r\nEXEC\r\n")
    upstream.sendall(data + (b"*1\r\n$7\r\nDISCARD\r\n" if begun else b"") + b"*2\r\n$4\r\nPING\r\n$9\r\nall-is-in\r\n")
    seen = b""
    while b"all-is-in" not in seen:
        received = upstream.recv(1 << 20)
        if not received:
            return
        seen = seen[-16:] + received


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
