"""Which versions of which types a worker takes: told by it, and asked before a new version is published.

Theory of operation. A worker reads what its process has declared: of each type the versions from the oldest that it can
upcast to the newest. It says so with its heartbeat (`Keys.accepts`: incarnation → JSON), with the first beat, with the
first on another connection, when it has become something else (a module that declares a newer version was imported,
the worker drains and takes nothing any more), and whenever the server has forgotten it. So it costs nothing per event
and next to nothing per beat. It goes in the same script as the heartbeat: when the worker leaves, or when the others
find it dead. Who asks believes it of those whose heart beats, and of no others.

A worker of a canvasbus that did not say so yet, and one whose entry a stranger has spoilt, are unknown: neither yes nor no.
"""

import enum
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from canvasbus.consume.handlers import Worker
from canvasbus.contract.globs import listens
from canvasbus.contract.registry import Registry
from canvasbus.transport.resp import Operation, ReplyError, chunks, commands, pairs
from canvasbus.wire.codec import VERSIONS_AHEAD
from canvasbus.wire.keys import Keys

Version = Annotated[int, Meta(ge=1)]


class Does(enum.StrEnum):
    """What a worker does with an event of some version."""

    TAKE = "take"
    PARK = "park"
    """Newer than it knows: left to workers of its group that know it."""
    GIVE_UP = "give up"
    """A dead letter: of a version before those that it reads, of a number that is none, or of a type that it handles and
    does not know."""
    LEAVE = "leave"
    """It does not listen to the type."""


class Accepted(Struct, frozen=True):
    """What one worker takes."""

    types: dict[str, tuple[Version, Version] | None] = {}
    """Type that it handles → the oldest and the newest version that it reads; None: its process has not declared any."""
    globs: tuple[str, ...] = ()
    """What else it handles: types that its process does not know yet, and that come to it all the same."""

    def versions(self, event_type: str) -> tuple[int, int] | None:
        """The oldest and the newest version that it reads; None: none."""
        return self.types.get(event_type)

    def does(self, event_type: str, version: int) -> Does:
        """What it would do with an event of this version."""
        reads = self.types.get(event_type)
        if reads is None:
            return Does.GIVE_UP if listens(event_type, self.types, self.globs) else Does.LEAVE
        oldest, newest = reads
        if oldest <= version <= newest:
            return Does.TAKE
        return Does.PARK if newest < version <= newest + VERSIONS_AHEAD else Does.GIVE_UP


NOTHING = Accepted()
"""What a worker takes that leaves."""

_decode = msgspec.json.Decoder(Accepted).decode
encode = msgspec.json.Encoder(order="deterministic").encode
"""As it lies on the server."""


def accepted(worker: Worker, known: Registry) -> Accepted:
    """What a worker of a process with this registry takes. The heart's thread calls it: names are copied in one step."""
    types: dict[str, tuple[int, int] | None] = {name: None for h in worker.handlers for name in h.types}
    for name in known.names():
        newest = known.latest(name)
        if newest is not None and worker.handler_for(name) is not None:
            types[name] = newest.upcasters.since, newest.version
    return Accepted(types, tuple(dict.fromkeys(glob for h in worker.handlers for glob in h.globs)))


def read(value: bytes | None) -> Accepted | None:
    """What a worker said; None: it said nothing, or what lies there is nothing that a worker says."""
    try:
        return None if value is None else _decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def acceptances(partitions: Sequence[Keys], names: list[str]) -> Operation[dict[str, dict[bytes, Accepted | None]]]:
    """Group → what each of its workers said that it accepts, the dead among them; None: nothing that can be read."""
    result: dict[str, dict[bytes, Accepted | None]] = {name: {} for name in names}
    for keys in partitions:
        for some in chunks(names):
            replies = yield commands(*(("HGETALL", keys.accepts(name)) for name in some))
            for name, reply in zip(some, replies, strict=True):
                for consumer, value in {} if isinstance(reply, ReplyError) else pairs(reply).items():
                    result[name][consumer] = result[name].get(consumer) or read(value)
    return result
