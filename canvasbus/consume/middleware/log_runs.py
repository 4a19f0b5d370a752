"""A log line for every run. The bus itself logs failures only: a line costs as much as handling ten events."""

from typing import Any

from canvasbus import clock
from canvasbus.consume.middleware import Handle, Middleware
from canvasbus.errors import ContractError
from canvasbus.log import get_logger

LEVELS = ("debug", "info", "warning", "error")

log = get_logger("canvasbus.handler")


def log_runs(level: str = "info") -> Middleware:
    """Log each run when it is over: which event, how long, and what came of it. Raises ContractError."""
    if level not in LEVELS:
        raise ContractError(f"log_runs({level!r}): the levels are {', '.join(LEVELS)}")
    write = getattr(log, level)

    def middleware(handle: Handle) -> Handle:
        async def run(event: Any, ctx: Any) -> Any:
            started = clock.monotonic()
            outcome = "cancelled"
            try:
                result = await handle(event, ctx)
                outcome = "returned"
                return result
            except Exception as error:
                outcome = f"raised {type(error).__name__}"
                raise
            finally:
                write("a handler ran", **_about(ctx), outcome=outcome, seconds=round(clock.monotonic() - started, 6))

        return run

    return middleware


def _about(ctx: Any) -> dict[str, Any]:
    if isinstance(ctx, list):
        first = ctx[0]
        return {"group": first.group, "handler": first.handler, "events": len(ctx)}
    return {
        "group": ctx.group,
        "handler": ctx.handler,
        "event_type": ctx.envelope.type,
        "event_id": str(ctx.envelope.id),
        "attempt": ctx.attempt,
    }
