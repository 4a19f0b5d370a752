"""Events of a newer version than their reader knew: who takes them up, and when they are given up.

Theory of operation. While a new version is rolled out, old workers read events that only new ones can decode. An old
worker neither keeps such an entry nor hands it back, for it would read it again at once: it gives it, in the settle
script, to the pool `~v:<type>:<n>`, a name in the group's pending list that nobody is. Any worker that has version n or
a newer one registered takes from there, a batch at a time and only as far as its lane has room. An entry moves through
a pool at most once for each time that an old worker gets hold of it, which takes a read, a death or a hand-back: there
is no loop. Suspects have a pool of their own, `~vs:<type>:<n>`: what may have killed a newer worker would else come to
the next as any other, to kill it and make suspects of its neighbours, as often as the old worker gets hold of it.

When no newer worker comes, the entries go to the dead letters, whence they can be redriven: after `patience` seconds on
the server's clock, a day by default. Should that clock jump, they go there early; nothing is lost by it.

The pools of a group are found among its consumers, a list that is short, every few seconds.
"""

from collections.abc import Callable, Sequence
from random import Random

import trio

from canvasbus.consume.complaints import Complaints
from canvasbus.consume.delivery import Topic
from canvasbus.consume.subscription import Subscription
from canvasbus.consume.taking import SUSPECTS_AT_ONCE
from canvasbus.errors import TransportError
from canvasbus.transport.link import SharedLink
from canvasbus.transport.resp import ReplyError, chunks, commands
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import holds_suspects, version_in

PATIENCE_SECONDS = 24 * 3600.0
"""How long an event of a version that nobody knows waits for somebody who does."""

LOOK_SECONDS = 5.0
"""Between two looks for parked entries; new workers look as soon as they have joined."""

TAKE_AT_ONCE = 500
NEXT_SECONDS = 0.1
"""Between two batches out of one pool."""


class Parking:
    """Takes parked entries into the lanes of one incarnation."""

    def __init__(
        self,
        group: str,
        subscriptions: Sequence[Subscription],
        shared: SharedLink,
        codec: Codec,
        random: Random,
        *,
        patience: float,
        on_fenced: Callable[[], None],
    ) -> None:
        self._group = group
        self._subscriptions = subscriptions
        self._shared = shared
        self._registry = codec.registry
        self._random = random
        self._patience = patience
        self._on_fenced = on_fenced
        self._complaints = Complaints(group)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            took = 0
            for subscription in self._subscriptions:
                before = subscription.recovery.statistics.taken
                try:
                    await self._look(subscription)
                except TransportError as error:
                    self._complaints.tell("taking up parked events fails", error)
                took += subscription.recovery.statistics.taken - before
            await trio.sleep((NEXT_SECONDS if took else LOOK_SECONDS) * self._random.uniform(0.75, 1.25))

    async def _look(self, subscription: Subscription) -> None:
        for asked in chunks(list(subscription.topics.values())):
            packet = commands(*(("XINFO", "CONSUMERS", topic.stream, self._group) for topic in asked))
            for topic, rows in zip(asked, await self._shared.request(packet), strict=True):
                if isinstance(rows, ReplyError):
                    continue  # the group is gone; whoever reads makes it anew
                for row in rows:
                    await self._take(subscription, topic, row[1].decode("utf-8", "replace"))

    async def _take(self, subscription: Subscription, topic: Topic, pool: str) -> None:
        version = version_in(pool)
        if version is None:
            return
        known = self._registry.latest(topic.event_type)
        theirs = known is None or known.version < version
        lain = self._patience if theirs else None
        most = min(SUSPECTS_AT_ONCE if holds_suspects(pool) else TAKE_AT_ONCE, topic.lane.free)
        if not await subscription.recovery.take(pool, most, topic=topic, lain=lain):
            self._on_fenced()
