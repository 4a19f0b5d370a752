"""Groups of one process each: fan-out. `Worker("dashboard", group=PER_INSTANCE)` in five processes sees every event
five times.

Theory of operation. Each process makes a group of its own, `dashboard@host-pid-random`, a name that nobody ever has
again, and declares it as an instance. It begins at the latest entry unless told otherwise, and when the process leaves
it removes the group with all that belongs to it. A process that is killed cannot do that. So whoever maintains the
namespace (any bus, with workers or without) watches the heartbeats of all instances, and removes a group whose beat has
stood still for LEASE_SECONDS while looking on got through. It would else hold its entries, and show a lag, for ever.

A process that was only paused for longer than that finds its group gone, makes it anew after the last entry that it
had read, and goes on: nothing is lost but its dead letters, what its handlers kept in `ctx.state`, and what retention,
which waited for it no longer, has removed meanwhile. `bus.loss` tells of that. What it held in its hands meanwhile it may
commit, since nobody else can have run it. That is why removing does not fence.

The declaration goes last and comes first, so that what was begun and not finished is found again.
"""

import enum
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import trio

from canvasbus.consume.declaration import read_group
from canvasbus.consume.liveness import Heart, Watcher, count_in
from canvasbus.errors import TransportError
from canvasbus.log import get_logger
from canvasbus.transport.group_scripts import FORGET
from canvasbus.transport.link import Link, SharedLink
from canvasbus.transport.resp import Operation, check, chunks, command, commands, pairs
from canvasbus.transport.server import Server
from canvasbus.wire.keys import Keys

LEASE_SECONDS = 60.0
"""An instance whose heartbeat stands still for so long is gone."""

LOOK_SECONDS = 5.0
REMOVE_SECONDS = 3.0

log = get_logger("canvasbus.worker")


class PerInstance(enum.Enum):
    """The type of PER_INSTANCE."""

    PER_INSTANCE = "PER_INSTANCE"

    def __repr__(self) -> str:
        return self.name


PER_INSTANCE: Final = PerInstance.PER_INSTANCE
"""As a group: one of its own for every process, so that each sees all events."""


def forget(
    keys: Keys, group: str, beats: dict[bytes, bytes] | None = None, foreign: Iterable[bytes] = ()
) -> Operation[bool]:
    """Remove a group of one partition with all that belongs to it: cursors, pending entries, heartbeats, what its
    workers accept, dead letters, state, marks, declaration. Events for later that its handlers have set still come.

    `beats`: only if no heart has beaten since these were seen; False: one has. `foreign`: streams that may have the group
    without being known as topics."""
    (names,) = yield command("SMEMBERS", keys.topics)
    topics = {keys.stream(name.decode("utf-8", "replace")) for name in check(names, "look for topics")}
    streams = sorted(topics | set(foreign))
    seen: list[bytes | str | int] = [word for pair in (beats or {}).items() for word in pair]
    args: list[bytes | str | int] = [group, -1 if beats is None else len(seen), *seen]
    hashes = [keys.beats(group), keys.groups]
    for some in chunks(streams):
        if not check((yield from FORGET.call([*hashes, *some], [0, *args])), "remove a group"):
            return False
    cursor: bytes | int = 0
    for prefix in (keys.state(group, ""), keys.parts(group, ""), keys.done(group, "")):
        pattern = re.sub(rb"([\[\]?*\\])", rb"\\\1", prefix) + b"*"
        while True:
            (reply,) = yield command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            cursor, found = check(reply, "look for state")
            if found:
                check((yield command("DEL", *found))[0], "remove state")
            if int(cursor) == 0:
                break
    (retried,) = yield command("SMEMBERS", keys.retries(group))
    types = [name.decode("utf-8", "replace") for name in check(retried, "look for retries")]
    own = [
        keys.reaper(group),
        keys.accepts(group),
        keys.dead(group),
        keys.paused(group),
        keys.cursors(group),
        keys.retries(group),
        *(keys.retry(group, name) for name in types),
    ]
    return bool(check((yield from FORGET.call([*hashes, *own], [len(own), *args])), "remove a group"))


class Instances:
    """Finds and removes what killed instances left behind in one partition."""

    def __init__(self, shared: SharedLink, keys: Keys) -> None:
        self.removed = 0
        self._shared = shared
        self._keys = keys
        self._looks = 0
        self._watcher = Watcher("", LEASE_SECONDS)

    async def look(self) -> None:
        """Look at the heartbeats of all instances, and remove those that are gone. Call it every LOOK_SECONDS."""
        try:
            await self._look()
        except TransportError:
            self._watcher.reset()
            raise

    async def _look(self) -> None:
        keys = self._keys
        declared = pairs(check(await self._shared.call("HGETALL", keys.groups), "look for groups"))
        groups = [name.decode("utf-8", "replace") for name, about in declared.items() if read_group("", about).instance]
        beats: dict[str, dict[bytes, bytes]] = {}
        for some in chunks(groups):
            replies = await self._shared.request(commands(*(("HGETALL", keys.beats(group)) for group in some)))
            beats |= {g: pairs(check(r, "look at heartbeats")) for g, r in zip(some, replies, strict=True)}
        # The watcher judges only while its own beat moves: here, while looking gets through.
        self._looks += 1
        counts = {group: _sum(found) for group, found in beats.items()} | {"": self._looks}
        for group in self._watcher.judge(trio.current_time(), counts, groups):
            if await self._shared.run(forget(keys, group, beats[group])):
                self.removed += 1
                log.warning("the group of a process that is gone has been removed", group=group)

    def __repr__(self) -> str:
        return f"<Instances of {self._keys!r}, {self.removed} removed>"


async def dismiss(server: Server, shared: SharedLink, partitions: list[Keys], group: str, heart: Heart) -> None:
    """Remove the group of an instance that leaves, once its heart has stopped and what it has sent is executed."""
    link = Link(server)  # of its own: the bus may be closing the shared one at this moment
    try:
        with trio.move_on_after(REMOVE_SECONDS, shield=True) as scope:
            await heart.wait_silent()
            with suppress(TransportError):  # told to leave while it joined: what would make the group is ahead of this
                await shared.call("PING")
            for keys in partitions:
                await link.run(forget(keys, group))
        if scope.cancelled_caught:
            log.warning("the group of this process could not be removed in time; others do", group=group)
    except TransportError as error:
        log.warning("the group of this process could not be removed; others do", group=group, error=str(error))
    finally:
        await link.aclose()


def _sum(beats: dict[bytes, bytes]) -> int:
    return sum(count_in(count) or 0 for count in beats.values())
