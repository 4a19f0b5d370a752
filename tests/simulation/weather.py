"""What may happen to one packet: the weather on its way, and the mood of the server that gets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

from canvasbus.transport.owner_scripts import REAP
from canvasbus.transport.resp import Reply, ReplyError
from canvasbus.transport.scripts import ONCE, Script


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
CALLS = {b"EVAL", b"EVALSHA"}


def refuses(mood: str, command: list[bytes], script: Script | None) -> bool:
    """Whether a server in this mood answers the command, which runs this script, with its error."""
    name = command[0]
    if not mood or name in _FRAME:
        return False
    if mood == "LOADING":
        return True
    if mood == "READONLY":
        return name not in _READS
    if name in CALLS:  # the first write of each: XADD of "ack", XACK of the others, XCLAIM, SET of a reap, SADD
        settles = b"ack" in command and b"bury" not in command and b"lose" not in command
        return settles or script in (REAP, ONCE)
    return name in _NEEDS_MEMORY or command[:2] == [b"XGROUP", b"CREATE"]


def under(
    mood: str, transaction: str, commands: list[list[bytes]], called: Callable[[list[bytes]], Script | None]
) -> tuple[list[list[bytes]], list[Reply | None], str]:
    """What a server in this mood executes of a packet, what it says instead of the replies of that (None: nothing), and how
    far the transaction of the connection has come then: "" (there is none), "open" or "refused". One with a refused command
    does not happen, and it may have begun in an earlier packet."""
    asked, said = list(commands), [None] * len(commands)
    refused = [refuses(mood, command, called(command)) for command in commands]
    earlier = transaction == "open"
    for at, command in enumerate(commands):
        name = command[0]
        if refused[at]:
            asked[at], said[at] = [b"PING"], ReplyError(MOODS[mood])
        elif name == b"MULTI":
            end = next((later for later in range(at, len(commands)) if commands[later][0] == b"EXEC"), len(commands))
            transaction = "refused" if any(refused[at:end]) else "open"
            if transaction == "refused":
                asked[at], said[at] = [b"PING"], b"OK"
        elif name in (b"EXEC", b"DISCARD"):
            if transaction == "refused":
                asked[at] = [b"UNWATCH"]
                aborted = ReplyError("EXECABORT Transaction discarded because of previous errors.")
                said[at] = b"OK" if name == b"DISCARD" else aborted
            elif name == b"EXEC" and mood and earlier and transaction == "open":
                asked[at] = [b"DISCARD"]
                said[at] = ReplyError(f"EXECABORT Transaction discarded because of: {MOODS[mood]}")
            transaction, earlier = "", False
    return asked, said, transaction
