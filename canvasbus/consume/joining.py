"""How a worker joins: it makes its groups, checks that its user may do what it will need, and finds topics of globs."""

import json
import re

from canvasbus.consume.dispatch import Lane
from canvasbus.consume.handlers import Handler, Worker
from canvasbus.consume.instances import PER_INSTANCE
from canvasbus.consume.subscription import Subscription
from canvasbus.errors import Refused
from canvasbus.log import get_logger
from canvasbus.transport.link import SharedLink
from canvasbus.transport.resp import ReplyError, check, code, command, commands, translate
from canvasbus.wire.keys import Keys

log = get_logger("canvasbus.worker")


class Joining:
    """Joins the partitions of a namespace for one incarnation of a worker."""

    def __init__(
        self, worker: Worker, group: str, shared: SharedLink, lane_of: dict[Handler, Lane], *, check_rights: bool
    ) -> None:
        self._worker = worker
        self._group = group
        self._shared = shared
        self._lane_of = lane_of
        self._check = check_rights
        self._unusable: set[str] = set()

    async def join(self, subscription: Subscription) -> None:
        """Subscribe to all topics of the worker in one partition. Raises TransportError."""
        keys, group = subscription.keys, self._group
        (known,) = await self._shared.request(command("HEXISTS", keys.groups, group))
        check(known, f"join group {group!r}")
        if self._worker.group is PER_INSTANCE:  # first of all: what we make must be found when we are killed
            await self.declare(keys)
        for handler, lane in self._lane_of.items():
            for event_type in handler.types:
                await subscription.add(event_type, lane)
        if self._worker.has_globs:
            await self.discover(subscription, scan=True, from_start=bool(known))
        await self.find_retries(subscription)
        await self.declare(keys)
        if self._check and subscription.topics:
            await self._check_rights(subscription, next(iter(subscription.topics)))

    async def find_retries(self, subscription: Subscription) -> None:
        """Read what was put back to work out of the group's dead letters."""
        names = check(await self._shared.call("SMEMBERS", subscription.keys.retries(self._group)), "look for retries")
        for event_type in sorted(name.decode("utf-8", "replace") for name in names):
            handler = self._worker.handler_for(event_type)
            if handler is not None:
                await subscription.add_retries(event_type, self._lane_of[handler])

    async def declare(self, keys: Keys, *, anew: bool = True) -> None:
        """Say that this group exists and what it reads. Not `anew`: only if that is gone from the server."""
        handlers = self._worker.handlers
        about: dict[str, object] = {
            "types": sorted({t for h in handlers for t in h.types}),
            "globs": sorted({g for h in handlers for g in h.globs}),
        }
        if self._worker.group is PER_INSTANCE:
            about["instance"] = True
        reply = await self._shared.call("HSET" if anew else "HSETNX", keys.groups, self._group, json.dumps(about))
        check(reply, f"join group {self._group!r}")

    async def _check_rights(self, subscription: Subscription, stream: bytes) -> None:
        """Raise Refused if the user lacks a command that is needed only when something goes wrong: without it a worker
        would run well until the day on which nobody takes over from the dead. None of these changes anything."""
        keys, group, me = subscription.keys, self._group, subscription.consumer
        none, beats = keys.fence(me), keys.beats(group)
        packet = commands(
            ("XACK", stream, group, "0-0"),
            ("XPENDING", stream, group),
            ("XCLAIM", stream, group, me, 0, "0-0", "JUSTID"),
            ("XRANGE", stream, "-", "-", "COUNT", 1),
            ("XADD", none, "NOMKSTREAM", "*", "e", ""),
            ("XINFO", "GROUPS", stream),
            ("XINFO", "CONSUMERS", stream, group),
            ("XGROUP", "DELCONSUMER", stream, group, me),
            ("TYPE", none),
            ("GET", none),
            ("SET", none, "dead", "XX"),
            ("EXPIRE", none, 1),
            ("PEXPIRE", none, 1),
            ("PTTL", none),
            ("HINCRBY", beats, me, 0),
            ("HGETALL", beats),
            ("HDEL", beats, me),
            ("SMEMBERS", keys.topics),
            ("SCAN", 0, "COUNT", 1),
            ("EVAL", "return 1", 0),
            ("EVALSHA", "0" * 40, 0),
            *((("XGROUP", "DESTROY", none, group), ("DEL", none)) if self._worker.group is PER_INSTANCE else ()),
        )
        for reply in await self._shared.request(packet):
            if isinstance(reply, ReplyError) and code(reply) == "NOPERM":
                raise translate(reply, f"run worker {group!r}")

    async def discover(self, subscription: Subscription, *, scan: bool, from_start: bool) -> None:
        """Subscribe to topics that a glob matches and that are not read yet."""
        keys = subscription.keys
        names = {
            name.decode("utf-8", "replace")
            for name in check(await self._shared.call("SMEMBERS", keys.topics), "look for topics")
        }
        cursor: bytes | int = 0
        while scan:
            cursor, found = check(
                await self._shared.call("SCAN", cursor, "MATCH", _escaped(keys.stream_pattern), "COUNT", 1000),
                "look for streams",
            )
            names |= {keys.type_of(stream) for stream in found if stream.isascii()}
            if int(cursor) == 0:
                break
        for name in sorted(names):
            if keys.stream(name) in subscription.topics:
                continue
            handler = self._worker.handler_for(name)
            if handler is None or name in handler.types or name in self._unusable:
                continue
            try:
                await subscription.add(name, self._lane_of[handler], from_start=from_start)
            except Refused as error:  # one key that is no stream must not stop the other topics
                self._unusable.add(name)
                log.error("a topic that a glob matches cannot be read", group=self._group, topic=name, error=str(error))


def _escaped(pattern: bytes) -> bytes:
    """The pattern with everything but its last star taken literally."""
    return re.sub(rb"([\[\]?\\])", rb"\\\1", pattern)
