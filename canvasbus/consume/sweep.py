"""The sweep: once a second, what a worker does for its group besides handling.

All workers of a group watch each other's heartbeats; the one that holds the group's lease moves what a dead one owns to
the pool of suspects. Each also remembers how far its topics have come, looks for new topics of its globs, and now and
then audits what is pending under its own name.
"""

from collections.abc import Callable

import trio

from canvasbus import clock
from canvasbus.consume.complaints import Complaints
from canvasbus.consume.joining import Joining
from canvasbus.consume.lease import hold_lease
from canvasbus.consume.liveness import Watcher, count_in
from canvasbus.consume.subscription import Subscription
from canvasbus.errors import TransportError
from canvasbus.log import get_logger
from canvasbus.transport.link import SharedLink
from canvasbus.transport.owner_scripts import REAP
from canvasbus.transport.resp import ReplyError, check, chunks, commands, pairs
from canvasbus.transport.scripts import FENCE_SECONDS
from canvasbus.wire.keys import SUSPECT_POOL

SWEEP_SECONDS = 1.0
REAP_AT_ONCE = 500
SCAN_EVERY = 30  # sweeps between two searches for streams that a foreign writer made
AUDIT_EVERY = 30  # sweeps between two looks for entries that are ours without our knowing

log = get_logger("canvasbus.worker")


class Sweep:
    """The sweep of one incarnation over one partition."""

    def __init__(
        self,
        subscription: Subscription,
        shared: SharedLink,
        joining: Joining,
        *,
        globs: bool,
        threads: bool,
        on_reaped: Callable[[], None],
    ) -> None:
        self._subscription = subscription
        self._keys = subscription.keys
        self._group = subscription.group
        self._consumer = subscription.consumer
        self._shared = shared
        self._joining = joining
        self._globs = globs
        self._watcher = Watcher(subscription.consumer)
        self._threads = threads
        self._on_reaped = on_reaped
        self._sweeps = 0
        self._epoch = shared.epoch
        self._others: list[bytes] = []
        self._complaints = Complaints(self._group)

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                await self._sweep()
            except TransportError as error:
                self._watcher.reset()
                self._complaints.tell("watching over the other workers fails", error)
            self._sweeps += 1
            await trio.sleep(SWEEP_SECONDS)

    async def _sweep(self) -> None:
        subscription, keys = self._subscription, self._keys
        if self._shared.epoch != self._epoch:  # beats on another server say nothing about those of before
            self._epoch = self._shared.epoch
            self._watcher.reset()
        if self._globs:
            await self._joining.discover(subscription, scan=self._sweeps % SCAN_EVERY == 0, from_start=True)
        subscription.trust_again()
        await subscription.membership.report()
        if self._sweeps % AUDIT_EVERY == AUDIT_EVERY - 1:
            subscription.recovery.audit_soon()
            await subscription.trim_retries()
            fence = subscription.settler.fence
            if fence.number:  # it must not be forgotten while we live: nothing of ours would be taken
                await self._shared.call("EXPIRE", fence.key, FENCE_SECONDS)
        seen, retried = await self._shared.request(
            commands(("HGETALL", keys.beats(self._group)), ("SMEMBERS", keys.retries(self._group)))
        )
        await self._joining.read_retries(subscription, check(retried, "look for redriven events"))
        flat = check(seen, "look at heartbeats")
        beats = {_name(flat[i]): _count(flat[i + 1]) for i in range(0, len(flat), 2)}
        # Everybody watches, so that the next reaper has seen enough when the lease of a dead one ends.
        reaper, beats_count = await self._shared.run(hold_lease(keys.reaper(self._group), self._consumer))
        if not beats_count:  # without memory for the lease there is none for heartbeats
            self._watcher.reset()
        if reaper and self._sweeps % AUDIT_EVERY == 0:
            self._others = await self._other_streams()
        if reaper:
            await subscription.membership.look_for_missed()
        owners = await self._owners([*subscription.topics, *self._others]) if reaper else set()
        now = clock.monotonic() if self._threads else trio.current_time()  # the clock of those who beat
        dead = self._watcher.judge(now, beats, owners)
        if reaper and dead:
            self._others = await self._other_streams()
            for name in dead:
                await self._reap([*subscription.topics, *self._others], name)

    async def _other_streams(self) -> list[bytes]:
        """Streams of the group that this worker does not read: those of another version of it, which knows more types,
        and whose dead are ours to find as well."""
        keys, found, group = self._keys, list[bytes](), self._group
        lists = await self._shared.request(commands(("SMEMBERS", keys.topics), ("SMEMBERS", keys.retries(group))))
        topics, retried = ([name.decode("utf-8", "replace") for name in check(r, "look for topics")] for r in lists)
        streams = {keys.stream(name) for name in topics} | {keys.retry(group, name) for name in retried}
        streams -= self._subscription.topics.keys()
        for asked in chunks(sorted(streams)):
            replies = await self._shared.request(commands(*(("XINFO", "GROUPS", stream) for stream in asked)))
            for stream, reply in zip(asked, replies, strict=True):
                if not isinstance(reply, ReplyError) and group.encode() in [pairs(row)[b"name"] for row in reply]:
                    found.append(stream)
        return found

    async def _owners(self, streams: list[bytes]) -> set[str]:
        """All consumers of the group, without the pools."""
        found: set[str] = set()
        for asked in chunks(streams):
            packet = commands(*(("XINFO", "CONSUMERS", stream, self._group) for stream in asked))
            for reply in await self._shared.request(packet):
                if not isinstance(reply, ReplyError):
                    found |= {_name(row[1]) for row in reply}
        return {name for name in found if not name.startswith("~")}

    async def _reap(self, streams: list[bytes], dead: str) -> None:
        keys, group = self._keys, self._group
        moved, *gone = check(
            await self._shared.run(
                REAP.call(
                    [keys.fence(_plain(dead)), keys.beats(group), *streams, keys.accepts(group)],
                    [group, dead.encode("utf-8", "surrogateescape"), SUSPECT_POOL, REAP_AT_ONCE, FENCE_SECONDS],
                )
            ),
            f"take over from {_plain(dead)}",
        )
        for index, entry_id in zip(gone[::2], gone[1::2], strict=True):
            topic = self._subscription.topics.get(streams[index - 3])
            if topic is not None:  # else those who read that stream find it when they hold the lease
                self._subscription.recovery.lost(topic, entry_id)
        if moved > 0:
            log.warning(
                "a worker is dead; its entries run in quarantine",
                group=self._group,
                consumer=_plain(dead),
                entries=moved,
            )
        self._on_reaped()


def _name(consumer: bytes) -> str:
    """The name of a consumer, be it ours or a stranger's."""
    return consumer.decode("utf-8", "surrogateescape")


def _plain(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _count(value: bytes) -> int:
    """A count of heartbeats; what is none stands still, and is removed like one."""
    found = count_in(value)
    return -1 if found is None else found
