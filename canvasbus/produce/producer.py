"""The producer's door, for threads: training jobs, model servers, notebooks, asyncio applications.

    with Producer("redis://localhost:6379", source="trainer-7") as bus:
        bus.publish(DriftDetected(model_name="StyleGAN-Canvas-v3", drift_score=0.4, drift_type="psi"))
        bus.flush(timeout=5)

`publish` encodes, checks and queues: about two microseconds, no I/O, no thread hop. `buffer` holds what waits, `sender`
is the thread that sends, `process` says what happens when the process forks or ends.

What sending needs (redis-py) is loaded when a Producer is made: not by `import canvasbus`, which must stay light, and not
by the thread when it connects, because a process that forks while another thread is importing leaves the child with a
module lock that nobody will release.
"""

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, Self
from uuid import UUID

import msgspec

from canvasbus import ids
from canvasbus.checks import check_flag, check_function, check_number
from canvasbus.contract.event import Event, correlation
from canvasbus.errors import ConfigError
from canvasbus.produce.buffer import BUFFER_BYTES, SPOOL_BYTES, Buffer, OnDelivery, WhenFull
from canvasbus.transport import address
from canvasbus.wire.codec import MAX_EVENT_BYTES, Codec
from canvasbus.wire.keys import check_name, check_partition_count, partition_of
from canvasbus.wire.marks import WINDOW_SECONDS, window_ms
from canvasbus.wire.outgoing import Outgoing
from canvasbus.wire.traceparent import current as current_trace
from canvasbus.wire.traceparent import traceparent

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from canvasbus.produce.fenced import Durability
    from canvasbus.produce.sender import Sender
    from canvasbus.produce.spans import PublishSpans

FLUSH_TIMEOUT: Final = 5.0
"""Seconds that leaving the `with` block, or the program, waits for what is queued, by default."""
MAX_BLOCK: Final = 60.0
"""Seconds that publish waits for room with when_full="block", by default."""
SPOOL_LANE_BYTES: Final = 2048
"""What a spool must have room for per partition: its file there begins with up to 1,000 bytes before any event, and stays."""
_CHUNK = 250

_from_bytes = ids.from_bytes


class ProducerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A moment's picture of a Producer. In a forked child everything counts from the fork."""

    published: int = 0
    """Events that publish accepted, also those that were dropped since."""
    stored: int = 0
    """Events that the server has."""
    dropped: int = 0
    """Events that were never sent: the buffer was full (drop_oldest), or time was up at close or exit."""
    refused: int = 0
    """Events that the server refused for good, for example because their stream's key holds something else."""
    unknown: int = 0
    """Events that may or may not be on the server, and of which that can no longer be found out."""
    duplicates: int = 0
    """Of those stored: events that were there already (`dedupe_key`, `dedupe`), so that nothing was added."""
    skipped: int = 0
    """Events that were published while the bus is switched off (off://)."""
    waiting_events: int = 0
    """Events that wait for the server now, the batch on its way included; with a spool, also those on disk alone."""
    waiting_bytes: int = 0
    """The encoded size, in bytes, of those that are in memory."""
    spool_events: int = 0
    """Events in the spool whose fate is open: of this process, and of dead ones that it has adopted."""
    spool_bytes: int = 0
    """What the spool's files hold on disk, in bytes."""
    spool_errors: int = 0
    """How often the spool could not be written or read, and such events are kept in memory only; or was found removed."""
    recovered: int = 0
    """Events that dead processes left in the spool and this one has adopted."""
    quarantined: int = 0
    """Pieces of spool files that could not be read and were set aside."""
    callback_errors: int = 0
    """How often on_delivery raised."""
    log_errors: int = 0
    """How often the logger could not be told what went wrong, because a handler of it raised."""
    last_error: str | None = None
    """The latest thing that went wrong, in one line; it stays when all is well again."""


class Producer:
    """Publishes events from threads, in the background. Safe in threads, signal handlers, forks and `__del__`.

    `url`: redis://, rediss://, unix://, redis+sentinel://HOST,HOST/MASTER, memory://NAME (shared in the process) or
    off://; None: the environment variable CANVASBUS_URL, or the file that CANVASBUS_URL_FILE names. `source` says who
    publishes. `namespace` and `partitions` must be the same in every process; None: CANVASBUS_NAMESPACE and
    CANVASBUS_PARTITIONS, else "canvasbus" and 1.

    `buffer_bytes` (encoded) may wait for the server. When they are full, `when_full` decides:

        "drop_oldest"  the oldest waiting events are dropped and counted, publish never waits (the default)
        "block"        publish waits up to `max_block` seconds, then raises BufferFull
        "raise"        publish raises BufferFull

    With `spool`, a folder, every event is written down there before publish returns, so that a process that is killed
    loses none: the next Producer with that spool and namespace sends what is left first, and looks whether what was on
    its way has arrived. Memory is bounded as before, what does not fit is on disk alone, up to `spool_bytes`. When those
    are full, too, `when_full` decides: "spool" drops what is published then, counted (the default), "block" and "raise"
    as above. A spool that cannot be written (no room on the disk) is told and counted, and events wait in memory. Nothing
    is fsynced: a power cut costs what the operating system had not written. After a restart on_delivery is told of
    events of the process before; of events that are left on disk at the end nobody is told, nor of events on disk alone whose
    files somebody removes: those are counted as dropped. A spool that is removed is made again, with what memory has.

    With `durability="replicated"` an event counts as stored when a replica has it, too: then it outlives a failover.

    An event that is published under a `dedupe_key` is stored once, also when the program is started again and publishes it
    anew, or another one does, within `dedupe_window` seconds (a day). With `dedupe=True` every event is held to that by
    its id. What it costs on the server is written in `canvasbus.wire.marks`.

    With `tracing=True`, or with a provider, each publishing is an OpenTelemetry span, for which the extra `otel` is needed.

    `on_delivery(id, error)` is called in the sender's thread for every event, with None once the server has it. It must
    not flush or close; what it raises is counted and logged.

    After a fork, parent and child go on with the same object: the child has an empty buffer and opens a connection of
    its own with its first event; what the parent had queued is sent by the parent. What is queued when a process ends is
    flushed for up to `flush_timeout` seconds, also after an uncaught exception and in multiprocessing children; a
    process that is ended by SIGTERM without a handler, SIGKILL or os._exit loses what it had queued, unless it is spooled.

    Raises ConfigError for a URL or an option that cannot work. A server that is away or refuses us is no error here:
    events wait, one warning a minute goes to the logger "canvasbus.producer", and `statistics()` says why.
    """

    _sender: "Sender | None" = None
    """None: switched off, or never finished, which `__del__` meets too."""
    _spans: "PublishSpans | None" = None

    def __init__(
        self,
        url: str | None = None,
        *,
        source: str = "",
        namespace: str | None = None,
        partitions: int | None = None,
        when_full: WhenFull | None = None,
        max_block: float = MAX_BLOCK,
        buffer_bytes: int = BUFFER_BYTES,
        spool: str | PathLike[str] | None = None,
        spool_bytes: int = SPOOL_BYTES,
        max_event_bytes: int = MAX_EVENT_BYTES,
        on_delivery: OnDelivery | None = None,
        flush_timeout: float = FLUSH_TIMEOUT,
        durability: "Durability" = "server",
        dedupe: bool = False,
        dedupe_window: float = WINDOW_SECONDS,
        tracing: "bool | TracerProvider" = False,
    ) -> None:
        url, namespace, partitions = _which_bus(url, namespace, partitions)
        where = address.parse(url)
        check_name("namespace", namespace)
        check_partition_count(partitions)
        if on_delivery is not None:
            _check_callback(on_delivery, ConfigError)
            if inspect.iscoroutinefunction(on_delivery):
                raise ConfigError(f"on_delivery={on_delivery!r}: a plain function is wanted, nobody would await it")
        bounds = {"buffer_bytes": buffer_bytes, "max_event_bytes": max_event_bytes, "spool_bytes": spool_bytes}
        for name, size in bounds.items():
            check_number(name, size, least=1)
        for name, seconds in {"max_block": max_block, "flush_timeout": flush_timeout}.items():
            check_number(name, seconds, least=0)
        if spool is not None and not isinstance(spool, str | PathLike):
            raise ConfigError(f"spool={spool!r}: the path of a folder is wanted, not a {type(spool).__name__}")
        if spool == "":  # of a variable that is not set; it would be the working directory
            raise ConfigError("spool='': the path of a folder is wanted; None: no spool")
        if spool is not None and spool_bytes < (least := SPOOL_LANE_BYTES * partitions):
            raise ConfigError(
                f"spool_bytes={spool_bytes}: use {least:,} at least, for each partition has files of its own there"
            )
        without_waiting: WhenFull = "drop_oldest" if spool is None else "spool"
        if when_full not in (None, without_waiting, "block", "raise"):
            which = "with a spool" if spool is not None else "without spool=FOLDER"
            raise ConfigError(f"when_full={when_full!r}: {which} use {without_waiting!r}, 'block' or 'raise'")
        check_flag("dedupe", dedupe)
        window_ms(dedupe_window, "dedupe_window")
        self.source = source
        self.name = where.shown
        """The URL without its password."""
        self._partitions = partitions
        self._flush_timeout = flush_timeout
        self._skipped = 0
        self._closed: bool | None = None
        """What the first `close` returned."""
        sizes = {"max_event_bytes": max_event_bytes, "buffer_bytes": buffer_bytes}
        if spool is not None:
            sizes["spool_bytes"] = spool_bytes  # a larger one would fit into no empty spool
        limited_by = min(sizes, key=sizes.__getitem__)
        self._codec = Codec(source, limit=sizes[limited_by], limited_by=limited_by)
        self._encode = self._codec.encode
        if where.scheme == "off":
            return
        if tracing:
            from canvasbus.produce.spans import PublishSpans

            self._spans = PublishSpans(tracing, url)
        if where.scheme == "memory" and not where.name:
            raise ConfigError(
                "memory:// is private to whoever opens it, so nobody could read what a Producer publishes there: "
                "use memory://NAME here and in the EventBus of the same process"
            )
        self._sender = sender = _sender_to(
            url, namespace, partitions, flush_timeout, on_delivery, durability, dedupe, dedupe_window
        )
        if spool is None:
            make: Callable[..., Buffer] = Buffer
        else:
            make = _spooled(spool, spool_bytes, namespace, self.name)
        self._buffer = make(
            buffer_bytes, when_full or without_waiting, max_block, partitions, sender.rouse, sender.lament
        )
        sender.send_from(self._buffer)
        self._buffer.keep_drops = on_delivery is not None
        self._buffer.begin()
        self._add = self._buffer.add

    # --- publishing ----------------------------------------------------------------------------------------------

    def publish(
        self,
        event: Event,
        *,
        expires_in: float | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        dedupe_key: str | None = None,
        on_delivery: OnDelivery | None = None,
    ) -> UUID | None:
        """Queue an event and return its id, at once; None when the bus is switched off (off://).

        `expires_in`: seconds after which consumers skip the event and count it (0 and less: at once). `delay` (seconds
        from when the server gets it) or `at` (an aware datetime): consumers get it then, or up to a second later;
        meanwhile the server keeps it. `dedupe_key` names the event, like "run-7:epoch-3": of several of a type with one
        key, published by whomever within `dedupe_window`, the first is stored and no other; all have the same id. (With
        partitions: events that say the same and have the same `key`.) `on_delivery(id, error)`: called for this event,
        before the one of the Producer. Raises EncodeError for an event that cannot be published, ContractError for a delay
        or a key that is none, and BufferFull as `when_full` says or after `close`; none was queued.
        """
        sender = self._sender
        if sender is None:
            if on_delivery is not None:
                _check_callback(on_delivery, TypeError)
            self._skipped += 1
            return None
        if self._spans is not None:
            with self._spans.one(event) as tell_id:
                item = self._codec.encode_for(event, expires_in, delay, at, dedupe_key, current_trace())
                tell_id(item.id)
                return self._queue(item, on_delivery)
        trace = current_trace()
        if trace is None and expires_in is None and delay is None and at is None and dedupe_key is None:
            item = self._encode(event)
        else:
            item = self._codec.encode_for(event, expires_in, delay, at, dedupe_key, trace)
        if on_delivery is not None:
            return self._queue(item, on_delivery)
        self._add(item, partition_of(item.key, self._partitions) if self._partitions > 1 else 0)
        return _from_bytes(item.raw_id)

    def _queue(self, item: Outgoing, on_delivery: OnDelivery | None = None) -> UUID:
        sender = self._sender
        assert sender is not None
        if on_delivery is not None:
            _check_callback(on_delivery, TypeError)
            self._buffer.keep_drops = True
            sender.tell_of(item.raw_id, on_delivery)
        try:
            self._add(item, partition_of(item.key, self._partitions) if self._partitions > 1 else 0)
        except BaseException:
            if on_delivery is not None:
                sender.tell_no_more_of(item.raw_id, on_delivery)
            raise
        return _from_bytes(item.raw_id)

    def publish_many(
        self,
        events: Iterable[Event],
        *,
        expires_in: float | None = None,
        dedupe_key: Callable[[Event], str] | None = None,
    ) -> list[UUID]:
        """Queue events in order and return their ids; at half the price of `publish` for many of one type.

        `dedupe_key`: makes the key of each. Raises as `publish` does, at the first event that cannot be published, and what
        `events` or `dedupe_key` raise; all events before that are queued.
        """
        if dedupe_key is not None:
            check_function("publish_many: dedupe_key", dedupe_key)
        if self._spans is not None:
            with self._spans.many(events) as counted:
                return self._publish_many(counted, expires_in, dedupe_key)
        return self._publish_many(events, expires_in, dedupe_key)

    def _publish_many(
        self, events: Iterable[Event], expires_in: float | None, dedupe_key: Callable[[Event], str] | None
    ) -> list[UUID]:
        found: list[UUID] = []
        rest = iter(events)
        while True:
            chunk: list[Event] = []
            try:
                chunk.extend(islice(rest, _CHUNK))
            finally:  # what it had yielded before it raised is in the list
                found += self._publish_chunk(chunk, expires_in, dedupe_key)
            if not chunk:
                return found

    def _publish_chunk(
        self, chunk: list[Event], expires_in: float | None, dedupe_key: Callable[[Event], str] | None
    ) -> list[UUID]:
        if self._sender is None:
            self._skipped += len(chunk)
            return []
        plain = expires_in is None and dedupe_key is None and self._partitions == 1
        items = self._encode_chunk(chunk) if plain and chunk else None
        if items is not None:
            self._buffer.add_many(items, 0)
            return [_from_bytes(item.raw_id) for item in items]
        found: list[UUID] = []
        for event in chunk:
            key = dedupe_key(event) if dedupe_key is not None else None
            item = self._codec.encode_for(event, expires_in, dedupe_key=key, traceparent=current_trace())
            found.append(self._queue(item))
        return found

    def _encode_chunk(self, chunk: list[Event]) -> list[Outgoing] | None:
        try:
            return list(self._codec.encode_many(chunk, current_trace()))
        except Exception:  # whatever it is: one by one, those before the bad one go, and the bad one raises it
            return None

    @staticmethod
    def correlation(correlation_id: UUID) -> AbstractContextManager[UUID]:
        """Events made inside the `with` block carry this correlation id unless they say otherwise."""
        return correlation(correlation_id)

    @staticmethod
    def traceparent(value: str | None) -> AbstractContextManager[str | None]:
        """Events published inside the `with` block carry this W3C trace context, and so does what follows from them. None,
        and what is none by the standard: they carry nothing."""
        return traceparent(value)

    # --- life ----------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds (default: `flush_timeout`) until the fate of everything published is known, and
        on_delivery has been told of it.

        True: everything published since the last flush is on the server. False: something was dropped, refused, is
        unknown, or is still waiting; `statistics()` says which. While the server is away a flush makes the sender try
        at once. With a spool, a signal handler that has interrupted a publish of its own thread is told False at once,
        since nothing can be waited for before that goes on; so is one that closes.
        """
        if timeout is not None:
            check_number("timeout", timeout, error=TypeError)
        sender = self._sender
        if sender is None:
            return True
        if sender.in_thread():
            raise RuntimeError("flush inside on_delivery would wait for itself")
        sender.nudge()
        return self._buffer.wait_settled(self._flush_timeout if timeout is None else timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Flush, then end the thread and the connection. Events that did not make it are dropped and counted.

        With a spool they stay there for the next Producer. Returns what `flush` would. Publishing afterwards raises
        BufferFull; closing again returns the same.

        While a request of the thread hangs in a silent server, what is given up is counted, and on_delivery is called, when
        that ends; not at all if the program ends sooner.
        """
        if timeout is not None:
            check_number("timeout", timeout, error=TypeError)
        sender = self._sender
        if sender is None:
            return True
        if sender.in_thread():
            raise RuntimeError("close inside on_delivery would wait for itself")
        if self._closed is not None:
            return self._closed
        self._buffer.close("closed")
        stored = self.flush(timeout)
        waiting, lost = 0 if stored else self._buffer.waiting, sender.lost()
        sender.stop(1.0 if stored else 0.1)
        # Behind it, since a spool that was removed a moment ago is made again by it.
        sender.tell_end("the Producer is closed", self._flush_timeout if timeout is None else timeout, waiting, lost)
        self._closed = stored
        return stored

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        sender = self._sender
        if sender is not None:
            sender.leave()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Producer has a thread and a connection and cannot be pickled or copied: make one in each process, for "
            "example in worker_init_fn of a DataLoader. A forked child needs none: it may use the one it inherited"
        )

    # --- looking at it -------------------------------------------------------------------------------------------

    def statistics(self) -> ProducerStatistics:
        """What it has done, what waits, and what went wrong."""
        sender = self._sender
        if sender is None:
            return ProducerStatistics(skipped=self._skipped)
        buffer = self._buffer
        with buffer.lock:
            return ProducerStatistics(
                published=buffer.published,
                stored=buffer.stored,
                dropped=buffer.dropped,
                refused=buffer.refused,
                unknown=buffer.unknown,
                duplicates=sender.duplicates,
                waiting_events=buffer.waiting,
                waiting_bytes=buffer.bytes,
                **buffer.spool_statistics(),
                callback_errors=sender.callback_errors,
                log_errors=sender.log_errors,
                last_error=sender.last_error,
            )

    def __repr__(self) -> str:
        if self._sender is None:
            return f"<Producer {getattr(self, 'name', '')} switched off>"
        now = self.statistics()
        state = f"{now.stored} stored, {now.waiting_events} waiting"
        if now.spool_events:
            state += f", {now.spool_events} in the spool"
        for word in ("recovered", "quarantined", "dropped", "refused", "unknown"):
            if getattr(now, word):
                state += f", {getattr(now, word)} {word}"
        return f"<Producer {self.name}{f' {self.source!r}' if self.source else ''}: {state}{self._ended()}>"

    def _ended(self) -> str:
        return ", closed" if self._buffer.closed else ""


def _check_callback(on_delivery: object, error: type[Exception]) -> None:
    if not callable(on_delivery):
        raise error(f"on_delivery={on_delivery!r}: a function is wanted, which takes an id and an error")


def _which_bus(url: str | None, namespace: str | None, partitions: int | None) -> tuple[str, str, int]:
    if url is not None and namespace is not None and partitions is not None:
        return url, namespace, partitions
    from canvasbus.config import Settings, environment

    given = {"url": url, "namespace": namespace, "partitions": partitions}
    told = Settings(**environment(*(key for key, value in given.items() if value is None)))
    if url is None and (url := told.url) is None:
        raise ConfigError(
            "a Producer needs to know the bus: Producer('redis://host:6379'), or set CANVASBUS_URL (canvasbus.toml is for the "
            "programs alone); off:// switches publishing off"
        )
    return (
        url,
        told.namespace if namespace is None else namespace,
        told.partitions if partitions is None else partitions,
    )


def _spooled(spool: str | PathLike[str], spool_bytes: int, namespace: str, server: str) -> Callable[..., Buffer]:
    from canvasbus.produce.spooled import SpooledBuffer

    return partial(
        SpooledBuffer, root=Path(spool).absolute(), spool_bytes=spool_bytes, namespace=namespace, server=server
    )


def _sender_to(
    url: str,
    namespace: str,
    partitions: int,
    flush_timeout: float,
    on_delivery: OnDelivery | None,
    durability: "Durability",
    dedupe: bool,
    dedupe_window: float,
) -> "Sender":
    import encodings.idna  # noqa: F401  getaddrinfo imports it when first used

    from canvasbus.produce.fenced import wants_replicas
    from canvasbus.produce.once import Dedupe
    from canvasbus.produce.sender import Sender
    from canvasbus.transport.connect import open_server

    if not url.startswith("memory://"):
        import redis

        from canvasbus.transport import remote_threads  # noqa: F401  what the thread connects with

        redis.Connection()  # type: ignore[no-untyped-call]  # opens nothing, but looks its own version up, which imports a parser of e-mails
    server = open_server(url)
    replicated = wants_replicas(durability, server.shared)
    return Sender(server, namespace, partitions, flush_timeout, on_delivery, replicated, Dedupe(dedupe, dedupe_window))
