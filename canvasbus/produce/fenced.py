"""Fenced batches: accepted is stored, and a lost reply is neither a lost nor a doubled event.

Theory of operation. A batch goes out as one packet

    MULTI · XADD … XADD · EXEC · WATCH fence · GET full

on a connection that already WATCHes `fence`, a key of this publisher's incarnation that nobody else writes. The WATCH
for the next batch rides along, so the normal path costs no round trip and, measured on Redis 7.0.15, 1.12 µs an event
against 1.06–1.19 for a plain pipeline. A transaction also keeps order: in a plain pipeline a later XADD can succeed
after an earlier one was refused for want of memory. The last reply names the types whose streams are at their cap
(see Retention): their next events wait, or are refused.

When the reply of a batch is lost nobody knows whether it was executed, or still will be: the packet may sit in a
socket buffer somewhere. So, on a new connection: INCR the fence, which makes a late EXEC abort; then look for the
batch (see `lost`). Found: it is stored. Not there: it can never come; send it again. Not knowable: every event of it is
reported as unknown.

With `replicated`, WAIT rides along behind the batch, which counts as stored when a replica has it, too. A short answer
is like a lost one: the connection is given up, so that whoever is master now is found, and the batch looked for there;
found, it must be confirmed there. (WAIT is no consensus: with several replicas the promoted one need not be the one
that answered.)

Where the streams end is asked anew on every connection, and what the namespace needs besides is entered again, its
list of topics and its number of partitions: the server may have come back with less than it had. FLUSHALL does that
without ending a connection; the list of topics is WATCHed with the fence, so that the next EXEC says so. (It does, too,
when somebody else published a new type; then nothing is missing, and the batch goes out again.)

CLIENT KILL of the old connection was tried and rejected: client numbers restart with the server, so it once cut a
stranger, and a plain ACL forbids it. Asking "is the id there?" without a fence stored 8 of 23 ambiguous publishes
twice, when requests were held up in the network.

Who knows the next batch already (`following`) lets the same packet begin it: MULTI · XADD … stand behind the GET, and
its EXEC is sent when this batch is known to be stored. So the server parses the next batch while the client hears of
this one, and nothing of it can be stored before. Where something else must be said first, DISCARD takes it back.

Everything here is a generator that yields packets (transport.resp.Operation): threads and trio drive the same code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from canvasbus import ids
from canvasbus.errors import CanvasbusError, ConfigError, Refused, StreamFull, Unavailable
from canvasbus.produce.lost import look_for
from canvasbus.transport.resp import (
    Operation,
    Packet,
    Pause,
    Reply,
    ReplyError,
    XaddHeads,
    check,
    code,
    command,
    commands,
    pack,
    translate,
)
from canvasbus.transport.scripts import FENCE_SECONDS
from canvasbus.wire.keys import LATER_INBOX, MAX_PARTITIONS, Keys
from canvasbus.wire.outgoing import Outgoing, datas_of, ids_of, sizes_of, types_of
from canvasbus.wire.retention import Full, read_full

SCAN_LIMIT = 100_000
"""Entries that are looked through for a lost batch before its fate counts as unknown."""
SUSPECT_SCAN_LIMIT = 10_000_000
"""The same for the batch of a process that died: others may have published for hours since."""

WAIT_MS = 1000
"""How long a batch waits for a replica to have it, when it must be replicated."""

_MULTI = pack("MULTI").removesuffix(b"\r\n")  # each XADD begins with the CRLF of the command before it
_END = b"\r\n"
_EXEC = pack("EXEC")
_DISCARD = pack("DISCARD")

Durability = Literal["server", "replicated"]
"""When an event counts as stored: when the server has it, or a replica, too."""


def wants_replicas(durability: str, shared: bool) -> bool:
    """Whether a batch must wait for a replica. A memory server's data lives as long as its process and has none.
    Raises ConfigError for a durability that there is not."""
    if durability not in ("server", "replicated"):
        raise ConfigError(f"durability={durability!r}: use 'server' or 'replicated'")
    return durability == "replicated" and shared


Result = bytes | CanvasbusError
"""What became of one event: its entry id, or why it is not (or not known to be) on the server."""


Note = Callable[[Sequence[Outgoing], str, Mapping[str, bytes]], None]
"""Gets a batch, and what somebody else must know to look for it when its sender has died: the incarnation and, for each
of its types, the last known entry."""


@dataclass(slots=True)
class SenderStatistics:
    """What the sender of one partition has done so far."""

    batches: int = 0
    """Batches stored."""
    events: int = 0
    """Events stored."""
    refused: int = 0
    """Events that the server refused for good."""
    failures: int = 0
    """Attempts that ended without an answer or were told to wait."""
    found: int = 0
    """Events whose reply was lost and that were found on the server."""
    duplicates: int = 0
    """Of the `events`: those that were there already by their mark, so that nothing was stored (see `once`)."""
    resent: int = 0
    """Batches sent again because they were proven absent, or bear marks."""
    unknown: int = 0
    """Events whose fate cannot be known."""
    unconfirmed: int = 0
    """How often no replica had a batch in time."""
    given_up: int = 0
    """Events given up when the patience was used up."""
    last_failure: Unavailable | None = None
    """Why the latest of the `failures` happened."""

    @property
    def lost(self) -> int:
        """Events that are not, or not known to be, on the server."""
        return self.refused + self.unknown + self.given_up


class _Unconfirmed(Unavailable):
    """The batch is on the server, and on no replica yet."""


class FencedSender:
    """Sends batches for one partition in order, one at a time. With `replicated` a replica must have them, too."""

    def __init__(
        self,
        keys: Keys,
        *,
        incarnation: str | None = None,
        replicated: bool = False,
        partitions: int = 0,
        note: Note | None = None,
    ) -> None:
        """`partitions`: what to put on record as their number when that is missing; 0: nothing. `note` is called before
        each packet with events in it."""
        self.keys = keys
        self._partitions = partitions if keys.partition == 0 else 0
        self._replicated = replicated
        self._wait = pack("WAIT", 1, WAIT_MS) if replicated else b""
        self.statistics = SenderStatistics()
        self.incarnation = incarnation or f"p-{ids.uuid7().hex}"
        self._note = note
        self._fence = keys.fence(self.incarnation)
        self._watch = pack("WATCH", self._fence, keys.topics)
        self._heads: dict[str, XaddHeads] = {}
        self._cursors: dict[str, bytes] = {}
        self._watching = False
        self._get_full = pack("GET", keys.full)
        self._full: dict[str, Full] = {}
        """The types whose streams took no more when the last batch was answered."""
        self._mixed = False  # the batch in hand has more than one type
        self._scan_limit = SCAN_LIMIT
        self._ambiguous: frozenset[bytes] = frozenset()
        """Ids of the events that may be on the server, kept when `send` ends by Refused."""
        self._known: dict[bytes, Result] = {}
        """Event id → what became of it, of a batch that is sent in parts until the last of them is known, too."""
        self._begun: Sequence[Outgoing] | None = None
        """The batch whose MULTI and XADDs were sent with the one before it."""
        self._loose = b""
        """First event id of a batch that was begun, and of which no answer says that it was taken back."""
        self._loose_cursors: dict[str, bytes] = {}

    def send(
        self, batch: Sequence[Outgoing], *, patience: float | None = None, following: Sequence[Outgoing] | None = None
    ) -> Operation[list[Result]]:
        """Store a batch. Returns a result for every event, in order. `following`: the batch that this sender gets next, if
        that is known; it is begun along with this one where that is possible, which needs a Link.

        Waits as long as the server is away; `patience` bounds the number of seconds slept between attempts before
        the batch is given up as Unavailable (None: never). Raises Refused when the server refuses this publisher as
        such (password, ACL, a whole transaction); the same batch can then be sent again later.
        """
        if (self._ambiguous or self._known) and self._is_in_parts(batch):
            return (yield from self._send_in_parts(batch, patience))
        unsure = self.unsure_of(batch)
        if batch[0].raw_id == self._loose:
            self._cursors, self._watching = dict(self._loose_cursors), False
        in_flight = False
        backoff = 0.05
        slept = 0.0
        while True:
            try:
                if self._begun is not None and not (
                    self._begun is batch and self._watching and types_of(batch).isdisjoint(self._full)
                ):
                    yield from self._put_back()
                    unsure = self.unsure_of(batch)
                if unsure:
                    settled = yield from self._investigate(batch)
                    self.statistics.resent += settled is None and batch[0].raw_id in self._ambiguous
                    unsure, self._ambiguous = False, frozenset()
                    self._loose = b"" if self._loose == batch[0].raw_id else self._loose
                    if settled is not None:
                        return settled
                if self._full and types_of(batch) & self._full.keys():
                    refused = yield from self._look_for_room(batch)
                    if refused:
                        return (yield from self._send_the_others(batch, refused, patience))
                yield from self._prepare(batch)
                if self._note is not None:
                    types = types_of(batch)
                    known = {name: entry_id for name, entry_id in self._cursors.items() if name in types}
                    self._note(batch, self.incarnation, known)
                in_flight = True
                replies = yield self._packet(batch, following if self._may_begin(following) else None)
                in_flight = False
                results = self._read(batch, replies)
                if results is not None:
                    return results
                self._watching = False  # the fence was raised, a topic is new, or all keys were flushed
                continue
            except Unavailable as error:
                self.statistics.failures += 1
                self.statistics.last_failure = error
                unconfirmed = isinstance(error, _Unconfirmed)
                if in_flight or unconfirmed:
                    in_flight, unsure = False, error.ambiguous
                    self._ambiguous = ids_of(batch) if unsure else frozenset()
                self._watching = False  # the connection may be another; a WATCH too many costs nothing
                begun = self._begun is not None
                if self._begun is not None:
                    self._lose(self._begun)
                if patience is not None and slept >= patience:
                    self.statistics.given_up += len(batch)
                    if begun:
                        yield Pause(0.0, reconnect=True)
                    return [Unavailable(str(error), ambiguous=unsure)] * len(batch)
            yield Pause(backoff, reconnect=unconfirmed or begun)
            slept += backoff
            backoff = min(backoff * 2, 2.0)

    def _look_for_room(self, batch: Sequence[Outgoing]) -> Operation[dict[str, CanvasbusError]]:
        """The types of the batch that are refused, with why. Raises Unavailable when it must wait for one."""
        (value,) = yield command("GET", self.keys.full)
        self._full = read_full(check(value, "publish"))
        refused: dict[str, CanvasbusError] = {}
        for event_type in types_of(batch) & self._full.keys():
            full = self._full[event_type]
            if full.when_full != "reject":
                raise Unavailable(f"publish {event_type}: {full}")
            refused[event_type] = StreamFull(f"publish {event_type}: {full}")
        return refused

    def _send_the_others(
        self, batch: Sequence[Outgoing], refused: dict[str, CanvasbusError], patience: float | None
    ) -> Operation[list[Result]]:
        others = [item for item in batch if item.type not in refused]
        sent = iter((yield from self.send(others, patience=patience)) if others else [])
        self.statistics.refused += len(batch) - len(others)
        return [refused[item.type] if item.type in refused else next(sent) for item in batch]

    def _is_in_parts(self, batch: Sequence[Outgoing]) -> bool:
        """Whether the `send` of this batch ended by Refused when only those were sent that had room."""
        event_ids = ids_of(batch)
        return not event_ids.isdisjoint(self._known) or (
            not event_ids.isdisjoint(self._ambiguous) and not event_ids <= self._ambiguous
        )

    def _send_in_parts(self, batch: Sequence[Outgoing], patience: float | None) -> Operation[list[Result]]:
        """First what may be there. (The order holds: whether there is room is said of types, and so of whole streams.)"""
        part = [item for item in batch if item.raw_id in self._ambiguous]
        if part:
            results = yield from self.send(part, patience=patience)
            self._known |= {item.raw_id: result for item, result in zip(part, results, strict=True)}
        rest = [item for item in batch if item.raw_id not in self._known]
        sent = iter((yield from self.send(rest, patience=patience)) if rest else [])
        known, self._known = self._known, {}
        return [known[item.raw_id] if item.raw_id in known else next(sent) for item in batch]

    def forget_connection(self) -> None:
        """Somebody else used the link, which may have another connection now: watch anew."""
        self._watching = False

    def suspect(self, batch: Sequence[Outgoing], cursors: Mapping[str, bytes]) -> None:
        """Whoever had this incarnation before died with this batch on its way: the next `send`, of this batch, looks
        for it behind the entries that were noted before."""
        self._ambiguous = ids_of(batch)
        self._cursors = {item.type: b"0-0" for item in batch} | dict(cursors)
        self._scan_limit = SUSPECT_SCAN_LIMIT

    def unsure_of(self, batch: Sequence[Outgoing]) -> bool:
        """Whether a batch whose `send` did not return may be on the server."""
        if batch[0].raw_id == self._loose:
            return True
        return bool(self._ambiguous or self._known) and not ids_of(batch).isdisjoint(
            self._ambiguous | self._known.keys()
        )

    def _prepare(self, batch: Sequence[Outgoing]) -> Operation[None]:
        """Watch the fence on a new connection; learn where the streams of the batch end, once per stream and connection."""
        types = types_of(batch)
        self._mixed = len(types) > 1
        if not self._watching:
            self._cursors.clear()
        fresh = sorted(types - self._cursors.keys())
        if not fresh:
            return
        # Where an ACL forbids MULTI, the XADDs behind it would be executed one by one, past the fence.
        first: list[tuple[bytes | str | int, ...]] = [("MULTI",), ("EXEC",)]
        if self._replicated:
            first.append(("WAIT", 0, 1))
        declares = bool(self._partitions) and not self._watching
        if declares:
            first += declaration(self.keys.meta, self._partitions)
        steps = list(first)
        for event_type in fresh:
            known = self.keys.topics
            steps.append(("SCARD", known) if event_type == LATER_INBOX else ("SADD", known, event_type))
            steps.append(("XREVRANGE", self.keys.stream(event_type), "+", "-", "COUNT", 1))
        steps.append(("WATCH", self._fence, self.keys.topics))  # last: what it watches it has just changed itself
        replies = yield commands(*steps)
        for reply in (replies[0], *replies[2 : len(first)], replies[-1]):
            check(reply, "publish")
        if declares:
            check_partitions(self.keys, self._partitions, replies[len(first) - 1])
        replies = replies[len(first) : -1]
        self._watching = True
        for event_type, sadd, last in zip(fresh, replies[::2], replies[1::2], strict=True):
            check(sadd, f"publish {event_type}")
            self._cursors[event_type] = last_in(last, event_type)
            self._heads[event_type] = XaddHeads(self.keys.stream(event_type))

    def _may_begin(self, following: Sequence[Outgoing] | None) -> bool:
        """Whether nothing has to be asked or written down before this batch is sent."""
        return (
            following is not None
            and self._note is None
            and following[0].raw_id != self._loose
            and types_of(following) <= self._cursors.keys()
        )

    def _packet(self, batch: Sequence[Outgoing], following: Sequence[Outgoing] | None) -> Packet:
        early = 0 if self._begun is None else len(batch) + 1
        begin = () if early else self._transaction(batch, self._mixed)
        later = () if following is None else self._transaction(following, len(types_of(following)) > 1)
        self._begun = following
        data = b"".join((*begin, _EXEC, self._watch, self._get_full, self._wait, *later))
        return Packet(data, len(batch) + 4 + self._replicated, early, 0 if following is None else len(following) + 1)

    def _transaction(self, batch: Sequence[Outgoing], mixed: bool) -> list[bytes]:
        """A transaction but for its end, in pieces."""
        parts = [b""] * (2 * len(batch) + 2)
        parts[0], parts[-1] = _MULTI, _END
        parts[2:-1:2] = datas_of(batch)
        if mixed:
            parts[1:-1:2] = [self._heads[item.type][len(item.data)] for item in batch]
        else:
            parts[1:-1:2] = map(self._heads[batch[0].type].__getitem__, sizes_of(batch))
        return parts

    def _put_back(self) -> Operation[None]:
        """Undo what was begun: something has to be done first."""
        begun = self._begun
        assert begun is not None
        self._lose(begun)
        self._watching = False
        replies = yield Packet(_DISCARD, len(begun) + 2, early=len(begun) + 1)
        if isinstance(replies[-1], ReplyError):  # the user may not, or there was no MULTI
            yield Pause(0.0, reconnect=True)
        if not isinstance(
            replies[0], ReplyError
        ):  # MULTI: refused since a moment ago, its events are there, one by one
            self._loose = b""

    def _lose(self, begun: Sequence[Outgoing]) -> None:
        """Nobody says what becomes of a batch that was begun. Without its EXEC nothing, where MULTI is not refused."""
        self._begun = None
        self._loose, self._loose_cursors = begun[0].raw_id, dict(self._cursors)

    def _read(self, batch: Sequence[Outgoing], replies: list[Reply]) -> list[Result] | None:
        """The results of a batch, or None when it must be sent again. Raises Unavailable when it must wait, Refused when
        the whole transaction was refused."""
        confirmed = replies.pop() if self._replicated else 1
        executed, watched, full = replies[-3:]
        self._full = {} if full is None or isinstance(full, ReplyError) else read_full(full)
        self._watching = not isinstance(watched, ReplyError)
        if executed is None:
            return None
        if isinstance(replies[0], ReplyError):  # MULTI, since a moment ago: what was done was done one by one
            self._watching = False
            executed = replies[1:-3]
            if set(map(type, executed)) == {ReplyError}:  # nothing was done: it is the publisher that is refused
                executed = executed[0]
        if isinstance(executed, ReplyError):
            refused = next((r for r in replies[1:-3] if isinstance(r, ReplyError)), executed)
            raise translate(refused, f"publish {batch[0].type}")
        self._check_confirmed(confirmed, batch)
        cursors = self._cursors
        stored = len(batch)
        results: list[Result] = executed
        if set(map(type, executed)) == {bytes}:
            for item, reply in zip(batch, executed, strict=True) if self._mixed else ((batch[-1], executed[-1]),):
                cursors[item.type] = reply
        else:
            for index, (item, reply) in enumerate(zip(batch, executed, strict=True)):
                if isinstance(reply, bytes):
                    cursors[item.type] = reply
                    continue
                error = translate(
                    reply, f"publish {item.type} to {self.keys.stream(item.type).decode()}", kind="stream"
                )
                results[index] = error
                stored -= 1
        self.statistics.batches += 1
        self.statistics.events += stored
        self.statistics.refused += len(batch) - stored
        return results

    def _check_confirmed(self, replicas: Reply, batch: Sequence[Outgoing]) -> None:
        if isinstance(replicas, int) and replicas >= 1:
            return
        self.statistics.unconfirmed += 1
        why = f" ({replicas})" if isinstance(replicas, ReplyError) else ""
        raise _Unconfirmed(
            f"publish {batch[0].type}: the server has it, but no replica within {WAIT_MS / 1000:g} s{why}",
            ambiguous=True,
        )

    def _investigate(self, batch: Sequence[Outgoing]) -> Operation[list[Result] | None]:
        """After a lost reply: the results if the batch is on the server or cannot be known, None if it is not there."""
        replies = yield commands(("INCR", self._fence), ("EXPIRE", self._fence, FENCE_SECONDS))
        check(replies[0], "publish")
        found, uncertain = yield from look_for(batch, self.keys, self._cursors, self._scan_limit)
        if not found:
            if not uncertain:
                return None
            self.statistics.unknown += len(batch)
            gone = Unavailable(
                f"publish {uncertain}: no answer came, and whether the event is stored cannot be known: "
                "the stream was trimmed or replaced since",
                ambiguous=True,
            )
            return [gone] * len(batch)
        if self._replicated:
            (confirmed,) = yield Packet(self._wait, 1)
            self._check_confirmed(confirmed, batch)
        results: list[Result] = []
        for item in batch:
            entry_id = found.get(item.raw_id)
            results.append(
                entry_id
                or Unavailable(f"publish {item.type}: refused, or trimmed since, while no answer came", ambiguous=True)
            )
        self.statistics.batches += 1
        self.statistics.events += len(found)
        self.statistics.found += len(found)
        self.statistics.unknown += len(batch) - len(found)
        return results

    def __repr__(self) -> str:
        return f"<FencedSender {self.keys!r} {self.statistics}>"


def last_in(reply: Reply, event_type: str) -> bytes:
    """The last entry of a stream, of which XREVRANGE was asked for one."""
    if isinstance(reply, ReplyError) and code(reply) == "WRONGTYPE":  # that one is told by the XADD itself
        return b"0-0"
    entries = check(reply, f"publish {event_type}")
    return entries[0][0] if entries else b"0-0"


def declare_partitions(namespace: str, partitions: int) -> Operation[None]:
    """Record how many partitions the namespace has, or raise Refused when others use another number or what is on
    record is none."""
    keys = Keys(namespace, 0)
    if partitions > MAX_PARTITIONS:  # before it is on record, where it would stop everybody
        raise Refused(f"partitions={partitions}: a namespace has {MAX_PARTITIONS} at most")
    replies = yield commands(*declaration(keys.meta, partitions))
    check(replies[0], "declare the namespace")
    check_partitions(keys, partitions, check(replies[1], "look at the namespace"))


def declaration(meta: bytes, partitions: int) -> list[tuple[bytes | str | int, ...]]:
    return [("HSETNX", meta, "partitions", partitions), ("HGET", meta, "partitions")]


def partitions_in(keys: Keys, value: bytes | None) -> int:
    """The number of partitions as it is on record. Raises Refused when what is there cannot be one: publishing to none of 0
    partitions would lose events, and asking a billion of them would never end."""
    # The length comes first: int() raises for more than 4300 digits.
    recorded = int(value) if value is not None and len(value) <= 9 and value.isdigit() else 0
    if not 1 <= recorded <= MAX_PARTITIONS:
        raise Refused(
            f"{keys.meta.decode()} has {_shown(value)} on record as its number of partitions, which must be 1 to "
            f"{MAX_PARTITIONS}: HDEL or correct its field 'partitions'"
        )
    return recorded


def check_partitions(keys: Keys, partitions: int, value: bytes | None) -> None:
    """Raises Refused when this process is set to another number of partitions than is on record."""
    recorded = partitions_in(keys, value)
    if recorded != partitions:
        raise Refused(
            f"namespace {keys.namespace!r} has {recorded} partition{'s' if recorded > 1 else ''} on this server, this process "
            f"is set to {partitions}: "
            "set partitions to the same number everywhere, or use another namespace"
        )


def _shown(value: bytes | None) -> str:
    return "nothing" if value is None else repr(value[:40].decode(errors="replace")) + ("…" if len(value) > 40 else "")
