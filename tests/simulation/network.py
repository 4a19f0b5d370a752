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
from dataclasses import dataclass, fields
from functools import cached_property
from random import Random
from typing import Any

import hiredis
import trio
from fakeredis._socket import FakeSocket
from simulation import lockstep
from simulation.lockstep import Killed

from canvasbus.consume.leaving import AWAY_SECONDS
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


CALM_SECONDS = 8.0
"""So long after its last trouble a worker is known to be well by everybody."""


MATTERS = 8
"""How much more happens to a packet that changes or brings something."""


MOST = 0.25
"""How many of those meet a fault, at most: where nothing gets through nothing happens."""


class HotLoop(Exception):
    """Packets without end at one moment."""


@dataclass(frozen=True)
class Weather:
    """Chances of one packet. Each breaks or stalls its connection, as it would a socket."""

    drop: float = 0.0
    """It never gets there; the sender hears of it at once."""
    swallow: float = 0.0
    """It never gets there and nothing is heard of it."""
    part: float = 0.0
    """Some of its commands are executed, then the connection breaks."""
    lose: float = 0.0
    """It is executed; its reply is lost and the connection breaks."""
    mute: float = 0.0
    """It is executed; nothing is heard of it."""
    late: float = 0.0
    """The connection breaks, and seconds later it is executed after all."""
    delay: float = 0.0
    """It takes up to a second."""
    busy: float = 0.0
    """Its writing commands are answered OOM, READONLY or LOADING."""

    @cached_property
    def chances(self) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """What may happen to a packet on its way there, and what on the way back."""
        some = [(field.name, chance) for field in fields(self) if (chance := getattr(self, field.name))]
        return [one for one in some if one[0] not in _AFTER], [one for one in some if one[0] in _AFTER]


CALM = Weather()
_AFTER = ("lose", "mute")

MOODS = {
    "OOM": "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY": "READONLY You can't write against a read only replica.",
    "LOADING": "LOADING Redis is loading the dataset in memory",
}
_NEEDS_MEMORY = {b"XADD", b"SET", b"HSET", b"HSETNX", b"HINCRBY", b"SADD", b"INCR"}
_READS = {
    *(b"GET", b"HGET", b"HGETALL", b"HEXISTS", b"SMEMBERS", b"SCAN", b"ECHO", b"XINFO", b"XRANGE", b"XREVRANGE"),
    *(b"XPENDING", b"XLEN", b"WATCH", b"UNWATCH", b"MULTI", b"EXEC"),
}
_FRAME = {b"MULTI", b"EXEC", b"DISCARD", b"WATCH", b"UNWATCH"}
_CALLS = {b"EVAL", b"EVALSHA"}
SCRIPTS = (SETTLE, REAP, TAKE, RELEASE, FIRE, TRIM, ONCE)
_CHANGES = {SETTLE, RELEASE, REAP, FIRE, ONCE}
_WRITES = {SETTLE, FIRE, ONCE}


def refuses(mood: str, command: list[bytes]) -> bool:
    """Whether a server in this mood answers the command with its error."""
    name = command[0]
    if not mood or name in _FRAME:
        return False
    if mood == "LOADING":
        return True
    if mood == "READONLY":
        return name not in _READS
    if name in _CALLS:  # the first write of each: XADD of "ack", XACK of the others, XCLAIM, SET of a reap, SADD
        settles = b"ack" in command and b"bury" not in command and b"lose" not in command
        return settles or _calls(command, REAP, ONCE)
    return name in _NEEDS_MEMORY or command[:2] == [b"XGROUP", b"CREATE"]


def _under(mood: str, link: SimConnection, commands: list[list[bytes]]) -> tuple[list[list[bytes]], list[Reply | None]]:
    """What a server in this mood executes of a packet, and what it says instead of the replies of that; None: nothing.
    A transaction with a refused command does not happen, and it may have begun in an earlier packet."""
    asked, said = list(commands), [None] * len(commands)
    earlier = link.transaction == "open"
    for at, command in enumerate(commands):
        name = command[0]
        if refuses(mood, command):
            asked[at], said[at] = [b"PING"], ReplyError(MOODS[mood])
        elif name == b"MULTI":
            end = next((later for later in range(at, len(commands)) if commands[later][0] == b"EXEC"), len(commands))
            link.transaction = "refused" if any(refuses(mood, one) for one in commands[at:end]) else "open"
            if link.transaction == "refused":
                asked[at], said[at] = [b"PING"], b"OK"
        elif name in (b"EXEC", b"DISCARD"):
            if link.transaction == "refused":
                asked[at] = [b"UNWATCH"]
                said[at] = ReplyError("EXECABORT Transaction discarded because of previous errors.")
                said[at] = b"OK" if name == b"DISCARD" else said[at]
            elif name == b"EXEC" and mood and earlier and link.transaction == "open":
                asked[at] = [b"DISCARD"]
                said[at] = ReplyError(f"EXECABORT Transaction discarded because of: {MOODS[mood]}")
            link.transaction, earlier = "", False
    return asked, said


class Site:
    """One life of one process."""

    def __init__(self, name: str, kind: str, number: int) -> None:
        self.name = name
        self.kind = kind
        self.number = number
        self.dead = False
        self.unreachable = ""
        """How the network keeps it from the server: "" (not), "refuse" or "hole"."""
        self.scope = trio.CancelScope()
        self.leave = trio.Event()
        self.leaving_since = 0.0
        self.awake = trio.Event()
        self.awake.set()
        self.falls_at: tuple[int, str] | None = None
        """It dies with the so-manieth packet from now that changes or brings something: "before" or "after" the server
        has executed it."""
        self.next_fate = ""
        """What happens to the next packet that changes something ("late", "late and killed"; "commit late": a commit only), brings it ("mute") or does either ("lose")."""
        self.connections: list[SimConnection] = []
        self.troubles: list[float] = []
        self.waited_long = -1.0
        """When a packet was last on its way for as long as may be all that a worker has for leaving."""
        """When its packets met a fault."""
        self.beats_lost: list[float] = []
        """The same of heartbeats."""
        self.calm_from = 0.0
        """As Network.calm_from."""
        self.incarnations: dict[bytes, list[bytes]] = {}
        """The names under which it has beaten, by group."""
        self.on_death: Callable[[], None] = lambda: None

    def kill(self) -> None:
        """Cut the cable for good, then stop what runs."""
        self.dead = True
        self.awake.set()
        self.scope.cancel()
        self.on_death()

    async def die(self) -> None:
        """The same, for what runs in it."""
        self.kill()
        raise Killed(self.name)

    def falls(self, when: str) -> bool:
        """Whether it dies now, "before" or "after" a packet that matters."""
        if self.falls_at is None or self.falls_at[1] != when:
            return False
        self.falls_at = self.falls_at[0] - 1, when
        return self.falls_at[0] <= 0

    def troubled(self, now: float) -> int:
        """How many heartbeats of it were lost of late; many, if it was out of reach as a whole."""
        if self.unreachable or not self.awake.is_set() or now < self.calm_from:
            return 1000
        return sum(time > now - CALM_SECONDS for time in self.beats_lost)

    def check(self) -> None:
        if self.dead:
            raise Killed(self.name)

    async def come_through(self) -> None:
        """Wait out a pause."""
        if not self.awake.is_set():
            await self.awake.wait()
        self.check()

    def __repr__(self) -> str:
        return f"<Site {self.name}{' dead' if self.dead else ''}>"


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
        return self._scripts.get(command[1]) if command[0] in _CALLS else None

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
        asked, said = _under(mood, link, commands)
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
        elif name in _CALLS and reply in (b"FENCED", b"STALE"):
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
        commands = split(self._reader, data)
        names = [command[0] for command in commands]
        scripts = [network.called(command) for command in commands]
        changes = b"XADD" in names or not _CHANGES.isdisjoint(scripts)
        changes = changes or (self.transaction == "open" and names[0] == b"EXEC")
        if changes and site.falls("before"):
            self._fall(commands, "before")
        self._check()
        away = network.away or site.unreachable
        if away == "refuse":
            self.break_off("reset")
            self._check()
        if away or self._stalled:
            self._stalled = True
            return
        fate = network.draw(site, network.weather.chances[0], matters=changes)
        mood = network.mood
        doomed = changes and site.next_fate == "late and killed"
        if doomed or self._is_fated(commands, scripts, changes=changes):
            fate, site.next_fate = "late", ""
        self._note(fate, commands)
        if fate == "drop":
            self.break_off("the request was lost")
            self._check()
        if fate == "swallow":
            self._stalled = True
            return
        if fate == "late":
            self.break_off("reset")
            self._late = True
            network.nursery.start_soon(self._execute_late, commands, network.dice.uniform(3.0 if doomed else 0.01, 7.0))
            if doomed:
                self._fall(commands, "after it has sent")
            self._check()
        if fate == "delay":
            await trio.sleep(seconds := network.dice.uniform(0.001, 1.0))
            if seconds >= AWAY_SECONDS:
                site.waited_long = trio.current_time()
            site.check()
            self._check()
        if fate == "busy":
            mood = network.dice.choice(list(MOODS))
        if fate == "part":
            network.execute(self, commands[: network.dice.randrange(len(commands) + 1)], mood)
            self.break_off("the connection broke in the middle")
            self._close()
            return
        replies = network.execute(self, commands, mood)
        network.seen["batch begun early"] += self.transaction == "open"
        brings = (b"XREADGROUP" in names or TAKE in scripts) and any(
            reply and (name == b"XREADGROUP" or script is TAKE)
            for name, script, reply in zip(names, scripts, replies, strict=True)
        )
        if (changes or brings) and site.falls("after"):
            self._fall(commands, "after")
        fate = network.draw(site, network.weather.chances[1], matters=changes or brings)
        if ((brings or changes) and site.next_fate == "lose") or (brings and site.next_fate == "mute"):
            fate, site.next_fate = site.next_fate, ""
        self._note(fate, commands)
        if fate == "lose":
            self.break_off("the reply was lost")
        elif fate == "mute":
            self._stalled = True
        else:
            self._replies += replies
        self._version = network.version
        self._arrived.set()

    def _is_fated(self, commands: list[list[bytes]], scripts: list[Script | None], *, changes: bool) -> bool:
        """Whether this is what was to come late next."""
        match self.site.next_fate:
            case "late":
                return changes
            case "commit late":
                return SETTLE in scripts
            case "release late":
                return RELEASE in scripts
            case "raise late":
                return any(command[0] == b"INCR" for command in commands)
            case "take late":
                return self._would_bring(commands)
        return False

    def _would_bring(self, commands: list[list[bytes]]) -> bool:
        """Whether something lies in a pool that is asked for what it has."""
        for command in commands:
            if self._network.called(command) is TAKE:
                count = int(command[2])
                (_, *streams), (_, group, _, pool, *_) = command[3 : 3 + count], command[3 + count :]
                look = b"".join([pack("XPENDING", stream, group, "-", "+", 1, pool) for stream in streams])
                if any(isinstance(rows, list) and rows for rows in self.inner.request(look, len(streams), 1.0)):
                    return True
        return False

    def _note(self, fate: str, commands: list[list[bytes]]) -> None:
        if fate and fate != "delay":
            self.site.troubles.append(trio.current_time())
            if any(command[0] == b"HINCRBY" for command in commands):
                self.site.beats_lost.append(trio.current_time())
        if fate:
            self._network.seen[f"fault: {fate}"] += 1
            self._network.note(self.site.name, f"{fate}: {show(commands)}")

    def _fall(self, commands: list[list[bytes]], when: str) -> None:
        self._network.note(self.site.name, f"killed {when} {show(commands)}")
        self.site.kill()
        raise Killed(self.site.name)

    def _check(self) -> None:
        if self._broken:
            raise Unavailable(self._broken, ambiguous=True)

    async def _execute_late(self, commands: list[list[bytes]], seconds: float) -> None:
        life = self._network.restarts
        await trio.sleep(seconds)
        if life != self._network.restarts:
            return
        self._network.note(self.site.name, f"executed late: {show(commands)}")
        self.site.troubles.append(trio.current_time())  # a read gives something to whoever has left by then
        self._network.execute(self, commands, self._network.mood)
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


def _calls(command: list[bytes], *scripts: Script) -> bool:
    """Whether a command runs one of these."""
    return (command[0] == b"EVALSHA" and command[1] in [script.sha.encode() for script in scripts]) or (
        command[0] == b"EVAL" and command[1] in [script.source.encode() for script in scripts]
    )


def show(commands: list[list[bytes]]) -> str:
    """The commands' names."""
    scripts = {script.sha.encode(): script.name.upper() for script in SCRIPTS}
    names = [f"{c[0].decode()} {scripts.get(c[1], '')}" if c[0] == b"EVALSHA" else c[0].decode() for c in commands]
    return " ".join(names[:8]) + (f" … {len(names)}" if len(names) > 8 else "")
