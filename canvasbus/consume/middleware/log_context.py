"""What is logged while a handler runs says for which event, also by code that knows nothing of `ctx.log`."""

from typing import Any

import structlog

from canvasbus.consume.middleware import Handle


def log_context(handle: Handle) -> Handle:
    """Middleware: bind the event's ids, the group and the attempt in structlog's context variables for the time of a
    run, threads of plain handlers included. Programs of one's own need `structlog.contextvars.merge_contextvars` among
    their processors; canvasbus-worker has it."""

    async def run(event: Any, ctx: Any) -> Any:
        with structlog.contextvars.bound_contextvars(**_bound(event, ctx)):
            return await handle(event, ctx)

    return run


def _bound(event: Any, ctx: Any) -> dict[str, Any]:
    if isinstance(ctx, list):
        return {"group": ctx[0].group, "handler": ctx[0].handler, "events": len(ctx)}
    envelope = ctx.envelope
    trace = {"traceparent": envelope.traceparent} if envelope.traceparent else {}
    return {
        "group": ctx.group,
        "event_type": envelope.type,
        "event_id": str(envelope.id),
        "correlation_id": str(event.correlation_id),
        "attempt": ctx.attempt,
        **trace,
    }
