"""OpenTelemetry spans of publishing and handling, as its SDK exports them."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from random import Random
from typing import Any
from uuid import uuid4

import pytest
import trio
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv._incubating.attributes import messaging_attributes
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanKind, StatusCode
from seeds import seeds
from studio import Eyes, PaintingFramed, PaintingMade, SculptureMade, quiet, running
from waiting import until

from canvasbus import Event, Producer, traceparent
from canvasbus.bus import EventBus
from canvasbus.consume import maintain
from canvasbus.errors import BufferFull, ConfigError, ContractError, EncodeError
from canvasbus.transport import address
from canvasbus.wire import otel as conventions
from canvasbus.wire.codec import Codec
from canvasbus.worker import Backoff, BatchFailure, Context, Later, Reject, RetryLater, Worker, trace

ONCE = Backoff(attempts=1)
KINDS = ("async", "plain", "batch", "plain batch")
STRANGER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
JUNK = ("00-1-2-01", "x" * 600_000, "00-" + "0" * 32 + "-b7ad6b7169203331-01")


class Spans:
    """A provider that keeps what was exported."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("the test's")

    def named(self, name: str) -> list[ReadableSpan]:
        """In the order in which they ended."""
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    @property
    def names(self) -> set[str]:
        return {span.name for span in self._exporter.get_finished_spans()}


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers are looked for more often: waiting for them is all that these tests would do."""
    monkeypatch.setattr(maintain, "IDLE_SECONDS", 0.05)


def named(context: otel.SpanContext | None) -> str:
    """The traceparent of a span."""
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def said(span: ReadableSpan | otel.Span) -> str:
    return named(span.get_span_context())


def parent(span: ReadableSpan) -> str | None:
    return None if span.parent is None else named(span.parent)


def linked(span: ReadableSpan) -> list[str]:
    return [named(link.context) for link in span.links]


def ended(span: ReadableSpan) -> tuple[StatusCode, str | None, Any]:
    """Status, its text, and error.type."""
    assert span.attributes is not None
    return span.status.status_code, span.status.description, span.attributes.get("error.type")


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


FINE = (StatusCode.UNSET, None, None)


# --- the conventions ---------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_conventions() -> None:
    """Every attribute is spelt as OpenTelemetry's own package spells it, and so are the kinds of operation."""
    theirs = {
        value
        for module in (messaging_attributes, error_attributes, server_attributes)
        for name, value in vars(module).items()
        if name.isupper()
    }
    ours = {value for name, value in vars(conventions).items() if name.isupper() and isinstance(value, str)}
    assert ours - theirs == {conventions.SCHEMA} and len(ours) == 12
    assert {"send", "process"} <= {kind.value for kind in messaging_attributes.MessagingOperationTypeValues}
    assert conventions.SCHEMA in {schema.value for schema in Schemas}


# --- publishing --------------------------------------------------------------------------------------------------------

Publish = Callable[[Any, Event], Any]


def server_of(url: str) -> dict[str, Any]:
    where = address.parse(url)
    return {} if where.scheme == "memory" else {"server.address": where.host, "server.port": where.port}


DOORS: dict[str, tuple[type, Publish]] = {
    "Producer.publish": (Producer, lambda bus, event: bus.publish(event)),
    "Producer.publish, expires_in": (Producer, lambda bus, event: bus.publish(event, expires_in=60)),
    "Producer.publish, dedupe_key": (Producer, lambda bus, event: bus.publish(event, dedupe_key="a")),
    "Producer.publish, on_delivery": (Producer, lambda bus, event: bus.publish(event, on_delivery=lambda *_: None)),
    "EventBus.publish": (EventBus, lambda bus, event: bus.publish(event)),
    "EventBus.publish, expires_in": (EventBus, lambda bus, event: bus.publish(event, expires_in=60)),
    "EventBus.publish, dedupe_key": (EventBus, lambda bus, event: bus.publish(event, dedupe_key="a")),
    "EventBus.publish_nowait": (EventBus, lambda bus, event: bus.publish_nowait(event)),
}
MANY: dict[str, tuple[type, Callable[[Any, list[Event]], Any]]] = {
    "Producer": (Producer, lambda bus, events: bus.publish_many(events)),
    "Producer, dedupe_key": (Producer, lambda bus, events: bus.publish_many(events, dedupe_key=lambda e: str(e))),
    "EventBus": (EventBus, lambda bus, events: bus.publish_many(events)),
    "EventBus, expires_in": (EventBus, lambda bus, events: bus.publish_many(iter(events), expires_in=60)),
}


async def through(door: Any, url: str, publish: Callable[[Any], Any], **options: Any) -> Any:
    """Open a Producer or an EventBus, publish, and close it."""
    if door is Producer:
        with Producer(url, **options) as bus:
            published = publish(bus)
            assert await trio.to_thread.run_sync(bus.flush, 10)
            return published
    async with EventBus(url, **options) as bus:
        published = publish(bus)
        return published if published is None else await published


@pytest.mark.parametrize("name", DOORS)
async def test_publishing_is_a_span(any_url: str, namespace: str, eyes: Eyes, spans: Spans, name: str) -> None:
    """Of kind PRODUCER, named after operation and event type; the event carries its context."""
    door, publish = DOORS[name]
    correlation = uuid4()
    made = PaintingMade(correlation_id=correlation)
    await through(door, any_url, lambda bus: publish(bus, made), namespace=namespace, tracing=spans.provider)
    ((envelope, _),) = eyes.entries("painting.made")
    span = spans.one("publish painting.made")
    assert (span.kind, span.parent, span.links, ended(span)) == (SpanKind.PRODUCER, None, (), FINE)
    assert envelope.traceparent == said(span)
    assert about(span) == {
        "messaging.system": "redis",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "painting.made",
        "messaging.message.id": str(envelope.id),
        "messaging.message.conversation_id": str(correlation),
        **server_of(any_url),
    }
    assert span.instrumentation_scope is not None and span.instrumentation_scope.name == "canvasbus"


@pytest.mark.parametrize("name", DOORS)
async def test_its_parent_is_what_runs(any_url: str, namespace: str, eyes: Eyes, spans: Spans, name: str) -> None:
    """The current span, else the trace that is in force; of a trace that is none there is no child."""
    door, publish = DOORS[name]
    parents: list[str | None] = []
    options = {"namespace": namespace, "tracing": spans.provider}

    async def under(*contexts: Any) -> None:
        with ExitStack() as stack:
            entered = [stack.enter_context(context) for context in contexts]
            made = PaintingMade(number=len(parents))
            await through(door, any_url, lambda bus: publish(bus, made), **options)
            span = spans.named("publish painting.made")[-1]
            parents.append(parent(span))
            if entered and isinstance(entered[-1], otel.Span):
                assert parents[-1] == said(entered[-1])

    await under(traceparent(STRANGER))
    await under(traceparent(STRANGER), spans.tracer.start_as_current_span("request"))
    await under(spans.tracer.start_as_current_span("request"))
    await under(traceparent("nonsense"))
    assert parents[0] == STRANGER and parents[3] is None and len(set(parents)) == 4


@pytest.mark.parametrize("name", MANY)
async def test_publishing_many_is_one_span(any_url: str, namespace: str, eyes: Eyes, spans: Spans, name: str) -> None:
    """All events carry its context; it says how many there were, and names their type if they have one in common."""
    door, publish = MANY[name]
    options = {"namespace": namespace, "tracing": spans.provider}
    alike: list[Event] = [PaintingMade(number=number) for number in range(600)]
    mixed: list[Event] = [SculptureMade(title="a"), PaintingFramed(number=1)]
    await through(door, any_url, lambda bus: publish(bus, alike), **options)
    await through(door, any_url, lambda bus: publish(bus, mixed), **options)
    first, second = spans.one("publish painting.made"), spans.one("publish")
    assert {envelope.traceparent for envelope, _ in eyes.entries("painting.made")} == {said(first)}
    others = [*eyes.entries("painting.framed"), *eyes.entries("sculpture.made")]
    assert [envelope.traceparent for envelope, _ in others] == [said(second)] * 2
    common = {
        "messaging.system": "redis",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        **server_of(any_url),
    }
    assert about(first) == common | {
        "messaging.batch.message_count": 600,
        "messaging.destination.name": "painting.made",
    }
    assert about(second) == common | {"messaging.batch.message_count": 2}
    assert (first.kind, second.kind) == (SpanKind.PRODUCER, SpanKind.PRODUCER)


@pytest.mark.parametrize("name", [*DOORS, *MANY])
async def test_what_is_not_published_is_a_span_that_failed(
    any_url: str, namespace: str, eyes: Eyes, spans: Spans, name: str
) -> None:
    """With the class of the error and its text; the caller gets the error all the same, and nothing is published."""
    door, publish = (DOORS | MANY)[name]
    bad: Any = PaintingMade(number="seven")  # type: ignore[arg-type]
    with pytest.raises(EncodeError):
        await through(
            door,
            any_url,
            lambda bus: publish(bus, [bad] if name in MANY else bad),
            namespace=namespace,
            tracing=spans.provider,
        )
    span = spans.one("publish painting.made")
    status, text, kind = ended(span)
    assert (status, kind) == (StatusCode.ERROR, "canvasbus.errors.EncodeError")
    assert text and text.startswith("EncodeError: painting.made v1 cannot be published")
    assert [event.name for event in span.events] == ["exception"]
    assert eyes.count("painting.made") == 0


@pytest.mark.parametrize("name", DOORS)
async def test_what_is_no_event_fails_as_ever(any_url: str, namespace: str, spans: Spans, name: str) -> None:
    """The error is the one that there is without tracing."""
    door, publish = DOORS[name]

    class Undeclared(Event):
        pass

    for wrong, error in ((3, EncodeError), (Undeclared(), ContractError)):
        with pytest.raises(error):
            await through(
                door, any_url, lambda bus, it=wrong: publish(bus, it), namespace=namespace, tracing=spans.provider
            )
    assert spans.names == {"publish int", "publish Undeclared"}


async def test_a_full_buffer_and_a_cancelled_wait_are_told(
    memory: Any, virtual: Any, namespace: str, spans: Spans
) -> None:
    """BufferFull, and the end of a caller's patience while the server is away."""
    async with running(memory, namespace=namespace, buffer_bytes=10, tracing=spans.provider) as bus:
        with pytest.raises(BufferFull):
            bus.publish_nowait(PaintingMade())
        memory.set_connected(False)
        with trio.move_on_after(5) as scope:
            await bus.publish(SculptureMade())
        memory.set_connected(True)
    assert scope.cancelled_caught
    assert ended(spans.one("publish painting.made"))[2] == "canvasbus.errors.BufferFull"
    assert ended(spans.one("publish sculpture.made"))[::2] == (StatusCode.ERROR, "trio.Cancelled")


async def test_a_bus_that_is_switched_off_makes_none(spans: Spans) -> None:
    """off:// publishes nothing."""
    with Producer("off://", tracing=spans.provider) as producer:
        assert producer.publish(PaintingMade()) is None and producer.publish_many([PaintingMade()]) == []
    async with EventBus("off://", tracing=spans.provider) as bus:
        assert await bus.publish(PaintingMade()) is None and await bus.publish_many([PaintingMade()]) == []
        bus.publish_nowait(PaintingMade())
    assert spans.names == set()


def test_what_is_no_provider_is_refused() -> None:
    """Where it is given."""
    for make in (lambda: Producer("redis://localhost:1", tracing="yes"), lambda: trace(3)):
        with pytest.raises(ConfigError, match="is no TracerProvider; without one the process's own is taken"):
            make()


# --- handling ----------------------------------------------------------------------------------------------------------


def framer(kind: str, spans: Spans, handle: Callable[[Any, Any], Any] | None = None, **options: Any) -> Worker:
    """A worker of this kind that frames paintings under a span of the author's own, in trace() as it comes."""
    worker = Worker("framers")
    worker.use(trace(spans.provider))

    def one(event: PaintingMade, ctx: Context) -> Event:
        with spans.tracer.start_as_current_span("framing", attributes={"number": event.number}):
            pass
        if handle is not None:
            handle(event, ctx)
        return PaintingFramed(number=event.number)

    if kind == "async":

        @worker.on(PaintingMade, **options)
        async def frame(event: PaintingMade, ctx: Context) -> Event:
            await trio.lowlevel.checkpoint()
            return one(event, ctx)
    elif kind == "plain":
        worker.on(PaintingMade, **options)(one)
    elif kind == "batch":

        @worker.on_batch(PaintingMade, **options)
        async def frame_many(events: list[PaintingMade], ctxs: list[Context]) -> list[tuple[int, Event]]:
            await trio.lowlevel.checkpoint()
            return [(at, one(event, ctx)) for at, (event, ctx) in enumerate(zip(events, ctxs, strict=True))]
    else:

        @worker.on_batch(PaintingMade, **options)
        def frame_in_thread(events: list[PaintingMade], ctxs: list[Context]) -> list[tuple[int, Event]]:
            return [(at, one(event, ctx)) for at, (event, ctx) in enumerate(zip(events, ctxs, strict=True))]

    return worker


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_is_a_span(any_url: str, namespace: str, eyes: Eyes, spans: Spans, kind: str) -> None:
    """Of kind CONSUMER, a trace of its own that is linked to the span of publishing; current in the handler, in threads
    too; what the handler returns carries its context."""
    told: list[Any] = []
    worker = framer(kind, spans, lambda event, ctx: told.append(ctx.traceparent))
    async with running(any_url, worker, namespace=namespace, tracing=spans.provider) as bus:
        await bus.publish(PaintingMade(number=7))
        await quiet(eyes)
    ((made, event),), ((framed, _),) = eyes.entries("painting.made"), eyes.entries("painting.framed")
    published, run = spans.one("publish painting.made"), spans.one("process painting.made")
    assert (run.kind, run.parent, ended(run)) == (SpanKind.CONSUMER, None, FINE)
    assert linked(run) == [said(published)] == [made.traceparent]
    assert parent(spans.one("framing")) == said(run) == framed.traceparent == told[0]
    common = {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "painting.made",
        "messaging.consumer.group.name": "framers",
        "canvasbus.handler": worker.handlers[0].name,
    }
    if "batch" in kind:
        assert about(run) == common | {"messaging.batch.message_count": 1}
    else:
        assert about(run) == common | {
            "messaging.message.id": str(made.id),
            "messaging.message.conversation_id": str(event.correlation_id),
            "canvasbus.attempt": 1,
        }


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_may_join_the_trace_of_its_event(
    any_url: str, namespace: str, eyes: Eyes, spans: Spans, kind: str
) -> None:
    """With join=True it is the child of the span of publishing, and linked to it; a batch is linked only."""
    worker = framer(kind, spans)
    worker.middleware[:] = [trace(spans.provider, join=True)]
    async with running(any_url, worker, namespace=namespace, tracing=spans.provider) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
        eyes.put(b'{"type": "painting.made", "data": {}}')  # nobody traced it
        await quiet(eyes)
    published = spans.one("publish painting.made")
    first, second = spans.named("process painting.made")
    assert parent(first) == (None if "batch" in kind else said(published))
    assert linked(first) == [said(published)]
    assert (second.parent, second.links) == (None, ())


async def test_it_is_the_child_of_no_span_that_the_bus_was_opened_in(
    any_url: str, namespace: str, eyes: Eyes, spans: Spans
) -> None:
    """Tasks of the bus inherit what was current there, and with it every run would belong to one endless trace."""
    with spans.tracer.start_as_current_span("main"):
        async with running(any_url, framer("async", spans), namespace=namespace, tracing=spans.provider) as bus:
            await bus.publish(PaintingMade())
            await quiet(eyes)
    assert spans.one("process painting.made").parent is None
    assert parent(spans.one("publish painting.made")) == said(spans.one("main"))


@pytest.mark.parametrize("kind", ["batch", "plain batch"])
async def test_a_batch_is_linked_to_all_that_published_it(
    any_url: str, namespace: str, eyes: Eyes, spans: Spans, kind: str
) -> None:
    """Once to each span, however many events it published; events that nobody traced have none."""
    async with EventBus(any_url, namespace=namespace, tracing=spans.provider) as bus:
        for number in range(5):
            await bus.publish(PaintingMade(number=number))
        await bus.publish_many([PaintingMade(number=number) for number in range(5, 20)])
    eyes.put(b'{"type": "painting.made", "data": {"number": 20}}')
    async with running(any_url, framer(kind, spans, max_size=21, max_wait=5), namespace=namespace):
        await quiet(eyes)
    run = spans.one("process painting.made")
    assert linked(run) == [said(span) for span in spans.named("publish painting.made")] and len(run.links) == 6
    assert about(run)["messaging.batch.message_count"] == 21
    assert {envelope.traceparent for envelope, _ in eyes.entries("painting.framed")} == {said(run)}
    assert eyes.count("painting.framed") == 21


async def test_a_batch_of_several_types_names_none(any_url: str, namespace: str, eyes: Eyes, spans: Spans) -> None:
    """`process`, without a destination."""
    worker = Worker("framers", middleware=[trace(spans.provider)])

    @worker.on_batch(PaintingMade, SculptureMade, max_size=2, max_wait=5)
    async def look(events: list[Event]) -> None:
        pass

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(), SculptureMade()])
        await until(lambda: "process" in spans.names)
    assert "messaging.destination.name" not in about(spans.one("process"))


@pytest.mark.parametrize("traced", [True, False], ids=["traced bus", "plain bus"])
@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("seed", seeds(1, "spans that interleave"))
async def test_runs_that_interleave_do_not_mix(
    any_url: str, namespace: str, eyes: Eyes, spans: Spans, kind: str, traced: bool, seed: int
) -> None:
    """Many runs at once, in tasks or in threads, that wait for each other in random order: what each of them does, the
    spans of its author, the tasks that it starts, what it publishes and returns, belongs to its own span."""
    random = Random(seed)
    worker = Worker("framers", middleware=[trace(spans.provider)])
    buses: list[EventBus] = []
    inside = 0
    turns = {number: [random.random() < 0.5 for _ in range(6)] for number in range(40)}

    async def meanwhile(number: int) -> None:
        with spans.tracer.start_as_current_span("in a task", attributes={"number": number}):
            await trio.lowlevel.checkpoint()

    async def work(event: PaintingMade) -> Event:
        nonlocal inside
        inside += 1
        for other in turns[event.number]:
            with spans.tracer.start_as_current_span("step", attributes={"number": event.number}):
                if other:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(meanwhile, event.number)
                        await buses[0].publish(SculptureMade(title=str(event.number)))
                await trio.lowlevel.checkpoint()
        return PaintingFramed(number=event.number)

    if kind == "async":
        worker.on(PaintingMade, concurrency=16)(work)
    else:

        @worker.on(PaintingMade, concurrency=8)
        def in_thread(event: PaintingMade) -> Event:
            with spans.tracer.start_as_current_span("step", attributes={"number": event.number}):
                return trio.from_thread.run(work, event)

    options: dict[str, Any] = {"tracing": spans.provider} if traced else {}
    async with running(any_url, worker, namespace=namespace, **options) as bus:
        buses.append(bus)
        await bus.publish_many([PaintingMade(number=number) for number in range(40)])
        await quiet(eyes)
    numbers = {str(envelope.id): event.number for envelope, event in eyes.entries("painting.made")}
    runs = {numbers[about(run)["messaging.message.id"]]: run for run in spans.named("process painting.made")}
    assert len(runs) == inside == 40
    by_id = {said(span): span for name in spans.names for span in spans.named(name)}

    def root(span: ReadableSpan) -> str:
        above = parent(span)
        return said(span) if above is None else root(by_id[above])

    for span in (*spans.named("step"), *spans.named("in a task")):
        assert root(span) == said(runs[about(span)["number"]])
    for envelope, event in eyes.entries("painting.framed"):
        assert envelope.traceparent == said(runs[event.number])
    for envelope, event in eyes.entries("sculpture.made"):
        carried = envelope.traceparent
        assert carried is not None
        assert (root(by_id[carried]) if traced else carried) == said(runs[int(event.title)])
    assert eyes.count("sculpture.made") == sum(map(sum, turns.values())) == len(spans.named("in a task"))


@pytest.mark.parametrize("kind", KINDS)
async def test_failures_are_told(any_url: str, namespace: str, eyes: Eyes, spans: Spans, kind: str) -> None:
    """Each attempt is a span of its own with the class of the exception; `handler.failed` carries the last one's context."""

    def fail(event: Any, ctx: Any) -> None:
        raise KeyError("no frames")

    worker = framer(kind, spans, fail, retry=Backoff(attempts=2, base=0))
    async with running(any_url, worker, namespace=namespace, tracing=spans.provider) as bus:
        await bus.publish(PaintingMade())
        await until(lambda: eyes.dead("framers"))
    first, second = spans.named("process painting.made")
    for span in (first, second):
        assert ended(span) == (StatusCode.ERROR, "KeyError: 'no frames'", "KeyError")
        assert [event.name for event in span.events] == ["exception"]
        assert linked(span) == [said(spans.one("publish painting.made"))]
    if "batch" not in kind:
        assert [about(span)["canvasbus.attempt"] for span in (first, second)] == [1, 2]
    ((failed, _),) = eyes.entries("handler.failed")
    assert failed.traceparent == said(second)


class Untold(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "status", "kind", "text"),
    [
        (Reject("ugly"), StatusCode.ERROR, "canvasbus.consume.policy.Reject", "Reject: ugly"),
        (ExceptionGroup("g", [Reject("ugly")]), StatusCode.ERROR, "canvasbus.consume.policy.Reject", "Reject: ugly"),
        (Untold(), None, f"{__name__}.Untold", None),
        (
            ExceptionGroup("g", [KeyError(1), OSError(2)]),
            StatusCode.ERROR,
            "ExceptionGroup",
            "ExceptionGroup: g (2 sub",
        ),
    ],
    ids=["reject", "reject in a group", "without a text", "group"],
)
async def test_errors_of_all_kinds(
    any_url: str, namespace: str, eyes: Eyes, spans: Spans, error: Exception, status: Any, kind: str, text: str | None
) -> None:
    """Words of the bus count as what they mean; an exception that cannot even be told ends the run as it ever did."""
    worker = Worker("framers", middleware=[trace(spans.provider)])

    @worker.on(PaintingMade, retry=ONCE)
    async def frame(event: PaintingMade) -> None:
        raise error

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(lambda: eyes.dead("framers"))
    span = spans.one("process painting.made")
    assert (status in (None, span.status.status_code), about(span)["error.type"]) == (True, kind)
    assert text is None or (span.status.description or "").startswith(text)


async def test_a_run_that_is_put_off_has_not_failed(any_url: str, namespace: str, eyes: Eyes, spans: Spans) -> None:
    """RetryLater is no error; the span says for how long."""
    worker, runs = Worker("framers", middleware=[trace(spans.provider)]), []

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None:
        runs.append(event)
        if len(runs) == 1:
            raise RetryLater(0.25)

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
    first, second = spans.named("process painting.made")
    assert (ended(first), ended(second)) == (FINE, FINE)
    assert about(first)["canvasbus.retry_after"] == 0.25 and "canvasbus.retry_after" not in about(second)


async def test_a_batch_that_failed_in_part(any_url: str, namespace: str, eyes: Eyes, spans: Spans) -> None:
    """Says how many; the others' events carry its context."""
    worker = Worker("framers", middleware=[trace(spans.provider)])

    @worker.on_batch(PaintingMade, max_size=3, max_wait=5, retry=ONCE)
    async def frame(events: list[PaintingMade]) -> None:
        raise BatchFailure({0: ValueError("a"), 1: ValueError("b")}, [(2, PaintingFramed(number=2))])

    async with running(any_url, worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=number) for number in range(3)])
        await quiet(eyes)
    span = spans.one("process painting.made")
    assert ended(span) == (StatusCode.ERROR, "2 of 3 events failed", "canvasbus.consume.policy.BatchFailure")
    ((framed, _),) = eyes.entries("painting.framed")
    assert framed.traceparent == said(span)


async def test_a_run_that_takes_too_long(memory: Any, virtual: Any, namespace: str, spans: Spans) -> None:
    """It is cut short, and its span ends then."""
    worker, eyes = Worker("framers", middleware=[trace(spans.provider)]), Eyes(memory, namespace)

    @worker.on(PaintingMade, timeout=5, retry=ONCE)
    async def frame(event: PaintingMade) -> None:
        await trio.sleep_forever()

    async with running(memory, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade())
        await until(lambda: eyes.dead("framers"), 30)
    status, text, kind = ended(spans.one("process painting.made"))
    assert (status, kind) == (StatusCode.ERROR, "trio.Cancelled") and text and "timeout" in text


async def test_the_chain_goes_on(any_url: str, namespace: str, eyes: Eyes, spans: Spans) -> None:
    """From a request over a Producer, a worker, a timer and another worker: each span is linked to the one before."""
    first = Worker("framers", middleware=[trace(spans.provider)])
    second = Worker("sculptors", middleware=[trace(spans.provider)])

    @first.on(PaintingMade)
    async def frame(event: PaintingMade) -> Later:
        return Later(PaintingFramed(), after=0.01)

    @second.on(PaintingFramed)
    def sculpt(event: PaintingFramed) -> SculptureMade:
        return SculptureMade()

    async with running(any_url, first, second, namespace=namespace):
        with Producer(any_url, namespace=namespace, tracing=spans.provider) as producer:
            with spans.tracer.start_as_current_span("request"):
                producer.publish(PaintingMade())
        await until(lambda: eyes.count("sculpture.made") == 1)
        await until(lambda: "process painting.framed" in spans.names)
    published, framing, sculpting = map(
        spans.one, ("publish painting.made", "process painting.made", "process painting.framed")
    )
    assert parent(published) == said(spans.one("request"))
    assert linked(framing) == [said(published)] and linked(sculpting) == [said(framing)]
    ((sculpture, _),) = eyes.entries("sculpture.made")
    assert sculpture.traceparent == said(sculpting)


# --- what must not matter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_junk_from_strangers_is_handled(
    any_url: str, namespace: str, eyes: Eyes, spans: Spans, kind: str, join: bool
) -> None:
    """A torn traceparent is linked to nothing, and the event is handled like any other."""
    worker = framer(kind, spans)
    worker.middleware[:] = [trace(spans.provider, join=join)]
    for number, junk in enumerate(JUNK):
        eyes.put(Codec("stranger").encode(PaintingMade(number=number), traceparent=junk).data)
    async with running(any_url, worker, namespace=namespace):
        await quiet(eyes)
    assert {event.number for event in eyes.events("painting.framed")} == {0, 1, 2}
    assert eyes.dead("framers") == []
    assert {(span.parent, span.links) for span in spans.named("process painting.made")} == {(None, ())}


@pytest.mark.parametrize("join", [False, True])
async def test_without_an_sdk_the_trace_goes_through(any_url: str, namespace: str, eyes: Eyes, join: bool) -> None:
    """The API alone makes no spans: what follows from an event has the context that the event came with."""
    nothing = otel.NoOpTracerProvider()
    worker, buses = Worker("framers", middleware=[trace(nothing, join=join)]), []

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> PaintingFramed:
        await buses[0].publish(SculptureMade())
        return PaintingFramed()

    async with running(any_url, worker, namespace=namespace, tracing=nothing) as bus:
        buses.append(bus)
        with traceparent(STRANGER):
            await bus.publish(PaintingMade())
        await quiet(eyes)
    for event_type in ("painting.made", "painting.framed", "sculpture.made"):
        ((envelope, _),) = eyes.entries(event_type)
        assert envelope.traceparent == STRANGER


async def test_what_is_not_sampled_says_so(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Nothing is exported, and the flags tell those who come later."""
    spans = Spans(sampler=ALWAYS_OFF)
    async with running(any_url, framer("async", spans), namespace=namespace, tracing=spans.provider) as bus:
        await bus.publish(PaintingMade())
        await quiet(eyes)
    assert spans.names == set()
    for event_type in ("painting.made", "painting.framed"):
        ((envelope, _),) = eyes.entries(event_type)
        assert envelope.traceparent is not None and int(envelope.traceparent[-2:], 16) & 1 == 0


# --- installed or not --------------------------------------------------------------------------------------------------


def program(body: str) -> str:
    """What a program of its own prints."""
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


MISSING = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
from canvasbus import Event, Producer, event, traceparent
from canvasbus.bus import EventBus
from canvasbus.errors import ConfigError
from canvasbus.worker import Worker, trace
for make in (lambda: Producer("memory://x", tracing=True), lambda: EventBus("memory://", tracing=True), trace):
    try:
        make()
    except ConfigError as error:
        print(error)
@event("tested")
class Tested(Event):
    pass
with Producer("memory://x") as bus, traceparent(None):
    bus.publish(Tested())
    assert bus.flush(5)
assert not [name for name in sys.modules if name.startswith("opentelemetry.")]
"""


def test_where_it_is_missing_switching_it_on_says_what_to_install() -> None:
    """One line; without it everything else works, and nothing of it is loaded."""
    said = program(MISSING).splitlines()
    wanted = "tracing needs the extra 'otel' (opentelemetry is missing): pip install 'canvasbus[otel]'"
    assert said == [wanted] * 3


PROCESS_WIDE = """
import trio
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from canvasbus import Event, Producer, event
from canvasbus.bus import EventBus
from canvasbus.worker import Worker, trace

@event("tested")
class Tested(Event):
    pass

worker = Worker("testers", middleware=[trace()])
done = trio.Event()

@worker.on(Tested)
async def on_test(event):
    done.set()

async def main():
    async with EventBus("memory://x", tracing=True) as bus:
        bus.add(worker)
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        otel.set_tracer_provider(provider)  # later than everything was made
        await bus.publish(Tested())
        await done.wait()
    print(*sorted(span.name for span in exporter.get_finished_spans()), sep=", ")

trio.run(main)
"""


def test_the_provider_of_the_process_is_used() -> None:
    """Where none is given, whenever it is set."""
    assert program(PROCESS_WIDE).splitlines()[-1] == "process tested, publish tested"
