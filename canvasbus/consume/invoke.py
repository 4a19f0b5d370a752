"""Calling handlers: async or plain, with or without a context, one event or a list, as one kind of coroutine function."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import trio

from canvasbus import signals
from canvasbus.consume.context import Context
from canvasbus.consume.middleware import Handle, Middleware, surround
from canvasbus.consume.policy import RetryLater
from canvasbus.log import get_logger

if TYPE_CHECKING:
    from canvasbus.consume.handlers import Handler

NO_THREAD_SECONDS = 1.0
"""After which a plain handler is tried again for which there was no thread."""
TELL_SECONDS = 60.0

log = get_logger("canvasbus.worker")

_ABOVE = (KeyboardInterrupt, GeneratorExit)


def for_above(error: BaseException) -> BaseException | None:
    """What of an exception is not the handler's failure but meant for somebody above: cancellation and Ctrl-C. Out of
    a group only that part is passed on, so that a handler which fails while it is cancelled does not end the worker.
    A Cancelled that nobody waits for (kept from a scope that has ended) would end the program: it is a failure. So is a
    KeyboardInterrupt in a program that Ctrl-C only tells to drain: it is the handler's own, and would end one worker after
    the other."""
    above: tuple[type[BaseException], ...] = (GeneratorExit,) if signals.taken() else _ABOVE
    kinds: tuple[type[BaseException], ...] = (
        (trio.Cancelled, *above) if trio.current_effective_deadline() == -math.inf else above
    )
    if isinstance(error, BaseExceptionGroup):
        try:
            return error.subgroup(kinds)
        except RecursionError:  # groups in groups in groups
            return None
    return error if isinstance(error, kinds) else None


def invoker(
    handler: "Handler", group: str, resources: Any = None, middleware: Sequence[Middleware] = ()
) -> Callable[[Any, Any], Any]:
    """A coroutine function (event, delivery) → result; for a batch handler (events, deliveries)."""
    batch = handler.batch is not None

    def context(delivery: Any) -> Any:
        return [Context(d, group, resources) for d in delivery] if batch else Context(delivery, group, resources)

    function = handler.function if handler.is_async else _in_threads(handler, group)
    if middleware:
        handle: Handle = function if handler.wants_context else lambda event, _ctx: function(event)
        surrounded = surround(handle, middleware, group)
        return lambda event, delivery: surrounded(event, context(delivery))
    if handler.wants_context:
        return lambda event, delivery: function(event, context(delivery))
    return lambda event, _delivery: function(event)


def _in_threads(handler: "Handler", group: str) -> Callable[..., Any]:
    """A plain handler as a coroutine function of the same arguments. Where the system gives no thread (a container's limit of
    processes, say) it has not begun, and no attempt is counted."""
    function = handler.function
    limiter = trio.CapacityLimiter(handler.concurrency + 1)
    tell_at = -math.inf

    def call(*args: Any) -> Any:
        try:
            result = function(*args)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(
                    f"{handler.name} is a plain function that returned a coroutine: make it `async def`, or await it"
                )
            return list(result) if isinstance(result, Iterator) else result  # the body of a generator runs here too
        except BaseException as error:
            if isinstance(error, _ABOVE) or (isinstance(error, BaseExceptionGroup) and error.subgroup(_ABOVE)):
                # A thread gets no Ctrl-C, and nobody closes it: this is the handler's own failure.
                raise RuntimeError(f"the handler raised {type(error).__name__}: {error}") from error
            raise

    async def in_thread(*args: Any) -> Any:
        nonlocal tell_at
        begun = False

        def begin() -> Any:
            nonlocal begun
            begun = True
            return call(*args)

        try:
            return await trio.to_thread.run_sync(begin, abandon_on_cancel=True, limiter=limiter)
        except (RuntimeError, MemoryError) as error:
            if begun:
                raise
            if trio.current_time() >= tell_at:
                tell_at = trio.current_time() + TELL_SECONDS
                log.error(
                    "no thread can be started; plain handlers wait", group=group, handler=handler.name, error=str(error)
                )
            raise RetryLater(NO_THREAD_SECONDS, f"no thread can be started: {error}") from error

    return in_thread
