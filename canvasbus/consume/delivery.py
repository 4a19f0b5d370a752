"""Delivery: one entry in the hands of this worker. Bad input is a delivery too, with the failure inside."""

from collections.abc import Collection
from datetime import datetime
from itertools import repeat
from typing import TYPE_CHECKING

import msgspec

from canvasbus.contract.event import Event
from canvasbus.errors import DecodeError
from canvasbus.ids import id_order
from canvasbus.wire.codec import Codec, decode_envelope
from canvasbus.wire.envelope import Envelope
from canvasbus.wire.traceparent import sound

if TYPE_CHECKING:
    from canvasbus.consume.dispatch import Lane
    from canvasbus.consume.settle import Settler
    from canvasbus.consume.state import Run


NO_DOUBT = (0, 0)


class Topic:
    """One stream that this worker reads: what it holds of it and what is to be acknowledged."""

    __slots__ = ("acks", "cursor", "doubt", "event_type", "held", "lane", "settler", "stream", "suspects")

    def __init__(self, event_type: str, stream: bytes, lane: "Lane", settler: "Settler") -> None:
        self.event_type = event_type
        self.stream = stream
        self.lane = lane
        self.settler = settler
        self.cursor = b"0-0"
        """The last entry id known to be delivered to the group: where it is made anew when it is lost."""
        self.doubt = NO_DOUBT
        """Entries up to this one may have been read from a server whose last seconds are lost: the server of now may
        give them to somebody else, or to us again. Settling looks up whether they are ours."""
        self.held: set[bytes] = set()
        """Entry ids that are pending under our name and in our hands."""
        self.suspects: dict[bytes, Delivery] = {}
        """Those of them whose last owner died, by entry id."""
        self.acks: list[tuple[bytes, list[bytes]]] = []
        """Entry ids and fields of what is done, emits nothing and waits for the next XACK. (Not the deliveries: thousands of
        them, with their events, would cost a tenth of a worker's speed.)"""

    def let_go(self, entry_ids: Collection[bytes]) -> None:
        """These are in our hands no more."""
        self.held.difference_update(entry_ids)
        if self.suspects:
            for entry_id in entry_ids:
                self.suspects.pop(entry_id, None)

    def doubt_held(self) -> None:
        """What is in our hands was given to us by another server than the one of now."""
        self.doubt = max(map(id_order, self.held), default=self.doubt)

    def doubts(self, entry_id: bytes) -> bool:
        """Whether what this entry is to the server of now has to be looked up."""
        return self.doubt is not NO_DOUBT and id_order(entry_id) <= self.doubt

    def trust_again(self) -> bool:
        """Forget a doubt that nothing in our hands falls under. True: there was one."""
        if self.doubt is NO_DOUBT or any(map(self.doubts, self.held)):
            return False
        self.doubt = NO_DOUBT
        return True

    def __repr__(self) -> str:
        return f"<Topic {self.event_type} at {self.cursor.decode()}, {len(self.held)} held>"


class Delivery(msgspec.Struct, eq=False):
    """An entry, decoded or not, and how often it has failed. (A Struct for its speed: one is built per event.)"""

    topic: Topic
    entry_id: bytes
    fields: list[bytes]
    """The entry as it lies on the stream."""
    envelope: Envelope | None
    event: Event | None
    error: DecodeError | None
    """Why it could not be read; None: it could."""
    failures: int = 0
    """Failed attempts before this one."""
    suspect: bool = False
    """Its last owner died (see `quarantine`)."""
    alone: bool = False
    """A suspect that was running among few others when its owner died: from now on it runs alone."""
    deadly: bool = False
    """A suspect of which as many workers have died, or that has failed as often until one did, as it has attempts: it is
    given up."""
    look: bool = False
    """It came by way of a pool: settling looks up whether it is still ours."""
    overdue: bool = False
    """It was parked for newer workers for so long that it is given up."""
    extended: float = 0.0
    """Until when this run may go on by its own word, on our monotonic clock; 0: it said none."""
    runs: int = 0
    """Changes with each run, so that what one leaves behind has no word in the next."""
    first_failure: datetime | None = None
    mark: bytes | None = None
    """What the mark of its event said when it was read (see `inbox`), empty: there was none; None: nobody has looked."""
    run: "Run | None" = None
    """What the present run of its handler holds and changes; None: nothing."""
    span: str | None = None
    """The traceparent of its latest run, where somebody traces runs."""

    @property
    def traceparent(self) -> str | None:
        """What follows from it carries this trace context: that of the run, else that of its event."""
        return self.span or (sound(self.envelope.traceparent) if self.envelope else None)

    def __repr__(self) -> str:
        state = f"undecodable: {self.error.reason}" if self.error else f"{self.failures} failures"
        return f"<Delivery {self.topic.event_type} {self.entry_id.decode()} {state}>"


def deliver_many(codec: Codec, topic: Topic, entries: list[tuple[bytes, list[bytes]]]) -> list[Delivery]:
    """Decode the entries of one read. When all are the ordinary case (a msgpack envelope of the newest version of the
    topic's type) that is done in C loops; as soon as one is not, each is looked at by itself."""
    declared = codec.registry.latest(topic.event_type)
    try:
        if declared is None:
            raise LookupError
        names = {fields[0] for _, fields in entries}
        values = [value for _, (_, value) in entries]
        if names != {b"e"} or max(map(len, values)) > codec.limit:
            raise LookupError
        envelopes = list(map(decode_envelope, values))
        if {(envelope.type, envelope.version) for envelope in envelopes} != {(declared.name, declared.version)}:
            raise LookupError
        events = list(map(declared.decoder.decode, [envelope.data for envelope in envelopes]))
    except Exception:  # deliver() meets whatever it was again, and names it
        return [deliver(codec, topic, entry_id, fields) for entry_id, fields in entries]
    entry_ids, all_fields = zip(*entries, strict=True)
    return list(map(Delivery, repeat(topic), entry_ids, all_fields, envelopes, events, repeat(None)))


def deliver(codec: Codec, topic: Topic, entry_id: bytes, fields: list[bytes]) -> Delivery:
    """Decode one entry. Never raises: what cannot be read is a Delivery whose `error` says why."""
    envelope = None
    try:
        if len(fields) != 2 or fields[0] != b"e":
            raise DecodeError(
                f"not an entry of the bus: it has the fields {_names(fields)} where one field 'e' is expected",
                reason="foreign",
            )
        envelope, event = codec.decode(fields[1], stream_type=topic.event_type, entry_id=entry_id.decode())
    except DecodeError as error:
        if envelope is None and len(fields) == 2:
            try:
                envelope = codec.open_envelope(fields[1], stream_type=topic.event_type, entry_id=entry_id.decode())
            except DecodeError:
                pass
        return Delivery(topic, entry_id, fields, envelope, None, _without_frames(error))
    return Delivery(topic, entry_id, fields, envelope, event, None)


def _without_frames(error: DecodeError) -> DecodeError:
    """Our frames hold the deliveries of the whole read, and this one with them: that would live until the collector comes."""
    found: BaseException | None = error
    while found is not None:
        found.__traceback__ = None
        found = found.__cause__ or found.__context__
    return error


def _names(fields: list[bytes]) -> str:
    return ", ".join(repr(name.decode("utf-8", "replace")[:40]) for name in fields[:10:2]) or "none"
