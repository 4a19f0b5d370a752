"""RESP without I/O: commands to bytes, error replies to our errors.

Hiredis parses; an error reply is a value (`ReplyError`) in its place among the replies, because a batch needs the
result of every command. Errors are told apart by their first word, once, here: redis-py has classes for only some.
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import hiredis

from canvasbus.errors import Refused, TransportError, Unavailable

Reply = Any
"""bytes, int, None, a list of replies, or a ReplyError."""

ReplyError = hiredis.ReplyError

UNASKED = "the server sent more than was asked for, so no reply on this connection can be trusted"
"""Why a connection is given up on which replies and requests do not pair up."""

NO_MEMORY = "this process has no memory for the server's answer"
"""Why one is given up that brings more than there is room for."""


class Packet(NamedTuple):
    """Bytes for the server and how many replies they bring. A packet may begin what the next one ends (see
    `FencedSender`): the replies of that part come with the next."""

    data: bytes
    replies: int
    """How many replies whoever sends it gets: in order, the last of them those of its last commands."""
    early: int = 0
    """So many of them, the first, are those of commands at the end of the packet before."""
    later: int = 0
    """So many commands stand at the end of `data` whose replies are for the next packet."""


class Pause(NamedTuple):
    """A wish of an operation to be continued after `seconds`, over a new connection if so wished."""

    seconds: float
    reconnect: bool = False


T = TypeVar("T")
Operation = Generator[Packet | Pause, list[Reply], T]
"""Work with the server written without I/O: yields packets, is sent their replies, returns a result. The same code is
driven by threads (`blocking`) and by trio (`link`). A driver throws TransportError in where a connection failed."""


Argument = bytes | str | int | float

_pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


def pack(*args: Argument) -> bytes:
    """One command as RESP."""
    return _pack(args)


def command(*args: Argument) -> Packet:
    """One command as a packet of its own."""
    return Packet(_pack(args), 1)


def commands(*parts: tuple[Argument, ...]) -> Packet:
    """Several commands in one packet."""
    return Packet(b"".join([_pack(part) for part in parts]), len(parts))


class XaddHeads(dict[int, bytes]):
    """What comes before a value when several are XADDed to one stream in one packet, by the value's length: the CRLF
    that ends the command before, and the command up to its value. (Formatting takes 140 ns an event, this 30.)"""

    LIMIT = 4096

    def __init__(self, stream: bytes) -> None:
        super().__init__()
        self._start = b"\r\n*5\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$1\r\ne\r\n$" % (len(stream), stream)

    def __missing__(self, length: int) -> bytes:
        if len(self) >= self.LIMIT:
            self.clear()
        head = self[length] = b"%b%d\r\n" % (self._start, length)
        return head


_WAIT = {
    "LOADING": "the server is loading its data",
    "BUSY": "the server is busy with a long script",
    "UNKILLABLE": "the server is busy with a long script",
    "OOM": "the server is at its maxmemory limit: free memory or raise the limit",
    "MISCONF": "the server cannot write to its disk and refuses changes",
    "NOREPLICAS": "too few replicas are in reach of the server, which refuses changes",
    "READONLY": "this server is a read-only replica",
    "MASTERDOWN": "this replica has lost its master",
    "CLUSTERDOWN": "the cluster is down",
    "TRYAGAIN": "the cluster is moving slots",
    "UNBLOCKED": "the server ended a blocking read",
}
_REFUSE = {
    "NOAUTH": "the server wants a password: put it into the URL (redis://:password@host) or CANVASBUS_URL",
    "WRONGPASS": "the server refuses this user or password",
    "NOPERM": "the ACL of this user forbids the command; `canvasbus doctor --acl producer|worker|operator` prints what each "
    "role needs",
    "WRONGTYPE": "the key holds another type of value than the bus keeps there",
    "OVERWRITTEN": "somebody has written something else over a key of the bus: RENAME it, the bus makes its own anew",
    "NOPROTO": "the server does not speak this protocol version",
    "CROSSSLOT": "the keys lie in different cluster slots",
    "MOVED": "this is one node of a Redis Cluster; the bus needs a server of its own, or one behind redis+sentinel://",
    "EXECABORT": "the server refused a command of the transaction",
}


def code(error: ReplyError) -> str:
    """The first word of an error reply."""
    return str(error).partition(" ")[0]


def is_no_group(error: ReplyError) -> bool:
    """True when a stream or its group is gone. fakeredis has a text of its own for a missing stream."""
    text = str(error)
    return text.startswith("NOGROUP") or "requires the key to exist" in text or "the stream key no longer" in text


def is_forbidden(error: ReplyError) -> bool:
    """True when this user may not run the command, whatever it is about: no fault of what was sent. (A key that is forbidden
    may be one that only this event has.) The second text is that of our scripts, the third that of Redis 7.0 within a script."""
    return any(words in str(error) for words in ("no permissions to run", "may not run", "can't run this command"))


def is_demoted(replies: list[Reply]) -> bool:
    """True when one of the replies says that this server is no master, or has just ceased to be one. Whoever is master
    now is found by connecting anew: this connection would go on answering the same for ever."""
    if ReplyError not in set(map(type, replies)):
        return False
    for reply in replies:
        if isinstance(reply, ReplyError):
            word, text = code(reply), str(reply)
            if word in ("READONLY", "MASTERDOWN") or (word == "UNBLOCKED" and "instance state" in text):
                return True
    return False


def translate(error: ReplyError, doing: str, *, kind: str = "") -> TransportError:
    """Our error for an error reply. `doing` says what was tried, for the person who reads it; `kind` what the keys should
    hold, where all hold the same."""
    word, text = code(error), str(error)
    if word == "WRONGTYPE" and kind:
        return Refused(f"{doing}: the key holds something that is not a {kind} ({text})")
    if word == "EXECABORT" and (why := text.partition("because of: ")[2]):  # what EXEC itself was refused for
        return translate(ReplyError(why), doing, kind=kind)
    if "executing the script" in text or "ACL failure in script" in text:
        word = "NOPERM"
    if word in _WAIT or "max number of clients" in text:
        return Unavailable(f"{doing}: {_WAIT.get(word, 'the server has too many clients')} ({text})")
    if word in _REFUSE:
        return Refused(f"{doing}: {_REFUSE[word]} ({text})")
    return Refused(f"{doing}: the server answered {text!r}")


def check(reply: Reply, doing: str) -> Reply:
    """`reply`, or raise what it means when it is an error."""
    if isinstance(reply, ReplyError):
        raise translate(reply, doing) from reply
    return reply


def chunks(items: list[T], size: int = 500) -> list[list[T]]:
    """Pieces of a list, for requests of bounded length."""
    return [items[at : at + size] for at in range(0, len(items), size)]


def pairs(flat: Reply) -> dict[bytes, Reply]:
    """A flat RESP2 list of names and values as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}
