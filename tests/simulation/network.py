"""The road between simulated processes and their server, and everything that can happen on it.

Every process has a `Site`: its cable and its switch. A `SimServer` is what its EventBus gets for a server; behind all
of them lies one memory server. A packet that is sent meets, in this order: the death of its process, a pause of it, a
network that is away, the fate drawn for it, the mood of the server, and only then the server.

Death is final and comes first: from then on everything that the process tries raises `Killed`, a BaseException, before
it reaches the server, so that no `finally` and no shielded clean-up does what a killed process cannot do.
"""

from __future__ import annotations

import copy
import heapq
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import hiredis
import trio
from fakeredis._socket import FakeSocket
from simulation import lockstep
from simulation.lockstep import Killed
from simulation.site import Site
from simulation.weather import CALLS, CALM, MOODS, under

from canvasbus.errors import Unavailable
from canvasbus.transport.memory import MemoryServer, _Socket, split
from canvasbus.transport.owner_scripts import REAP, RELEASE, TAKE
from canvasbus.transport.resp import Reply, ReplyError, pack
from canvasbus.transport.scripts import ONCE, Script
from canvasbus.transport.settle_script import SETTLE
from canvasbus.transport.timer_scripts import FIRE
from canvasbus.transport.trim_script import TRIM
from canvasbus.wire.keys import Keys

HOT = 1000
"""Packets without a step of time in between that count as a loop without end."""


MATTERS = 8
"""How much more happens to a packet that changes or brings something."""


MOST = 0.25
"""How many of those meet a fault, at most: where nothing gets through nothing happens."""


class HotLoop(Exception):
    """Packets without end at one moment."""


SCRIPTS = (SETTLE, REAP, TAKE, RELEASE, FIRE, TRIM, ONCE)
_CHANGES = {SETTLE, RELEASE, REAP, FIRE, ONCE}
_WRITES = {SETTLE, FIRE, ONCE}


def _sadd(self: Any, key: Any, *members: bytes) -> int:
    """SADD. What is there already changes nothing; fakeredis tells those who WATCH the set that it did, which hides
    transactions that come late."""
    if key and all(member in key.value for member in members):
        return 0
    return int(FakeSocket.sadd(self, key, *members))


_Socket.sadd = _sadd


class Network:
    """One server and the roads to it."""

    def __init__(self, dice: Random, nursery: trio.Nursery, note: Callable[[str, str], None]) -> None:
        self.memory = MemoryServer()
        self._scripts = {name.encode(): script for script in SCRIPTS for name in (script.sha, script.source)}
        self.dice = dice
        self.nursery = nursery
        self.note = note
        self.weather = CALM
        self.mood = ""
        self.away = ""
        """As Site.unreachable, for all."""
        self.seen: Counter[str] = Counter()
        """What the server was asked and the faults that happened."""
        self.commands: Counter[str] = Counter()
        """Attempts of each site: packets and connections."""
        self.changed = trio.Event()
        self.version = 0
        self.read = {
            Keys("sim", partition).stream(name) for partition in range(2) for name in ("sim.framed", "sim.placed")
        }
        """What scripts write and workers read: who waits for changes is woken for it."""
        self.restarts = 0
        self.before_trim: Callable[[bytes], Callable[[list[list[Any]]], None]] = lambda stream: lambda gone: None
        """Called before a stream is trimmed; what it returns is told which entries are gone."""
        self.on_reap: Callable[[bytes, bytes], None] = lambda beats, name: None
        """Told whom a worker takes for dead: the key of the heartbeats and the name."""
        self.on_rejoin: Callable[[Site, bytes], None] = lambda site, name: None
        """Told who goes on under another name, and which it had."""
        self.calm_from = 0.0
        """From when on a heartbeat that is missing tells something, after trouble that all had."""
        self.back = 0.0
        """Since when it is there again, after trouble that all had."""
        self._moment = (-1.0, 0)

    def attempt(self, site: Site) -> None:
        """Count what a site tries. Raises HotLoop when that never ends."""
        self.commands[site.name] += 1
        now, count = trio.current_time(), 1
        if self._moment[0] == now:
            count += self._moment[1]
        self._moment = now, count
        if count > HOT:
            raise HotLoop(f"{site.name}: {count} packets at one moment")

    def called(self, command: list[bytes]) -> Script | None:
        """The script of these that a command runs."""
        return self._scripts.get(command[1]) if command[0] in CALLS else None

    def show(self, commands: list[list[bytes]]) -> str:
        """The commands' names."""
        names = [command[0].decode() for command in commands]
        for at, command in enumerate(commands):
            if command[0] == b"EVALSHA":
                script = self.called(command)
                names[at] += f" {script.name.upper() if script else ''}"
        return " ".join(names[:8]) + (f" … {len(names)}" if len(names) > 8 else "")

    def draw(self, site: Site, fates: list[tuple[str, float]], *, matters: bool) -> str:
        """The fate of one packet. Most are looks that can be repeated, so more happens to those that change or bring
        something, and to those of publishers, who send few."""
        die = self.dice.random()
        if not fates:  # the weather is calm
            return ""
        total = sum([chance for _, chance in fates])
        times = (MATTERS if matters else 1) * (1 if site.kind == "worker" else 4)
        die /= max(1.0, min(times, MOST / total))
        for fate, chance in fates:
            die -= chance
            if die < 0:
                return fate
        return ""

    def execute(self, link: SimConnection, commands: list[list[bytes]], mood: str) -> list[Reply]:
        """Let the server execute commands, as far as its mood lets it."""
        asked, said, link.transaction = under(mood, link.transaction, commands, self.called)
        if TRIM in [self.called(command) for command in asked]:
            replies = [reply for command in asked for reply in self._trim(link, command)]
        else:
            replies = link.inner.execute(asked)
        replies = [reply if other is None else other for reply, other in zip(replies, said, strict=True)]
        for command, reply in zip(commands, replies, strict=True):
            self._watch(link.site, command, reply)
        return replies

    def _trim(self, link: SimConnection, command: list[bytes]) -> list[Reply]:
        """Execute one command of a packet with a trim in it, and look what it takes away."""
        if self.called(command) is not TRIM:
            return link.inner.execute([command])
        stream = command[3]
        look = [b"XRANGE", stream, b"-", b"+"]
        (before,) = link.inner.execute([look])
        told = self.before_trim(stream)
        reply, length = link.inner.execute([command, [b"XLEN", stream]])
        if length < len(before):
            left = {row[0] for row in link.inner.execute([look])[0]}
            self.seen["trimmed by retention"] += 1
            told([row for row in before if row[0] not in left])
        return [reply]

    def copy(self) -> dict[bytes, Any]:
        """All that the server holds."""
        return copy.deepcopy(self.memory._fake.dbs[0]._dict)

    def restart(self, data: dict[bytes, Any]) -> None:
        """The server begins anew with this; what was on its way to the old one never arrives."""
        self.restarts += 1
        fake = self.memory._fake
        fake.script_cache.clear()
        database = fake.dbs[0]
        database._dict = data
        database._expiry_heap = [(item.expireat, key) for key, item in data.items() if item.expireat is not None]
        heapq.heapify(database._expiry_heap)

    def _watch(self, site: Site, command: list[bytes], reply: Reply) -> None:
        name = command[0]
        if isinstance(reply, ReplyError):
            if str(reply).startswith("NOSCRIPT"):
                self.seen["script loaded again"] += 1
            return
        script = self.called(command)
        if name == b"XADD" or name == b"EXEC" or (script in _WRITES and not self.read.isdisjoint(command)):
            self.version += 1
            self.changed.set()
            self.changed = trio.Event()
        if name == b"EXEC" and reply is None:
            self.seen["late transaction aborted"] += 1
        elif name == b"HINCRBY":
            names = site.incarnations.setdefault(command[1], [])
            if command[2] not in names:
                names.append(command[2])
                if len(names) > 1:
                    self.seen["rejoin"] += 1
                    self.on_rejoin(site, names[-2])
        elif name == b"INCR":
            self.seen["publish verified" if b":fence:p-" in command[1] else "fence raised"] += 1
        elif name == b"XRANGE" and site.kind == "worker" and command[2] == command[3]:
            self.seen["audit"] += 1
        elif name in CALLS and reply in (b"FENCED", b"STALE"):
            self.seen["fenced" if reply == b"FENCED" else "raised late"] += 1
        elif script is RELEASE and reply == b"AWAY":
            self.seen["group away for a hand back"] += 1
        elif script is REAP:
            self.on_reap(command[4], command[4 + int(command[2])])
            if reply[0] > 0:
                self.seen["reap"] += 1
        elif script is TAKE and reply:
            self.seen["take"] += 1
        elif script is RELEASE and reply > 0:
            self.seen["hand back"] += 1


class SimServer:
    """The server as one process sees it."""

    blocks = False
    shared = False

    def __init__(self, network: Network, site: Site) -> None:
        self.name = f"memory://{site.name}"
        self._network = network
        self._site = site

    async def connect(self) -> SimConnection:
        network, site = self._network, self._site
        await trio.lowlevel.checkpoint()
        await site.come_through()
        network.attempt(site)
        away = network.away or site.unreachable
        if away == "hole":
            await trio.sleep(3)
            site.check()
        if away:
            raise Unavailable(f"{self.name}: no way to the server")
        return SimConnection(network, site)

    def connect_blocking(self) -> SimBlockingConnection:
        return SimBlockingConnection(lockstep.ask(self.connect))


class _Packet:
    """What is sent in one piece."""

    def __init__(self, link: SimConnection, commands: list[list[bytes]]) -> None:
        self._network = link._network
        self.commands = commands
        self.names = [command[0] for command in commands]
        self.scripts = [self._network.called(command) for command in commands]
        changes = b"XADD" in self.names or not _CHANGES.isdisjoint(self.scripts)
        self.changes = changes or (link.transaction == "open" and self.names[0] == b"EXEC")
        """It changes something for good."""

    def brings(self, replies: list[Reply]) -> bool:
        """Whether entries come back that the worker holds from then on."""
        return (b"XREADGROUP" in self.names or TAKE in self.scripts) and any(
            reply and (name == b"XREADGROUP" or script is TAKE)
            for name, script, reply in zip(self.names, self.scripts, replies, strict=True)
        )

    def __str__(self) -> str:
        return self._network.show(self.commands)


class SimConnection:
    """One socket."""

    client_id: int | None = None

    def __init__(self, network: Network, site: Site) -> None:
        self.site = site
        self.history = f"life {network.restarts} of the server"
        self.inner = network.memory.connect_blocking()
        self._reader = hiredis.Reader()
        self._network = network
        self.transaction = ""
        """open: there was a MULTI, and no end of it yet; refused: the same, and a command in it was refused."""
        self._replies: list[Reply] = []
        self._arrived = trio.Event()
        self._broken = ""
        self._stalled = False
        self._late = False
        self._version = -1
        site.connections.append(self)

    def break_off(self, why: str) -> None:
        self._broken = self._broken or why
        self._arrived.set()

    async def send(self, data: bytes) -> None:
        network, site = self._network, self.site
        await trio.lowlevel.checkpoint()
        await site.come_through()
        network.attempt(site)
        packet = _Packet(self, split(self._reader, data))
        if packet.changes and site.falls("before"):
            self._fall(packet, "before")
        if self._broken and SETTLE in packet.scripts:  # whether it was committed nobody can tell once the group is gone
            site.troubles.append(trio.current_time())
        self._check()
        away = network.away or site.unreachable
        if away == "refuse":
            self.break_off("reset")
            self._check()
        if away or self._stalled:
            self._stalled = True
            return
        fate = network.draw(site, network.weather.chances[0], matters=packet.changes)
        doomed = packet.changes and site.next_fate == "late and killed"
        if doomed or self._is_fated(packet):
            fate, site.next_fate = "late", ""
        mood = network.mood
        self._note(fate, packet)
        if not await self._arrive(fate, packet, mood, doomed=doomed):
            return
        if fate == "busy":
            mood = network.dice.choice(list(MOODS))
        replies = network.execute(self, packet.commands, mood)
        network.seen["batch begun early"] += self.transaction == "open"
        self._answer(packet, replies)

    async def _arrive(self, fate: str, packet: _Packet, mood: str, *, doomed: bool) -> bool:
        """Go the way to the server. False: the packet does not get there, or not now, or not the whole of it."""
        network = self._network
        if fate == "drop":
            self.break_off("the request was lost")
        elif fate == "swallow":
            self._stalled = True
            return False
        elif fate == "late":
            self.break_off("reset")
            self._late = True
            network.nursery.start_soon(self._execute_late, packet, network.dice.uniform(3.0 if doomed else 0.01, 7.0))
            if doomed:
                self._fall(packet, "after it has sent")
        elif fate == "delay":
            self.site.delayed = trio.current_time()
            await trio.sleep(network.dice.uniform(0.001, 1.0))
            self.site.check()
        elif fate == "part":
            network.execute(self, packet.commands[: network.dice.randrange(len(packet.commands) + 1)], mood)
            self.break_off("the connection broke in the middle")
            self._close()
            return False
        self._check()
        return True

    def _answer(self, packet: _Packet, replies: list[Reply]) -> None:
        """Bring the replies back, as far as they get."""
        network, site = self._network, self.site
        brings = packet.brings(replies)
        if (packet.changes or brings) and site.falls("after"):
            self._fall(packet, "after")
        fate = network.draw(site, network.weather.chances[1], matters=packet.changes or brings)
        if ((brings or packet.changes) and site.next_fate == "lose") or (brings and site.next_fate == "mute"):
            fate, site.next_fate = site.next_fate, ""
        self._note(fate, packet)
        if fate == "lose":
            self.break_off("the reply was lost")
        elif fate == "mute":
            self._stalled = True
        else:
            self._replies += replies
        self._version = network.version
        self._arrived.set()

    def _is_fated(self, packet: _Packet) -> bool:
        """Whether this is what was to come late next."""
        match self.site.next_fate:
            case "late":
                return packet.changes
            case "commit late":
                return SETTLE in packet.scripts
            case "release late":
                return RELEASE in packet.scripts
            case "raise late":
                return b"INCR" in packet.names
            case "take late":
                return self._would_bring(packet)
        return False

    def _would_bring(self, packet: _Packet) -> bool:
        """Whether something lies in a pool that is asked for what it has."""
        for command, script in zip(packet.commands, packet.scripts, strict=True):
            if script is TAKE:
                count = int(command[2])
                (_, *streams), (_, group, _, pool, *_) = command[3 : 3 + count], command[3 + count :]
                look = b"".join([pack("XPENDING", stream, group, "-", "+", 1, pool) for stream in streams])
                if any(isinstance(rows, list) and rows for rows in self.inner.request(look, len(streams), 1.0)):
                    return True
        return False

    def _note(self, fate: str, packet: _Packet) -> None:
        if fate and fate != "delay":
            self.site.troubles.append(trio.current_time())
            if b"HINCRBY" in packet.names:
                self.site.beats_lost.append(trio.current_time())
        if fate:
            self._network.seen[f"fault: {fate}"] += 1
            self._network.note(self.site.name, f"{fate}: {packet}")

    def _fall(self, packet: _Packet, when: str) -> None:
        self._network.note(self.site.name, f"killed {when} {packet}")
        self.site.kill()
        raise Killed(self.site.name)

    def _check(self) -> None:
        if self._broken:
            raise Unavailable(self._broken, ambiguous=True)

    async def _execute_late(self, packet: _Packet, seconds: float) -> None:
        life = self._network.restarts
        await trio.sleep(seconds)
        if life != self._network.restarts:
            return
        self._network.note(self.site.name, f"executed late: {packet}")
        self.site.troubles.append(trio.current_time())  # a read gives something to whoever has left by then
        self._network.execute(self, packet.commands, self._network.mood)
        self.inner.close()

    async def receive(self) -> list[Reply]:
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            await self.site.come_through()
            if self._replies:
                replies, self._replies = self._replies, []
                await trio.lowlevel.cancel_shielded_checkpoint()
                return replies
            self._check()
            self._arrived = trio.Event()
            await self._arrived.wait()
            self.site.check()

    def trouble(self) -> str:
        """What a socket tells before it is used: that the other side closed it, if that is known here by now."""
        return self._broken if self._broken and self._network.dice.random() < 0.5 else ""

    async def wait_change(self, seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        if self._version == self._network.version:
            with trio.move_on_after(seconds):
                await self._network.changed.wait()

    async def aclose(self) -> None:
        self.break_off("closed")
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        if self in self.site.connections:
            self.site.connections.remove(self)
            if not self._late:
                self.inner.close()


class SimBlockingConnection:
    """The same for threads."""

    def __init__(self, connection: SimConnection) -> None:
        self._connection = connection

    def request(self, data: bytes, replies: int, timeout: float) -> list[Reply]:
        if trouble := self._connection.trouble():
            self.close()
            raise Unavailable(trouble)
        return lockstep.ask(lambda: self._exchange(data, replies, timeout))

    async def _exchange(self, data: bytes, replies: int, timeout: float) -> list[Reply]:
        found: list[Reply] = []
        try:
            with trio.move_on_after(timeout):
                await self._connection.send(data)
                while len(found) < replies:
                    found += await self._connection.receive()
                return found
            raise Unavailable("no answer in time", ambiguous=True)
        except Unavailable:
            self.close()
            raise

    def close(self) -> None:
        self._connection.break_off("closed")
        self._connection._close()
