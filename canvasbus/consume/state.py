"""State of handlers, committed with the acknowledgement.

Theory of operation. A state has a token: 16 bytes that are new with each commit. A run loads value and token, and the
settle script writes what the run made of it only if the token is still the same; else nothing of the run is committed,
and it runs again on the newer value, which counts as no attempt. Two commits never have the same token, so a value that
was deleted, expired or written by somebody else is always noticed.

In one process the runs of one (group, key) wait for each other, from loading to their end, and each sees what the one
before made of it although that is not on the server yet: it expects the token that the other will write. When one of
such a chain cannot be committed, those after it find another token than they expect, and run again too. A state that
was only read is compared as well: what follows from it would else rest on a value that never came to be.

Parts need none of this: each part is written whole, under an id of its own, so writing it twice changes nothing and
writers of different parts never meet.

Waiting is no part of what a run may take: its timeout stands still while it waits for others or for the server. Nor does
it wait for others for longer than that timeout at a time, nor at all for a single run that has held the key for longer:
it ends as RetryLater, and leaves its slot for as long to those who need not wait. (As part of the timeout, events of one
key made dead letters of each other although each was quick.) A run that is late and cannot be ended, which may hang for
ever, keeps what it has loaded and lets others have the key: should it end after all, its token is compared like any.

A server that is away is nobody's failure: a run that cannot load what it needs ends as RetryLater, and costs no attempt.
(As an ordinary exception an outage of a second sent events to the dead letters: retries come fast at first.) Nor is it the
event's that the server refuses this worker, whose password is changed, say: that is told, once a minute.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import msgspec
import trio

from canvasbus import clock, ids
from canvasbus.checks import is_label
from canvasbus.consume.changes import Changes
from canvasbus.consume.complaints import Complaints
from canvasbus.consume.policy import RetryLater
from canvasbus.errors import ContractError, EncodeError, TransportError, Unavailable
from canvasbus.transport.link import SharedLink
from canvasbus.transport.resp import ReplyError, check, code, translate
from canvasbus.wire.codec import MAX_EVENT_BYTES, encode_number
from canvasbus.wire.keys import Keys

TOKEN = 16
MAX_STATE_BYTES = MAX_EVENT_BYTES
AWAY_SECONDS = 1.0
"""After which a run begins again that could not load something."""

REFUSED_SECONDS = 5.0
"""The same, of one that finds something else where its state should be, or whom the server refuses."""

T = TypeVar("T")
_encode = msgspec.msgpack.Encoder(enc_hook=encode_number).encode


class State(Generic[T]):
    """One value of a group. Assign to `value`, or change it in place; the change is committed if the handler returns."""

    __slots__ = ("_cell", "_milliseconds", "_type", "exists", "value")

    def __init__(self, cell: "_Cell", type_: Any, value: T, milliseconds: int) -> None:
        self.value = value
        self.exists = bool(cell.value)
        """It was there before this run."""
        self._cell = cell
        self._type = type_
        self._milliseconds = milliseconds

    def delete(self) -> None:
        """Remove it; the next run starts from the default."""
        self.value = _DELETED

    def __repr__(self) -> str:
        return f"<State {self._cell.name}: {'deleted' if self.value is _DELETED else repr(self.value)}>"


class Parts(Generic[T]):
    """Values of a group under one key, each with an id of its own: what many workers put into one window."""

    __slots__ = ("_cleared", "_key", "_milliseconds", "_own", "_run", "_type")

    def __init__(self, run: "Run", key: bytes, type_: Any, milliseconds: int) -> None:
        self._run = run
        self._key = key
        self._type = type_
        self._milliseconds = milliseconds
        self._own: dict[str, bytes] = {}
        self._cleared = False

    def put(self, part_id: str, value: T) -> None:
        """Write a part; the same id again replaces it. Raises EncodeError."""
        self._write(part_id, _encoded(value, self._type, f"part {part_id!r}"))

    def remove(self, part_id: str) -> None:
        """Remove a part."""
        self._write(part_id, b"")

    def clear(self) -> None:
        """Remove all parts that are there when this is committed."""
        self._run.open().clear(self._key)
        self._cleared = True
        self._own.clear()

    def _write(self, part_id: str, data: bytes) -> None:
        check_key("part", part_id)
        self._run.open().put(self._key, part_id, data, self._milliseconds)
        self._own[part_id] = data

    async def items(self) -> dict[str, T]:
        """All committed parts by id, with what this run has put and removed."""
        found: dict[str, bytes] = {}
        if not self._cleared:
            with self._run.waiting():
                reply = await self._run.store.load("HGETALL", self._key, "read the parts")
            found = {reply[at].decode("utf-8", "replace"): reply[at + 1] for at in range(0, len(reply), 2)}
        found |= self._own
        return {part_id: _decoded(data, self._type, part_id) for part_id, data in found.items() if data}

    def __repr__(self) -> str:
        return f"<Parts {self._key.decode(errors='replace')}: {len(self._own)} written>"


class _Cell:
    """One state in this process."""

    __slots__ = ("holder", "key", "name", "pending", "since", "stale", "token", "turn", "users", "value")

    def __init__(self, name: str, key: bytes) -> None:
        self.name = name
        self.key = key
        self.turn = trio.Semaphore(1)
        self.holder: Run | None = None
        self.since = -math.inf
        """When it was given to its holder, on trio's clock."""
        self.users = 0
        """Runs that hold it or wait for it."""
        self.pending = 0
        """Commits whose fate is unknown."""
        self.stale = False
        """What is here is not what will be on the server."""
        self.token = b""
        self.value = b""


class StateStore:
    """The states of one group in one partition, as one incarnation sees them."""

    def __init__(self, shared: SharedLink, keys: Keys, group: str) -> None:
        self.shared = shared
        self.keys = keys
        self.group = group
        self._cells: dict[str, _Cell] = {}
        self._complaints = Complaints(group)
        self._away = False
        self._again = 0.0

    async def acquire(self, name: str, run: "Run") -> _Cell:
        """Wait for one's turn with a state. Raises RetryLater when the other runs that hold it wait for what this one
        holds, or have it for too long."""
        cell = self._cells.get(name)
        if cell is None:
            cell = self._cells[name] = _Cell(name, self.keys.state(self.group, name))
        holder = cell.holder
        while holder is not None and holder.waits_for is not None:
            holder = holder.waits_for.holder
            if holder is run:
                raise RetryLater(0.05, f"another run holds state {name!r} and waits for a state that this run holds")
        # Whoever comes while one run keeps it for that long would wait in vain, as those before did: taking turns, they would
        # have all slots for ever.
        overlong = cell.holder is not None and trio.current_time() - cell.since >= run.patience
        cell.users += 1
        run.waits_for = cell
        try:
            with trio.move_on_after(0 if overlong else run.patience) as scope:
                await cell.turn.acquire()
            if scope.cancelled_caught:
                raise RetryLater(run.patience, f"other runs have held state {name!r} for {run.patience:g} seconds")
        except BaseException:
            self._forget(cell)
            raise
        finally:
            run.waits_for = None
        cell.holder, cell.since = run, trio.current_time()
        return cell

    async def refresh(self, cell: _Cell) -> None:
        """Load what is not known here. Raises RetryLater as `load` does."""
        if cell.stale or not cell.pending:
            raw = await self.load("GET", cell.key, f"load state {cell.name!r}") or b""
            cell.token, cell.value, cell.stale = raw[:TOKEN], raw[TOKEN:], False
        else:
            await trio.lowlevel.checkpoint()

    async def load(self, how: str, key: bytes, doing: str) -> Any:
        """What lies under a key. Raises RetryLater while the server is away, which only one run a second tries anew, and
        while it refuses, or something else lies there."""
        now = trio.current_time()
        if self._away:
            if now < self._again:
                raise RetryLater(self._again - now, f"{doing}: the server is away")
            self._again = now + AWAY_SECONDS
        try:
            reply = await self.shared.call(how, key)
            if isinstance(reply, ReplyError) and code(reply) == "WRONGTYPE":
                wrong = translate(ReplyError(f"OVERWRITTEN {key.decode()}"), doing)
                self._complaints.tell("runs wait for a key of the bus that holds something else", wrong)
                raise RetryLater(REFUSED_SECONDS, str(wrong))
            check(reply, doing)
        except TransportError as error:
            if isinstance(error, Unavailable):
                self._away, self._again = True, trio.current_time() + AWAY_SECONDS
                raise RetryLater(AWAY_SECONDS, f"{doing}: {error}") from error
            # Perhaps this key or command alone is refused: what others load need not wait.
            self._complaints.tell("runs wait for a server that refuses to load what they keep", error)
            raise RetryLater(REFUSED_SECONDS, f"{doing}: {error}") from error
        self._away = False
        return reply

    def release(self, cell: _Cell) -> None:
        """Let the next run have it."""
        cell.holder = None
        cell.turn.release()
        self._forget(cell)

    def part(self, cell: _Cell) -> _Cell:
        """Let the next run have it, and give its holder one of its own, which nobody else comes by."""
        own = _Cell(cell.name, cell.key)
        own.holder, own.users, own.token, own.value = cell.holder, 1, cell.token, cell.value
        self.release(cell)
        return own

    def _forget(self, cell: _Cell) -> None:
        cell.users -= 1
        self.drop_unused(cell)

    def drop_unused(self, cell: _Cell) -> None:
        """Keep nothing that the server has."""
        if not cell.users and not cell.pending and self._cells.get(cell.name) is cell:
            del self._cells[cell.name]

    def __repr__(self) -> str:
        return f"<StateStore {self.group} {self.keys!r} {len(self._cells)} in use>"


class Run:
    """One run of a handler: what it holds and what it changes."""

    __slots__ = (
        "_cells",
        "_late",
        "_states",
        "_turn",
        "_waited",
        "_waits",
        "_waits_since",
        "changes",
        "patience",
        "store",
        "waits_for",
    )

    def __init__(self, store: StateStore, patience: float = math.inf) -> None:
        """`patience`: for how many seconds at a time it waits for other runs."""
        self.store = store
        self.patience = patience
        self._cells: list[_Cell] = []
        self.waits_for: _Cell | None = None
        self.changes: Changes | None = Changes()
        """None: the run has ended."""
        self._late = False
        self._states: dict[str, State[Any]] = {}
        self._turn = trio.Lock()
        self._waits = 0
        self._waits_since = self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block the run waits for others, or for the server."""
        if not self._waits:
            self._waits_since = clock.monotonic()
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                self._waited += clock.monotonic() - self._waits_since

    @property
    def waited(self) -> float:
        """For how many seconds it has waited until now."""
        return self._waited + (clock.monotonic() - self._waits_since if self._waits else 0.0)

    def open(self) -> Changes:
        """The changes, while the handler runs."""
        if self.changes is None:
            raise ContractError("the handler has returned: what it changes now would be committed with nothing")
        return self.changes

    async def state(self, name: str, type_: type[T], default: T | None, ttl: float | None) -> State[T]:
        """Load a state; the same one again is the same object."""
        self.open()
        check_key("state", name)
        milliseconds = _milliseconds(ttl)
        async with self._turn:  # else two tasks of one handler would wait for each other, and for ever
            if name in self._states:
                return self._states[name]
            with self.waiting():
                cell = await self.store.acquire(name, self)
                self._cells.append(cell)
            try:
                with self.waiting():
                    await self.store.refresh(cell)
                self.open()  # a task that the handler has left behind comes too late
                value = _value(cell.value, type_, default, name)
            except BaseException:  # who goes on without it, or asks once more, keeps it from nobody
                self._let_go(cell)
                raise
            if self._late:
                cell = self._part(cell)
            state = self._states[name] = State(cell, type_, value, milliseconds)
            return state

    def parts(self, name: str, type_: type[T], ttl: float | None) -> Parts[T]:
        """The parts under a key."""
        self.open()
        check_key("parts", name)
        return Parts(self, self.store.keys.parts(self.store.group, name), type_, _milliseconds(ttl))

    def late(self) -> None:
        """It runs too long and cannot be ended: from now on it keeps no state from others."""
        self._late = True
        for state in self._states.values():  # what is being loaded now is given away when that is done
            state._cell = self._part(state._cell)

    def _let_go(self, cell: _Cell) -> None:
        if cell in self._cells:  # else the run has ended
            self._cells.remove(cell)
            self.store.release(cell)

    def _part(self, cell: _Cell) -> _Cell:
        own = self.store.part(cell)
        self._cells[self._cells.index(cell)] = own
        return own

    def finish(self, timers: Changes | None) -> Changes:
        """The handler has returned: what is to be committed, `timers` included. Raises EncodeError for a value that cannot
        be stored; then nothing is changed, and `drop` must follow."""
        changes = self.open()
        made = [(state, _encoded(state.value, state._type, f"state {name!r}")) for name, state in self._states.items()]
        for state, value in made:
            cell = state._cell
            changes.compare(cell.key, cell.token)
            if value != cell.value:
                cell.token, cell.value = (ids.uuid7_bytes(), value) if value else (b"", b"")
                changes.set(cell.key, cell.token + value, state._milliseconds)
                cell.pending += 1
                changes.on_settled.append(_Told(self.store, cell))
        self.drop()
        if timers:
            changes.add(timers)
        return changes

    def drop(self) -> None:
        """The run is over: let others have what it holds."""
        self.changes = None
        for cell in self._cells:
            self.store.release(cell)
        self._cells.clear()

    def __repr__(self) -> str:
        return f"<Run with {list(self._states.values())}>"


class _Told:
    """Hears what became of one commit of a state."""

    __slots__ = ("_cell", "_store")

    def __init__(self, store: StateStore, cell: _Cell) -> None:
        self._store = store
        self._cell = cell

    def __call__(self, applied: bool) -> None:
        self._cell.pending -= 1
        self._cell.stale = self._cell.stale or not applied
        self._store.drop_unused(self._cell)


_DELETED: Any = object()


def check_key(kind: str, name: str) -> None:
    """Raise ContractError for what is no name of a state or a part."""
    if not is_label(name):
        raise ContractError(f"{kind} {name!r}: use a string of 1 to 500 characters (lone surrogates are none)")


def _milliseconds(ttl: float | None) -> int:
    if ttl is None:
        return 0
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl < 1e10:
        raise ContractError(f"ttl={ttl!r}: use a number of seconds above 0")
    return max(1, round(ttl * 1000))


def _value(data: bytes, type_: Any, default: Any, name: str) -> Any:
    """What a run begins with."""
    if data:
        return _decoded(data, type_, name)
    if default is not None:
        return _decoded(_encoded(default, type_, f"default of state {name!r}"), type_, name)  # a copy
    return _made(type_, name)


def _made(type_: type[T], name: str) -> T:
    try:
        return type_()
    except TypeError as error:
        raise ContractError(
            f"state {name!r} does not exist yet and {type_!r} cannot be made from nothing: pass default=..."
        ) from error


def _encoded(value: Any, type_: Any, what: str) -> bytes:
    """The value in msgpack, which can be read as its type: whoever reads it next could not say whose fault it is."""
    if value is _DELETED:
        return b""
    try:
        data: bytes = _encode(value)
        _decoder(type_)(data)
    except (msgspec.MsgspecError, TypeError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise EncodeError(f"{what} cannot be stored: {error}") from error
    if len(data) > MAX_STATE_BYTES:
        raise EncodeError(f"{what} is {len(data):,} bytes, over the limit of {MAX_STATE_BYTES:,}")
    return data


@functools.lru_cache(maxsize=256)
def _decoder(type_: Any) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(type_).decode


def _decoded(data: bytes, type_: Any, name: str) -> Any:
    try:
        return _decoder(type_)(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ContractError(
            f"{name!r} holds what is no {getattr(type_, '__name__', type_)}: {error}. Was the type changed? Use another "
            "name for another shape, or give new fields a default"
        ) from error
