"""Middleware: what surrounds every run of a worker's handlers. One file each.

    def timed(handle: Handle) -> Handle:
        async def run(event, ctx):
            started = trio.current_time()
            try:
                return await handle(event, ctx)
            finally:
                ctx.log.info("ran", seconds=trio.current_time() - started)

        return run

    worker.use(timed)

A middleware takes a handler and returns one. Whatever the author's handler is, async or plain, with a context or
without, a middleware sees the same: `await handle(event, ctx)`; for a batch handler `event` and `ctx` are lists of the
same length. It may look, change what goes in or comes out, answer by itself, or raise: what it raises is the handler's
failure, and `RetryLater` and `Reject` mean what they mean in a handler. What it does counts against the handler's
timeout. The first middleware is the outermost. Without any, a run costs exactly what it cost before there were some.

A chain is built once per handler whenever the worker joins, so what must outlive that (a bucket of tokens) belongs to
the function that makes the middleware, not to the one that is called with the handler.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from canvasbus.consume.blame import blame
from canvasbus.errors import CanvasbusError, ContractError

Handle = Callable[[Any, Any], Awaitable[Any]]
"""A handler as middleware sees it: (event, context), or for batches (events, contexts), to what it returns."""

Middleware = Callable[[Handle], Handle]


def check_middleware(worker: str, middleware: object) -> None:
    """Raise ContractError for what cannot be one."""
    name = getattr(middleware, "__qualname__", repr(middleware))
    if not callable(middleware):
        raise ContractError(f"worker {worker!r}: the middleware {name} is no function")
    if inspect.iscoroutinefunction(middleware):
        raise ContractError(
            f"worker {worker!r}: the middleware {name} is async; it must be a plain function that takes a handler and "
            "returns an async one"
        )
    if getattr(middleware, "__annotations__", {}).get("return") in (Middleware, "Middleware"):
        raise ContractError(f"worker {worker!r}: the middleware {name} must be called, it makes one: {name}(...)")


def surround(handle: Handle, middleware: Sequence[Middleware], worker: str) -> Handle:
    """The handler inside of all the middleware, the first outermost. Raises ContractError, and CanvasbusError for what
    a middleware raises when it is given the handler: that may be another the next time, as with a lifespan."""
    for wrap in reversed(middleware):
        name = getattr(wrap, "__qualname__", repr(wrap))
        try:
            handle = wrap(handle)
        except CanvasbusError:
            raise
        except Exception as error:
            raise CanvasbusError(
                f"worker {worker!r}: the middleware {name} failed when it was given a handler: {blame(error, __file__)}"
            ) from error
        if not callable(handle):
            raise ContractError(f"worker {worker!r}: the middleware {name} must return a handler, not {handle!r}")
    return handle
