"""A span for each run, by OpenTelemetry's conventions for messaging.

By those a run's span is linked to the span that published its event. It is a trace of its own by default: one event may have
many groups, run again hours later, or be one of 500 in a batch, and a span has one parent only. With `join=True` a run of a
single event is the child of that span besides, and its trace goes on.

Whatever span is current where the bus was opened is inherited by every task of it and stands for none of its runs, so it is
not the parent.
"""

from typing import TYPE_CHECKING, Any

import trio

from canvasbus.consume.context import Context
from canvasbus.consume.middleware import Handle, Middleware
from canvasbus.consume.policy import BatchFailure, RetryLater, word_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider


def trace(provider: "TracerProvider | None" = None, *, join: bool = False) -> Middleware:
    """Make a span of kind CONSUMER for each run, linked to those that published its events; a batch has one. It is the
    current span in the handler, threads of plain handlers included, and what follows from the run carries its context.

    `join`: the run of a single event continues the trace of the event instead of beginning one. `provider`: whose spans
    they are (default: the process's provider). Use it first, so that what other middleware does is inside the span. Raises
    ConfigError where the extra `otel` is missing.
    """
    from canvasbus.wire import otel

    tracer = otel.tracer(provider)

    def middleware(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            ctxs: list[Context] = ctx if isinstance(ctx, list) else [ctx]
            topics = {each.envelope.type for each in ctxs}
            topic = topics.pop() if len(topics) == 1 else ""
            about: dict[str, str | int] = {
                otel.SYSTEM: "redis",
                otel.OPERATION_NAME: "process",
                otel.OPERATION_TYPE: "process",
                otel.GROUP: ctxs[0].group,
                "canvasbus.handler": ctxs[0].handler,
            }
            if topic:
                about[otel.DESTINATION] = topic
            parent = None
            if ctx is ctxs:
                about[otel.BATCH_COUNT] = len(ctxs)
            else:
                parent = otel.remote(ctx.envelope.traceparent) if join else None
                about[otel.MESSAGE_ID] = str(ctx.envelope.id)
                about[otel.CONVERSATION_ID] = str(event.correlation_id)
                about["canvasbus.attempt"] = ctx.attempt
            span = tracer.start_span(
                f"process {topic}" if topic else "process",
                otel.NO_SPAN if parent is None else otel.child_of(parent),
                otel.trace.SpanKind.CONSUMER,
                about,
                otel.links(each.envelope.traceparent for each in ctxs),
            )
            try:
                with otel.current(span) as own:
                    if own is not None:
                        for each in ctxs:
                            each.traceparent = own
                    return await handle(event, ctx)
            except BaseException as error:
                tell(span, error, len(ctxs))
                raise
            finally:
                span.end()

        return run

    def tell(span: "Span", error: BaseException, events: int) -> None:
        word = word_of(error)
        if isinstance(word, RetryLater):  # it is no failure
            span.set_attribute("canvasbus.retry_after", getattr(word, "after", 0.0))
        elif isinstance(word, BatchFailure):
            otel.fail(span, word, f"{len(getattr(word, 'failures', ()))} of {events} events failed")
        elif isinstance(word, trio.Cancelled):
            otel.fail(span, word, "cut short, by its timeout or because the worker leaves")
        else:
            otel.fail(span, word)

    return middleware
