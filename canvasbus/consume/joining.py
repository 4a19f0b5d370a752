"""How a worker joins: it makes its groups, checks that its user may do what it will need, and finds topics of globs."""

from canvasbus.consume.declaration import declaration
from canvasbus.consume.dispatch import Lane
from canvasbus.consume.handlers import Handler, Worker
from canvasbus.consume.instances import PER_INSTANCE
from canvasbus.consume.subscription import Subscription
from canvasbus.errors import Refused
from canvasbus.log import get_logger
from canvasbus.transport.link import SharedLink
from canvasbus.transport.resp import check, command
from canvasbus.transport.rights import RIGHTS, denied

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
        named = [name for handler in self._lane_of for name in handler.types]
        # Before anything is made: whoever is refused leaves no group behind, which would hold retention back.
        if self._check and named:
            await self._check_rights(subscription, named[:1])
        found = await self._find(subscription, scan=True) if self._worker.has_globs else []
        if self._check and not named:
            await self._check_rights(subscription, found)
        if self._worker.group is PER_INSTANCE:  # before the groups are made: they must be found when we are killed
            await self._declare(subscription)
        for handler, lane in self._lane_of.items():
            for event_type in handler.types:
                await subscription.add(event_type, lane)
        await self._add(subscription, found, from_start=bool(known))
        retried = await self._shared.call("SMEMBERS", keys.retries(group))
        await self.read_retries(subscription, check(retried, f"join group {group!r}"))
        await self._declare(subscription)

    async def read_retries(self, subscription: Subscription, names: list[bytes]) -> None:
        """Read what was put back to work out of the group's dead letters, of the types of these names."""
        for event_type in sorted(name.decode("utf-8", "replace") for name in names):
            handler = self._worker.handler_for(event_type)
            if handler is not None:
                await subscription.add_retries(event_type, self._lane_of[handler])

    async def _declare(self, subscription: Subscription) -> None:
        """Say that this group exists and what it reads."""
        handlers = self._worker.handlers
        about = subscription.membership.declaration = declaration(
            (name for handler in handlers for name in handler.types),
            (glob for handler in handlers for glob in handler.globs),
            instance=self._worker.group is PER_INSTANCE,
        )
        reply = await self._shared.call("HSET", subscription.keys.groups, self._group, about)
        check(reply, f"join group {self._group!r}")

    async def _check_rights(self, subscription: Subscription, topics: list[str]) -> None:
        """Raise Refused if the user lacks a command that is needed only when something goes wrong: without it a worker
        would run well until the day on which nobody takes over from the dead. One of the topics is enough: of those that
        a glob has found some may be kept from it."""
        needed = [right for right in RIGHTS["worker"] if not right.optional]
        lacking: dict[str, str] = {}
        for topic in topics:
            doing = denied(needed, subscription.keys, group=self._group, event_type=topic)
            lacks = {right.name: right.use for right in await self._shared.run(doing)}
            if not lacks:
                return
            lacking = min(lacking or lacks, lacks, key=len)
        if lacking:
            raise Refused(
                f"run worker {self._group!r}: the ACL of this user forbids "
                + ", ".join(f"'{name}' (to {use})" for name, use in lacking.items())
                + "; `canvasbus doctor --acl worker` prints what a worker needs"
            )

    async def discover(self, subscription: Subscription, *, scan: bool, from_start: bool) -> None:
        """Subscribe to topics that a glob matches and that are not read yet."""
        await self._add(subscription, await self._find(subscription, scan=scan), from_start=from_start)

    async def _find(self, subscription: Subscription, *, scan: bool) -> list[str]:
        """Topics that a glob matches and that are not read yet. `scan`: also those that no list names."""
        keys, matched = subscription.keys, list[str]()
        names = {
            name.decode("utf-8", "replace")
            for name in check(await self._shared.call("SMEMBERS", keys.topics), "look for topics")
        }
        cursor: bytes | int = 0
        while scan:
            cursor, found = check(
                await self._shared.call("SCAN", cursor, "MATCH", keys.stream_pattern, "COUNT", 1000),
                "look for streams",
            )
            names |= {keys.type_of(stream) for stream in found if stream.isascii()}
            if int(cursor) == 0:
                break
        for name in sorted(names):
            handler = self._worker.handler_for(name)
            if handler is None or name in handler.types or name in self._unusable:
                continue
            if keys.stream(name) not in subscription.topics:
                matched.append(name)
        return matched

    async def _add(self, subscription: Subscription, names: list[str], *, from_start: bool) -> None:
        for name in names:
            handler = self._worker.handler_for(name)
            assert handler is not None
            try:
                await subscription.add(name, self._lane_of[handler], from_start=from_start)
            except Refused as error:  # one key that is no stream must not stop the other topics
                self._unusable.add(name)
                log.error("a topic that a glob matches cannot be read", group=self._group, topic=name, error=str(error))
