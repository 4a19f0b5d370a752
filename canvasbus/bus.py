"""The trio door: EventBus publishes and, in one process, consumes.

    async with EventBus("memory://") as bus:
        bus.subscribe(DriftDetected, on_drift, group="auto-retrain")
        await bus.publish(DriftDetected(model_name="StyleGAN-Canvas-v3", drift_score=0.4, drift_type="psi"))

Leaving the block drains: queued events are sent, running handlers finish within the grace time.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import trio

from canvasbus.checks import check_flag, check_number
from canvasbus.consume.handlers import Worker, check_newest
from canvasbus.consume.instances import PER_INSTANCE, PerInstance
from canvasbus.consume.leaving import GRACE_SECONDS
from canvasbus.consume.liveness import MAX_BLOCK_SECONDS, Progress
from canvasbus.consume.maintain import Maintainer
from canvasbus.consume.parking import PATIENCE_SECONDS
from canvasbus.consume.retention import check_policies, declare
from canvasbus.consume.runner import Runner, WorkerStatistics
from canvasbus.contract.event import Event, correlation
from canvasbus.errors import BufferFull, ConfigError, ContractError, LifespanError, Unavailable
from canvasbus.log import get_logger
from canvasbus.produce.buffer import BUFFER_BYTES
from canvasbus.produce.fenced import Durability, declare_partitions, wants_replicas
from canvasbus.produce.once import Dedupe
from canvasbus.produce.publisher import Publisher, PublisherStatistics
from canvasbus.transport.connect import open_server
from canvasbus.transport.forks import end_copies
from canvasbus.transport.link import SharedLink
from canvasbus.transport.server import Server
from canvasbus.wire.codec import MAX_EVENT_BYTES, Codec
from canvasbus.wire.keys import Keys, check_name, check_partition_count
from canvasbus.wire.marks import WINDOW_SECONDS, window_ms
from canvasbus.wire.retention import Retention
from canvasbus.wire.traceparent import current as current_trace
from canvasbus.wire.traceparent import traceparent

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["PER_INSTANCE", "EventBus", "Retention"]

log = get_logger("canvasbus.worker")


class EventBus:
    """One connection of a trio program to the bus. Use it as an async context manager, in one trio run.

    * `url`: redis://, rediss://, unix://, redis+sentinel://HOST,HOST/MASTER, memory:// (private to this bus),
      memory://name (shared in the process) or off:// (publish does nothing and returns None).
    * `source`: who publishes.
    * `patience`: seconds for which publish waits for a server that is away before it raises Unavailable (None: as long
      as it takes).
    * `durability`: with "replicated" an event counts as published when a replica has it, too: then it outlives a
      failover. (What handlers return is committed on the server, with its acknowledgement.)
    * `dedupe`: every event that is published here is stored once within `dedupe_window` seconds (a day), by its id; else
      those with a `dedupe_key` are. What it costs on the server is written in `canvasbus.wire.marks`. (What handlers
      return needs none of it.)
    * `tracing`: True makes an OpenTelemetry span of each publishing, for which the extra `otel` is needed; or the provider
      to make them with. (Spans of handlers: `worker.use(trace())`.)
    * `grace`: seconds for which handlers may go on when the bus is left.
    * `retention`: what is kept of which types, for the whole namespace from now on (see Retention; None: what is on
      record, else its defaults).
    * `park`: seconds for which events of a newer version than this program knows wait for a newer worker of their group
      before they go to the dead letters.
    * `max_block`: seconds for which a handler may block the loop before this process counts as stuck: it is told, its
      heartbeat ends, others take over, and `on_stuck`, if given, is called from another thread
      (`canvasbus.worker.run` ends the process there).
    * `server` stands in for what the URL leads to (for tests and simulations).

    Raises ConfigError for a URL or an option that cannot work; entering raises Refused when the server will not have us,
    and waits for a server that is only away for `connect_timeout` seconds, then raises Unavailable.
    """

    def __init__(
        self,
        url: str,
        *,
        source: str = "",
        namespace: str = "canvasbus",
        partitions: int = 1,
        max_event_bytes: int = MAX_EVENT_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        patience: float | None = None,
        durability: Durability = "server",
        dedupe: bool = False,
        dedupe_window: float = WINDOW_SECONDS,
        tracing: "bool | TracerProvider" = False,
        grace: float = GRACE_SECONDS,
        park: float = PATIENCE_SECONDS,
        max_block: float = MAX_BLOCK_SECONDS,
        on_stuck: Callable[[], None] | None = None,
        connect_timeout: float = 10.0,
        server: Server | None = None,
        retention: Retention | Mapping[str, Retention] | None = None,
    ) -> None:
        if not isinstance(url, str):
            raise ConfigError(f"EventBus({url!r}): the URL of the bus is wanted, like redis://host:6379")
        check_name("namespace", namespace)
        check_partition_count(partitions)
        for name, size in {"max_event_bytes": max_event_bytes, "buffer_bytes": buffer_bytes}.items():
            check_number(name, size, least=1)
        times = {"grace": grace, "park": park, "max_block": max_block, "connect_timeout": connect_timeout}
        for name, seconds in (times if patience is None else {**times, "patience": patience}).items():
            check_number(name, seconds, least=0)
        check_flag("dedupe", dedupe)
        window_ms(dedupe_window, "dedupe_window")
        self._off = url.startswith("off://")
        self._server: Server | None = None if self._off else server or open_server(url)
        self._codec = Codec(source, limit=max_event_bytes)
        self._namespace = namespace
        self._partitions = partitions
        self._grace = grace
        self._park = park
        self._progress = Progress()
        self._max_block = max_block
        self._on_stuck = on_stuck
        self._connect_timeout = connect_timeout
        self._retention = check_policies(retention) if retention is not None else {}
        self._workers: list[Worker] = []
        self._runners: list[Runner] = []
        self._subscribed: dict[str | PerInstance, Worker] = {}
        self._nursery: trio.Nursery | None = None
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._runners_left: list[trio.Event] = []
        self._publisher_left = trio.Event()
        self._maintainers: list[Maintainer] = []
        self._spans = None
        if tracing and not self._off:
            from canvasbus.produce.spans import PublishSpans

            self._spans = PublishSpans(tracing, url)
        self._skipped = 0
        self._left = False
        self._failures: list[LifespanError] = []
        if self._server is not None:
            self._shared = SharedLink(self._server)
            self._publisher = Publisher(
                self._server,
                self._codec,
                namespace=namespace,
                partitions=partitions,
                buffer_bytes=buffer_bytes,
                patience=patience,
                replicated=wants_replicas(durability, self._server.shared),
                dedupe=Dedupe(dedupe, dedupe_window),
            )

    # --- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._manager is not None:
            raise ContractError("an EventBus lives once: make a new one for another `async with`")
        if not trio.lowlevel.in_trio_task():
            raise ContractError(
                "an EventBus lives in trio, and nothing of trio runs here: asyncio programs publish with a Producer, and workers "
                "run beside them by canvasbus-worker"
            )
        self._manager = trio.open_nursery()
        self._nursery = nursery = await self._manager.__aenter__()
        if self._server is None:
            return self
        nursery.start_soon(self._progress.run)
        nursery.start_soon(end_copies)
        try:
            await nursery.start(self._shared.run_tasks)
            await self._agree()
            self._publisher.open()
            nursery.start_soon(self._publish_until_closed)
            for partition in range(self._partitions):
                maintainer = Maintainer(
                    self._shared,
                    Keys(self._namespace, partition),
                    announce=self._announce,
                    source=self._codec.source,
                    partitions=self._partitions,
                )
                self._maintainers.append(maintainer)
                nursery.start_soon(maintainer.run)
            for worker in self._workers:
                self._start(worker)
        except BaseException as error:
            nursery.cancel_scope.cancel()
            passed = (type(error), error, error.__traceback__) if _is_cancel(error) else (None, None, None)
            await self._manager.__aexit__(*passed)
            raise
        return self

    async def _agree(self) -> None:
        deadline = trio.current_time() + self._connect_timeout
        while True:
            try:
                await self._shared.run(declare_partitions(self._namespace, self._partitions))
                everywhere = [Keys(self._namespace, partition) for partition in range(self._partitions)]
                return await self._shared.run(declare(everywhere, self._retention))
            except Unavailable:
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(0.2)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._manager is not None and self._nursery is not None
        if error is not None and _is_cancel(error):
            # Cancelled from outside, or because something of ours crashed: the nursery must see it.
            for runner in self._runners:
                runner.stop(0.0)
            return await self._manager.__aexit__(kind, error, trace)
        try:
            await self.aclose()
        except LifespanError:
            if error is None:  # else what ended the block counts for more, and this one is in the log
                raise
        finally:
            self._nursery.cancel_scope.cancel()
            await self._manager.__aexit__(None, None, None)
        return None

    async def aclose(self) -> None:
        """Drain and stop: handlers first, since they publish, then what is queued. The block's end does this too.

        Raises LifespanError, in the end, when a worker could not close what it had opened."""
        self._left = True
        for runner in self._runners:
            runner.stop(self._grace)
        async with trio.open_nursery() as telling:
            for runner in self._runners:
                telling.start_soon(runner.tell_when_late)
            for left in self._runners_left:
                await left.wait()
            telling.cancel_scope.cancel()
        if self._server is not None and self._nursery is not None:
            self._publisher.close()
            with trio.move_on_after(self._grace):
                await self._publisher_left.wait()
            async with trio.open_nursery() as leaving:
                for maintainer in self._maintainers:
                    leaving.start_soon(maintainer.leave)
        if self._failures:
            raise self._failures[0]

    async def _publish_until_closed(self) -> None:
        await self._publisher.run()
        self._publisher_left.set()

    # --- consuming -----------------------------------------------------------------------------------------------

    def subscribe(
        self, what: type[Event] | str, handler: Callable[..., Any], *, group: str | PerInstance, **options: Any
    ) -> None:
        """Call `handler` for every event of a class, a type name or a glob. Options are those of `Worker.on`.

        Events are shared among all processes that subscribe under the same `group`; other groups see them too. With
        `group=PER_INSTANCE` this bus sees all events, beginning with the latest. Subscribe several handlers of one
        group without awaiting in between.
        """
        worker = self._subscribed.get(group)
        if worker is None:
            if isinstance(group, PerInstance):
                name = re.sub(r"[^A-Za-z0-9_.\-]", "_", self._codec.source)[:100] or "bus"
                worker = Worker(name, group=group)
            else:
                worker = Worker(group)
            worker.on(what, **options)(handler)
            self._subscribed[group] = worker
            self.add(worker)
        elif any(runner.worker is worker for runner in self._runners):
            raise ContractError(f"group {group!r} runs already: subscribe all its handlers before the next await")
        else:
            worker.on(what, **options)(handler)

    def add(self, worker: Worker) -> None:
        """Run a worker in this process for as long as the bus lives."""
        if self._server is None:
            raise ConfigError("off:// switches the bus off: there is nothing for a worker to do")
        if not isinstance(worker, Worker):
            raise ContractError(f"a bus runs workers, not {worker!r}: bus.add(Worker(name)) with handlers on it")
        if not worker.handlers:
            raise ContractError(f"worker {worker.name!r} has no handlers: register some with @worker.on(...)")
        if any((other.name, other.group) == (worker.name, worker.group) for other in self._workers):
            raise ContractError(f"a worker {worker.name!r} is already on this bus")
        for handler in worker.handlers:
            check_newest(worker.name, handler)
        if self._left:
            raise ContractError("this bus has ended: add workers before or while it runs")
        self._workers.append(worker)
        if self._nursery is not None:
            self._nursery.start_soon(self._start_later, worker)

    async def _start_later(self, worker: Worker) -> None:
        await trio.lowlevel.checkpoint()
        self._start(worker)

    def _start(self, worker: Worker) -> None:
        assert self._nursery is not None and self._server is not None
        runner = Runner(
            worker,
            self._server,
            self._shared,
            Codec(worker.name, limit=self._codec.limit),
            namespace=self._namespace,
            partitions=self._partitions,
            grace=self._grace,
            park=self._park,
            progress=self._progress,  # they all share one loop
            max_block=self._max_block,
            allowed=self._extended,
            on_stuck=self._on_stuck,
        )
        left = trio.Event()
        self._runners.append(runner)
        self._runners_left.append(left)
        self._nursery.start_soon(self._run, runner, left)

    async def _run(self, runner: Runner, left: trio.Event) -> None:
        try:
            await runner.run()
        except LifespanError as error:
            if not self._left:
                raise
            # It has left in order; what the others still drain and what is queued must not be cut short by it.
            log.error("a worker has left, but could not close what it had opened", error=str(error))
            self._failures.append(error)
        finally:
            left.set()

    async def wait_ready(self) -> None:
        """Return when every worker added so far has joined its group and reads. Raises ContractError outside of the
        bus's `async with` block, where no worker ever joins."""
        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            raise ContractError("wait_ready() waits for workers, which run inside `async with bus:` only")
        await trio.sleep(0)
        while len(self._runners) < len(self._workers):
            await trio.lowlevel.checkpoint()
        for runner in self._runners:
            await runner.ready.wait()

    def _announce(self, event: Event) -> None:
        try:
            self._publisher.publish_nowait(event)
        except BufferFull:
            pass  # the loss is in the log and in the counters

    # --- publishing ----------------------------------------------------------------------------------------------

    def publish(
        self,
        event: Event,
        *,
        expires_in: float | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        dedupe_key: str | None = None,
    ) -> Awaitable[str | None]:
        """Publish and return the entry id once the server has the event (None on off://).

        `expires_in`: seconds after which consumers skip the event and count it (0 and less: at once). `delay` (seconds
        from when the server gets it) or `at` (an aware datetime): consumers get it then, or up to a second later, as long
        as any bus of the namespace runs; meanwhile the server keeps it, and what is returned is the timer's name.
        `dedupe_key` names the event, like "run-7:epoch-3": of several of a type with one key, published by whomever
        within `dedupe_window`, the first is stored and no other; what is returned is its entry id. (With partitions:
        events that say the same and have the same `key`.) Raises EncodeError, ContractError for a delay or a key that is
        none, Refused, and Unavailable when `patience` is used up or the outcome cannot be known. Cancelled: it may still
        be stored.
        """
        # No coroutine of its own around the publisher's: that would cost 0.4 µs of 6.
        if self._server is None:
            return self._skip()
        if self._spans is not None:
            return self._publish_in_span(event, expires_in, delay, at, dedupe_key)
        if expires_in is None and delay is None and at is None and dedupe_key is None:
            return self._publisher.publish(event)
        return self._publisher.publish_for(event, expires_in, delay, at, dedupe_key)

    async def publish_many(
        self,
        events: Iterable[Event],
        *,
        expires_in: float | None = None,
        dedupe_key: Callable[[Event], str] | None = None,
    ) -> list[str]:
        """Publish in order and return the entry ids; `expires_in` as for `publish`, `dedupe_key` makes the key of each.
        All are tried; failures come as one ExceptionGroup. What `events` raises itself is raised after all that it had
        yielded were tried."""
        if self._server is None:
            self._skipped += sum(1 for _ in events)
            return []
        if self._spans is None:
            return await self._publisher.publish_many(events, expires_in, dedupe_key)
        with self._spans.many(events) as counted:
            return await self._publisher.publish_many(counted, expires_in, dedupe_key)

    def publish_nowait(
        self,
        event: Event,
        *,
        expires_in: float | None = None,
        delay: float | None = None,
        at: datetime | None = None,
        dedupe_key: str | None = None,
    ) -> None:
        """Queue the event and return at once; arguments as for `publish`. Raises BufferFull; later failures are counted
        in `statistics()`."""
        if self._server is None:
            self._skipped += 1
            return
        if self._spans is None:
            self._publisher.publish_nowait(event, expires_in, delay, at, dedupe_key)
            return
        with self._spans.one(event) as tell_id:
            item = self._codec.encode_for(event, expires_in, delay, at, dedupe_key, current_trace())
            tell_id(item.id)
            self._publisher.put_nowait(item)

    async def _publish_in_span(
        self, event: Event, expires_in: float | None, delay: float | None, at: datetime | None, dedupe_key: str | None
    ) -> str:
        assert self._spans is not None
        with self._spans.one(event) as tell_id:
            item = self._codec.encode_for(event, expires_in, delay, at, dedupe_key, current_trace())
            tell_id(item.id)
            return await self._publisher.put(item)

    def correlation(self, correlation_id: UUID) -> AbstractContextManager[UUID]:
        """Events made inside the `with` block carry this correlation id unless they say otherwise."""
        return correlation(correlation_id)

    def traceparent(self, value: str | None) -> AbstractContextManager[str | None]:
        """Events published inside the `with` block carry this W3C trace context, and so does what follows from them. None,
        and what is none by the standard: they carry nothing."""
        return traceparent(value)

    async def _skip(self) -> None:
        self._skipped += 1
        await trio.lowlevel.checkpoint()

    # --- showing -------------------------------------------------------------------------------------------------

    @property
    def server(self) -> Server | None:
        """The server behind the URL; None for off://."""
        return self._server

    @property
    def link(self) -> SharedLink:
        """The shared link, for operations (see canvasbus.operate). On off:// there is none: AttributeError."""
        return self._shared

    def publisher_statistics(self) -> PublisherStatistics:
        """What was published; on off:// everything is 0 and `skipped` counts."""
        if self._server is None:
            return PublisherStatistics(published=0, failed=0, batches=0, waiting_bytes=0, skipped=self._skipped)
        return self._publisher.statistics()

    def statistics(self) -> list[WorkerStatistics]:
        """One record for each worker on this bus."""
        return [runner.statistics() for runner in self._runners]

    def _extended(self) -> float:
        """Until when some handler may go on by its own word."""
        return max((runner.extended for runner in self._runners), default=0.0)

    @property
    def progressing(self) -> bool:
        """False when the loop is stuck, by the same measure as for the heartbeat: a worker that waits for the server, to
        join or to leave, is not."""
        return self._nursery is None or not self._progress.stuck(self._max_block, self._extended())

    def __repr__(self) -> str:
        where = "off://" if self._server is None else self._server.name
        return f"<EventBus {where} {[runner.worker.name for runner in self._runners]}>"


def _is_cancel(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)
