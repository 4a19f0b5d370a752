"""A worker's lifespan: what it opens once before it joins its group, and closes once it has left.

    @worker.lifespan
    async def database():
        async with open_pool(...) as pool:
            yield pool                      # in handlers: ctx.resources

Theory of operation. The lifespan is entered once per process life of the worker, around all its incarnations: a worker
that was taken for dead and joins again keeps its model in memory. It may hold nurseries and cancel scopes open over its
`yield`, so the scope that bounds its end is opened before it is entered: closing one of the two inside the other would
be an error of trio's. From the moment the worker has left, that scope has a deadline and is shielded, so that closing
may await, also when everything around is being cancelled, but never for longer than the grace time.

A lifespan that swallows what ended the worker, or that ends it by a scope of its own, must not leave a process behind
that lives and handles nothing: that is an error, too.
"""

import inspect
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import trio

from canvasbus.consume.blame import blame
from canvasbus.consume.invoke import for_above
from canvasbus.errors import ContractError, LifespanError
from canvasbus.log import get_logger

LEAST_SECONDS = 1.0
"""What closing gets when the handlers have used up the grace time."""

CANCEL_SECONDS = 1.0
"""What it may take to end once it is cancelled, before it is told that it does not."""

log = get_logger("canvasbus.worker")


def opener(worker: str, function: Callable[..., Any]) -> Callable[[], Any]:
    """A function that returns a context manager, out of what `@worker.lifespan` was put on. Raises ContractError."""
    name = getattr(function, "__qualname__", repr(function))
    hint = f"worker {worker!r}: the lifespan {name} must"
    if not callable(function):
        raise ContractError(f"{hint} be a function that yields once, or one that returns a context manager")
    if inspect.iscoroutinefunction(function):
        raise ContractError(f"{hint} yield once: what comes before is done on starting, what comes after on leaving")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a class written in C
        parameters = {}.values()
    if any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise ContractError(f"{hint} take no arguments")
    if inspect.isasyncgenfunction(function):
        return asynccontextmanager(function)
    return contextmanager(function) if inspect.isgeneratorfunction(function) else function


class Lifespan:
    """One passage through a worker's lifespan."""

    def __init__(self, worker: str, make: Callable[[], Any]) -> None:
        self._worker = worker
        self._make = make
        self._opening: trio.CancelScope | None = None
        self._over_by = math.inf
        """When what was cancelled should have ended, on trio's clock."""

    def interrupt(self) -> None:
        """The worker shall stop: cancel what is still being opened."""
        if self._opening is not None:
            self._opening.cancel()
            self._over_by = trio.current_time() + CANCEL_SECONDS

    async def tell_when_late(self) -> None:
        """Tell, once, that it cannot be ended: whoever waits for a worker to leave must know what it waits for."""
        while trio.current_time() < self._over_by:
            await trio.sleep(CANCEL_SECONDS)
        log.warning(
            "the lifespan goes on although it was cancelled, behind a shield or in a thread; the worker leaves when it ends, a "
            "program at a second signal",
            group=self._worker,
            now="opening" if self._opening is not None else "closing",
        )

    async def around(self, live: Callable[[Any], Awaitable[None]], left: Callable[[], float]) -> None:
        """Open, run `live` with what was opened, close. `left` is asked, when `live` is over, for the seconds that
        closing may take. Raises LifespanError when opening or closing fails, and whatever ended `live`."""
        ended: BaseException | None = None
        closing = trio.CancelScope()
        opening = self._opening = trio.CancelScope()
        try:
            with opening, closing:
                async with self._manager() as resources:
                    self._opening, self._over_by = None, math.inf
                    try:
                        if not opening.cancel_called:
                            await live(resources)
                    except BaseException as error:
                        ended = error
                        raise
                    finally:
                        closing.shield = True
                        closing.deadline = trio.current_time() + max(left(), LEAST_SECONDS)
                        self._over_by = closing.deadline + CANCEL_SECONDS
        except BaseException as error:
            if (ended is not None and _holds(error, ended)) or for_above(error) is not None:
                raise
            raise self._told(error, ended) from error
        finally:
            self._over_by = math.inf
        if closing.cancelled_caught:
            log.warning("the lifespan did not close within the grace time and was cancelled", group=self._worker)
        if ended is not None:  # and swallowed
            if _is_cancel(ended) and trio.current_effective_deadline() > -math.inf:
                raise LifespanError(f"worker {self._worker!r}: its lifespan ended it while it was running") from None
            raise ended

    def _manager(self) -> AbstractAsyncContextManager[Any]:
        manager = self._make()
        if hasattr(manager, "__aenter__"):
            return manager  # type: ignore[no-any-return]
        if hasattr(manager, "__enter__"):
            return _InThreads(manager)
        raise TypeError(f"it returned {type(manager).__qualname__}, which is no context manager")

    def _told(self, error: BaseException, ended: BaseException | None) -> LifespanError:
        when = "on leaving"
        if ended is not None and _is_cancel(ended):
            when = "while the worker was running"
        elif self._opening is not None:
            when = "on starting"
        return LifespanError(f"worker {self._worker!r}: its lifespan failed {when}: {blame(error, __file__)}")

    def __repr__(self) -> str:
        return f"<Lifespan of {self._worker}{', opening' if self._opening is not None else ''}>"


class _InThreads:
    """A plain context manager as an async one. Like plain handlers it runs in threads, which cannot be stopped: opening
    is waited for, or nobody would close what it opens; closing is abandoned when the grace time is over."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        return await trio.to_thread.run_sync(self._manager.__enter__)

    async def __aexit__(self, *error: object) -> Any:
        return await trio.to_thread.run_sync(self._manager.__exit__, *error, abandon_on_cancel=True)


def _holds(error: BaseException, inner: BaseException) -> bool:
    """True when `error` is `inner`, or a group around it."""
    if isinstance(error, BaseExceptionGroup) and error is not inner:
        return any(_holds(part, inner) for part in error.exceptions)
    return error is inner


def _is_cancel(error: BaseException) -> bool:
    """True for a Cancelled, and for the group of them that a nursery makes."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
