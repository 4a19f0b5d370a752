"""How a worker leaves: what nobody has begun is handed back at once, what runs may finish within the grace time and is
committed, the rest is cancelled and handed back, and the group is left where nothing is owned."""

from collections.abc import Sequence
from contextlib import suppress

import trio

from canvasbus.consume.delivery import Delivery
from canvasbus.consume.dispatch import Lane
from canvasbus.consume.liveness import Heart
from canvasbus.consume.policy import count_for
from canvasbus.consume.subscription import Subscription
from canvasbus.errors import TransportError, Unavailable
from canvasbus.log import get_logger
from canvasbus.transport.link import Link, SharedLink
from canvasbus.transport.owner_scripts import RELEASE
from canvasbus.transport.resp import Argument, check, chunks, command
from canvasbus.transport.scripts import FENCE_SECONDS
from canvasbus.transport.server import Server
from canvasbus.wire.keys import FREE_POOL, SUSPECT_POOL

GRACE_SECONDS = 25.0
"""How long running handlers may go on after a SIGTERM (Kubernetes kills after 30)."""

STOP_SECONDS = 2.0
"""What a read that is under way, and then handing back what waits, may take."""

LEAVE_SECONDS = 3.0
"""What handing back and leaving the group may take at the very end."""

AWAY_SECONDS = 0.5
"""The same with a server that has just not answered."""

HAND_BACK_AT_ONCE = 500
HAND_BACK_SECONDS = 1.0
"""Between two attempts while the server cannot be reached."""

_NOT_HANDED_BACK = "could not hand back; others take over in a few seconds"

log = get_logger("canvasbus.worker")


class _Fenced(Unavailable):
    """Others have taken us for dead."""


class _Away(Unavailable):
    """There is no group to hand something back to."""


_Entry = tuple[bytes, bytes, int]
"""Stream, id, and failures to write down once more, since that may still be on its way (0: none)."""


def _entries(deliveries: Sequence[Delivery]) -> list[_Entry]:
    return [(delivery.topic.stream, delivery.entry_id, delivery.failures) for delivery in deliveries]


class Leaving:
    """The end of one incarnation."""

    def __init__(self, group: str, subscriptions: Sequence[Subscription], lanes: Sequence[Lane], heart: Heart) -> None:
        self._group = group
        self._subscriptions = subscriptions
        self._lanes = lanes
        self._heart = heart
        self._staying = list(subscriptions)
        """Those that have not left yet."""
        self._back: list[Delivery] = []
        self._work = trio.Event()

    def hand_back(self, deliveries: list[Delivery]) -> None:
        """Give deliveries that a lane has no use for now to whoever has, soon."""
        self._back += deliveries
        self._work.set()

    async def run(self, shared: SharedLink) -> None:
        """Hand back what there is to hand back, until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._back:
                batch = self._back[:HAND_BACK_AT_ONCE]
                try:
                    moved = await self._release(shared, _entries(batch))
                    if moved < len(batch) and await self._group_is_new(shared):
                        raise _Away("hand back: the consumer group was made anew")
                except TransportError:
                    settlers = [subscription.settler for subscription in self._subscriptions]
                    doubtful = [settler for settler in settlers if settler.fence.in_doubt]
                    for settler in doubtful:  # come late, it would take what we have got again by then out of our hands
                        await settler.make_sure()
                    if not doubtful:
                        await trio.sleep(HAND_BACK_SECONDS)
                    continue  # repeating it is safe: only what is still ours moves
                del self._back[: len(batch)]
                for delivery in batch:
                    delivery.topic.let_go((delivery.entry_id,))
                for subscription in self._subscriptions:
                    subscription.recovery.handed_back()

    async def _group_is_new(self, shared: SharedLink) -> bool:
        """What we hold is not pending in it yet."""
        for subscription in self._subscriptions:
            await subscription.membership.report(shared)
        return any(subscription.settler.holding.due for subscription in self._subscriptions)

    async def drain(self, shared: SharedLink, grace: float) -> None:
        """Stop reading, hand back what waits, and give the running handlers `grace` seconds."""
        deadline = trio.current_time() + grace
        for subscription in self._subscriptions:
            subscription.stop()
        with trio.move_on_after(max(grace, STOP_SECONDS)):
            for subscription in self._subscriptions:
                await subscription.stopped.wait()
        rest = [delivery for lane in self._lanes for delivery in lane.stop()]
        log.info(
            "worker leaves",
            group=self._group,
            handed_back=len(rest),
            running=sum(lane.running for lane in self._lanes),
            grace=grace,
        )
        with trio.move_on_after(STOP_SECONDS):
            try:
                moved = await self._release(shared, _entries(rest))
                if moved == len(rest):  # else the group may be away, or a new one: `_leave` sees to it
                    for delivery in rest:
                        delivery.topic.let_go((delivery.entry_id,))
            except TransportError:
                pass  # tried once more at the very end
        for subscription in self._subscriptions:
            subscription.settler.leave()
        with trio.move_on_at(deadline) as scope:
            for lane in self._lanes:
                await lane.wait_quiet()
        if scope.cancelled_caught and any(lane.held for lane in self._lanes):
            log.warning(
                "the grace time is over; what still runs is cancelled and handed back",
                group=self._group,
                running=sum(lane.running for lane in self._lanes),
            )

    @property
    def seconds(self) -> float:
        """What `leave` may take."""
        return AWAY_SECONDS if any(s.away for s in self._subscriptions) else LEAVE_SECONDS

    async def leave(self, server: Server) -> None:
        """Hand back all that is still held and leave the group. Tried until the caller's deadline (`seconds`): a lost
        reply must not keep what we held from others until they take us for dead."""
        failure = "it took too long"
        pause = 0.02
        try:
            while True:
                try:
                    await self._leave(server)
                    return
                except Unavailable as error:  # repeated it finds what is left; done, it finds nothing
                    failure = str(error)
                    if isinstance(error, _Away):  # there is one by now, and it took most of our time to make it
                        pause = 0.02
                    await trio.sleep(pause)
                    pause = min(pause * 2, 0.5)
        except TransportError as error:
            failure = str(error)
        except trio.Cancelled:
            log.warning(_NOT_HANDED_BACK, group=self._group, error=failure)
            raise
        log.warning(_NOT_HANDED_BACK, group=self._group, error=failure)

    async def _leave(self, server: Server) -> None:
        link = Link(server)  # of its own: the bus may be closing the shared one at this moment
        try:
            await link.connect()
            for subscription in self._subscriptions:
                for topic in subscription.topics.values():
                    if topic.acks:  # done, but the settler had no time to say so
                        done = [entry_id for entry_id, _ in topic.acks]
                        await link.request(command("XACK", topic.stream, self._group, *done))
                        topic.held.difference_update(done)
            away = False
            # What failed within the grace time may not have been written down yet.
            failures = {(d.topic, d.entry_id): d.failures for lane in self._lanes for d in lane.put_off}
            for subscription in self._staying:
                if subscription.settler.fence.in_doubt:  # what it settles, or takes, is not handed back with the rest
                    await subscription.settler.fence.raise_number(link)  # if others have, handing back finds out
                await subscription.membership.report(link)  # others may have made the group anew a moment ago
                await subscription.settler.holding.run(link)
                try:
                    await self._release_unheld(link, subscription)
                    topics = subscription.topics.values()
                    held = [(t.stream, i, failures.get((t, i), 0)) for t in topics for i in t.held]
                    await self._release(link, held)
                except _Fenced:  # others have what we held, of this partition
                    pass
                except _Away:
                    away = True
                    await subscription.membership.find_gone(link)
            if away:
                for subscription in self._staying:
                    await subscription.membership.restore(link)
                raise _Away("hand back: the consumer group was gone")
            await self._heart.wait_silent()  # behind what others wait for
            while self._staying:
                with suppress(_Fenced):  # also by ourselves: the answer was lost
                    await self._call_release(link, self._staying[0], FREE_POOL, [], leave=True)
                del self._staying[0]
        finally:
            await link.aclose()

    async def _release_unheld(self, link: Link, subscription: Subscription) -> None:
        """Hand back what the group has given us without our knowing, as it was."""
        found, suspects = await subscription.recovery.unheld(link)
        place = {stream: index for index, stream in enumerate(subscription.topics)}
        words: list[tuple[bytes | str | int, ...]] = [(place[s] + 3, entry_id, "") for s, entry_id in found]
        for chunk in chunks(words):
            await self._call_release(link, subscription, SUSPECT_POOL if suspects else FREE_POOL, chunk)

    async def _release(self, link: Link | SharedLink, entries: Sequence[_Entry]) -> int:
        """Hand back to the pools. Returns how many were ours."""
        moved = 0
        for subscription in self._subscriptions:
            place = {stream: index + 3 for index, stream in enumerate(subscription.topics)}
            free: list[tuple[bytes | str | int, ...]] = []
            suspects: list[tuple[bytes | str | int, ...]] = []
            for stream, entry_id, failures in entries:
                if stream in place:
                    # A suspect stays one. Its attempt was written before it began, and cutting it short was our doing.
                    suspect = subscription.topics[stream].suspects.get(entry_id)
                    retry = subscription.topics[stream].lane.handler.retry
                    if suspect is None:
                        free.append((place[stream], entry_id, count_for(failures, retry) if failures else ""))
                    elif suspect.deadly:
                        suspects.append((place[stream], entry_id, suspect.failures + 1))
                    else:
                        count = 0 if suspect.alone and not suspect.failures else count_for(suspect.failures, retry)
                        suspects.append((place[stream], entry_id, count))
            for pool, words in (SUSPECT_POOL, suspects), (FREE_POOL, free):
                for chunk in chunks(words):
                    moved += await self._call_release(link, subscription, pool, chunk)
        return moved

    async def _call_release(
        self,
        link: Link | SharedLink,
        subscription: Subscription,
        pool: str,
        entries: Sequence[tuple[bytes | str | int, ...]],
        *,
        leave: bool = False,
    ) -> int:
        keys = subscription.keys
        names = [keys.beats(self._group), *subscription.topics, keys.accepts(self._group)]
        args: list[Argument] = [self._group, subscription.consumer, pool, 1 if leave else 0, FENCE_SECONDS]
        for entry in entries:
            args += entry
        reply = check(await subscription.settler.fence.run(link, RELEASE, names, args), "hand back")
        if reply == b"FENCED":
            raise _Fenced("hand back: others have taken us for dead")
        if reply == b"AWAY":
            subscription.group_away()
            raise _Away("hand back: the consumer group is gone")
        if reply == b"STALE":
            raise Unavailable("hand back: what raised the fence came late")
        return int(reply)
