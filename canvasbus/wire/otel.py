"""Spans by OpenTelemetry's conventions for messaging (https://opentelemetry.io/docs/specs/semconv/messaging/).

Loaded when somebody switches tracing on, and never else: importing OpenTelemetry takes 30 ms. Only its API is needed. What
becomes of the spans is the business of whoever sets its SDK up; without an SDK none are made, and the trace that an event
came with goes on.

The conventions (1.44) are in development and know no Redis Streams: `messaging.system` is "redis", the destination an event
type, the operation what the bus calls it, "publish" (of type "send") and "process". What they leave open is decided in
`produce.spans` and `consume.middleware.trace`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from canvasbus.errors import ConfigError
from canvasbus.wire.traceparent import sound
from canvasbus.wire.traceparent import traceparent as in_force

try:
    from opentelemetry import trace as trace  # others have it from here, for the sake of the error below
    from opentelemetry.context import Context
except ImportError as error:
    raise ConfigError(
        f"tracing needs the extra 'otel' ({error.name} is missing): pip install 'canvasbus[otel]'"
    ) from error

NO_SPAN = Context()
"""Of what has no parent, whatever span is current."""

SCHEMA = "https://opentelemetry.io/schemas/1.44.0"

BATCH_COUNT = "messaging.batch.message_count"
CONVERSATION_ID = "messaging.message.conversation_id"
DESTINATION = "messaging.destination.name"
GROUP = "messaging.consumer.group.name"
MESSAGE_ID = "messaging.message.id"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
SYSTEM = "messaging.system"
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"


def tracer(provider: trace.TracerProvider | None) -> trace.Tracer:
    """What makes the bus's spans; None: by the provider of the process, also if that is set later. Raises ConfigError for
    what is no provider."""
    if provider is not None and not hasattr(provider, "get_tracer"):
        raise ConfigError(f"tracing: {provider!r} is no TracerProvider; without one the process's own is taken")
    return trace.get_tracer("canvasbus", tracer_provider=provider, schema_url=SCHEMA)


def remote(traceparent: str | None) -> trace.SpanContext | None:
    """The span that a traceparent names; None: it names none."""
    text = sound(traceparent)
    if text is None:
        return None
    _, trace_id, span_id, flags = text.split("-")
    return trace.SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16))
    )


def child_of(context: trace.SpanContext) -> Context:
    """Of what has this parent, whatever span is current."""
    return trace.set_span_in_context(trace.NonRecordingSpan(context), NO_SPAN)


def links(traceparents: Iterable[str | None]) -> list[trace.Link]:
    """A link to each span that they name, once."""
    contexts = map(remote, dict.fromkeys(traceparents))
    return [trace.Link(context) for context in contexts if context is not None]


def traceparent_of(span: trace.Span) -> str | None:
    """The traceparent that names a span; None: it is nowhere (there is no SDK)."""
    context = span.get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


@contextmanager
def current(span: trace.Span) -> Iterator[str | None]:
    """Make the span the current one, and its context what events carry that are published meanwhile. Yields that."""
    said = traceparent_of(span)
    with trace.use_span(span, record_exception=False, set_status_on_exception=False):
        if said is None:
            yield None
        else:
            with in_force(said):
                yield said


def fail(span: trace.Span, error: BaseException, why: str | None = None) -> None:
    """Say that what the span stands for has failed."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        span.set_attribute(ERROR_TYPE, name)
        span.set_status(trace.StatusCode.ERROR, why or f"{kind.__name__}: {error}")
        if isinstance(error, Exception):
            span.record_exception(error)
    except Exception:  # one without a text, or of which no traceback can be had: the failure is told by its outcome
        pass
