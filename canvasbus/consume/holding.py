"""What a worker holds in a group that was made anew: pending in it again, in the worker's name, so that it is handed back,
or taken over, should the worker go.

Asked for by `membership`, which hears that the group is a new one; done by the task that commits, before anything else:
what a commit looks up must be found, and what was committed since must not be pending again.
"""

from collections.abc import Callable

from canvasbus.consume.delivery import Topic
from canvasbus.consume.fence import Fence
from canvasbus.ids import id_order
from canvasbus.transport.group_scripts import HOLD
from canvasbus.transport.link import Link
from canvasbus.transport.resp import Argument, chunks


class Holding:
    """Of one incarnation in one partition."""

    def __init__(self, fence: Fence, group: str, consumer: str, *, on_due: Callable[[], None]) -> None:
        self._fence = fence
        self._group = group
        self._consumer = consumer
        self._on_due = on_due
        self._anew: list[tuple[Topic, bytes]] = []

    @property
    def due(self) -> bool:
        """Whether there is something to do."""
        return bool(self._anew)

    def again(self, topic: Topic, start: bytes) -> None:
        """The group was made anew behind `start`: what we hold before that is to be pending in our name again."""
        self._anew.append((topic, start))
        self._on_due()

    async def run(self, link: Link) -> None:
        """Do what is due. (From outside of the task that commits only after the end of that.)"""
        while self._anew:
            topic, start = self._anew[0]
            for some in chunks([i for i in topic.held if id_order(i) <= id_order(start)]):
                args: list[Argument] = [self._group, self._consumer, *some]
                while await self._fence.run(link, HOLD, [topic.stream], args) == b"STALE":
                    if not await self._fence.raise_number(link):
                        break
            del self._anew[0]  # others may have come behind it meanwhile

    def __repr__(self) -> str:
        return f"<Holding of {self._group}, {len(self._anew)} groups anew>"
