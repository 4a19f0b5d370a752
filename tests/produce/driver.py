"""Drives the generator of a sender over a server that loses what the test says.

What the server executes and what the sender is told are two things here: a fault decides, for one packet, whether it is
executed and whether its replies come back.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from studio import Eyes, PaintingMade

from canvasbus import Event, Refused, Unavailable
from canvasbus.produce.fenced import FencedSender, Result
from canvasbus.produce.once import PartitionSender
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.resp import Packet, Pause
from canvasbus.wire.codec import Codec
from canvasbus.wire.keys import Keys
from canvasbus.wire.outgoing import Outgoing

Fault = Literal["lost request", "lost reply", "held request"]
BATCH = b"XADD"
"""What only the packet of a batch contains."""
GONE = Unavailable("no answer in time", ambiguous=True)


class Driver:
    """Drives operations against a server and lets packets suffer what was planned for them."""

    def __init__(self, url: str, namespace: str) -> None:
        self.server = open_server(url)
        self.keys = Keys(namespace)
        self.eyes = Eyes(self.server, namespace)
        self.sender: FencedSender | PartitionSender = FencedSender(self.keys)
        self.codec = Codec("driver")
        self.plan: list[tuple[bytes, Fault | Callable[[], None]]] = []
        self.pauses: list[float] = []
        self.packets = 0
        self._link = BlockingLink(self.server)
        self._held: list[tuple[BlockingLink, Packet]] = []

    def fault(self, match: bytes, what: Fault | Callable[[], None]) -> None:
        """The next packet that contains `match` suffers a fault; a function is called before it is sent."""
        self.plan.append((match, what))

    def encoded(self, *events: Event) -> list[Outgoing]:
        return [self.codec.encode(event) for event in events]

    def send(self, *events: Event, patience: float | None = None) -> Sequence[Result]:
        return self.drive(self.encoded(*events), patience=patience)

    def drive(self, batch: Sequence[Outgoing], *, patience: float | None = None) -> Sequence[Result]:
        operation = self.sender.send(batch, patience=patience)
        try:
            wish = next(operation)
            while True:
                if isinstance(wish, Pause):
                    self.pauses.append(wish.seconds)
                    wish = operation.send([])
                    continue
                self.packets += 1
                try:
                    replies = self._request(wish)
                except (Unavailable, Refused) as error:
                    wish = operation.throw(error)
                else:
                    wish = operation.send(replies)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _request(self, packet: Packet) -> list[Any]:
        if self.plan and self.plan[0][0] in packet.data:
            what = self.plan.pop(0)[1]
            if callable(what):
                what()
                return self._link.request(packet)
            if what == "lost reply":
                self._link.request(packet)
            if what == "held request":
                self._held.append((self._link, packet))
            else:
                self._link.close()
            self._link = BlockingLink(self.server)
            raise GONE
        return self._link.request(packet)

    def release(self) -> None:
        """What was held arrives at the server at last."""
        for link, packet in self._held:
            link.request(packet)
        self._held.clear()

    def close(self) -> None:
        """End all of its connections."""
        for link in (self._link, *[link for link, _ in self._held]):
            link.close()
        self.eyes.close()

    def numbers(self) -> list[int]:
        return [made.number for made in self.eyes.events("painting.made")]


def made(*numbers: int) -> list[Event]:
    return [PaintingMade(number=number) for number in numbers]
