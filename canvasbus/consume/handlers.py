"""What a worker listens to, as its author declares it. No I/O: a Worker can be imported, listed and checked anywhere."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from canvasbus.checks import check_function, check_number
from canvasbus.consume.breaker import Breaker
from canvasbus.consume.instances import PER_INSTANCE, PerInstance
from canvasbus.consume.lifespan import opener
from canvasbus.consume.middleware import Middleware, check_middleware
from canvasbus.consume.policy import Backoff, RetryRules
from canvasbus.contract.event import Event
from canvasbus.contract.globs import globs_overlap, listens
from canvasbus.contract.registry import registry
from canvasbus.errors import ContractError
from canvasbus.wire.keys import check_name
from canvasbus.wire.marks import window_ms

Start = datetime | str
"""Where a new group begins: "earliest" (everything there is), "latest" (only what comes), an aware datetime, or after an
entry id ("1700000000000-0")."""

Retrying = Backoff | Mapping[type[BaseException], Backoff]
"""One backoff for every failure, or one for each class of exceptions: {ConnectionError: Backoff(attempts=20), ValueError:
NEVER}. The most specific class decides; what none names has the default Backoff."""

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=Middleware)
_GLOB = re.compile(r"[a-z0-9_.*]+")
_ENTRY_ID = re.compile(r"\d+(-\d+)?")


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """A batch handler gets up to `max_size` events, or what came within `max_wait` seconds of the first."""

    max_size: int
    max_wait: float


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """One function and the types it serves."""

    name: str
    """Qualified name; part of the ids of derived events, so renaming it changes them."""
    function: Callable[..., Any]
    classes: tuple[type[Event], ...]
    """Event classes that it names."""
    types: tuple[str, ...]
    """Exact type names, those of the classes among them."""
    globs: tuple[str, ...]
    """Patterns in which * stands for any characters."""
    concurrency: int
    """How many deliveries it runs at a time in one process."""
    timeout: float
    """Seconds after which a run is cancelled and counts as failed."""
    retry: Backoff | RetryRules
    breaker: Breaker | None
    start: Start
    dedupe: int
    """Milliseconds for which an event that was handled is known again under another entry; 0: it is not."""
    batch: BatchOptions | None
    is_async: bool
    wants_context: bool
    """It takes a second argument."""

    def matches(self, event_type: str) -> bool:
        """True when the handler serves the type by name or by pattern."""
        return listens(event_type, self.types, self.globs)


@dataclass(eq=False)
class Worker:
    """A named set of handlers. Its name is its consumer group: every group sees every event, and within a group each
    event is handled by one process."""

    name: str
    handlers: list[Handler] = field(default_factory=list)
    group: PerInstance | None = field(default=None, kw_only=True)
    """PER_INSTANCE: every process has a group of its own and sees all events; it starts with the latest and is removed
    when the process leaves."""
    middleware: list[Middleware] = field(default_factory=list)
    """What surrounds each run of its handlers, the outermost first."""
    open: Callable[[], Any] | None = field(default=None, init=False, repr=False)
    """Makes the context manager around its running life; None: it has none. Set by `lifespan`."""

    def __post_init__(self) -> None:
        try:
            check_name("worker name", self.name)
        except Exception as error:
            raise ContractError(str(error)) from None
        if self.group not in (None, PER_INSTANCE):
            raise ContractError(
                f"worker {self.name!r}: its name is its group; group={self.group!r} is not possible, group=PER_INSTANCE is"
            )
        for middleware in self.middleware:
            check_middleware(self.name, middleware)

    def on(
        self,
        *what: type[Event] | str,
        concurrency: int = 16,
        timeout: float = 60.0,
        retry: Retrying = Backoff(),  # noqa: B008  frozen, so sharing the default is safe
        breaker: Breaker | None = None,
        dedupe: float | None = None,
        start: Start | None = None,
    ) -> Callable[[F], F]:
        """Register a handler for event classes, type names or globs ("drift.*").

        The handler is `async def f(event)` or `f(event, ctx)`; a plain function runs in a worker thread. What it
        returns (an event, an iterable of events, or None) is committed together with the acknowledgement. With a
        `breaker` it rests while what it calls outside is down.

        `dedupe`: seconds for which an event that was handled is known by its id. Published again within that time, by
        whomever, it has no effect again: nothing that the handler returns or changes is committed, and in all but a few
        cases it is not even called. It costs a small key on the server for each event, for that long.

        `start` says where a group begins that does not exist yet: "earliest" (the default; for PER_INSTANCE "latest"),
        "latest", an aware datetime or an entry id.
        """
        return self._register(what, concurrency, timeout, retry, breaker, dedupe, start, None)

    def on_batch(
        self,
        *what: type[Event] | str,
        max_size: int = 500,
        max_wait: float = 0.05,
        timeout: float = 60.0,
        retry: Retrying = Backoff(),  # noqa: B008
        breaker: Breaker | None = None,
        dedupe: float | None = None,
        start: Start | None = None,
    ) -> Callable[[F], F]:
        """Register a handler of lists: `f(events)` or `f(events, ctxs)`, one batch at a time.

        It returns None or an iterable of (position, event): the event derives from the one at that position. With
        `raise BatchFailure({position: error})` the rest is settled; any other exception runs the events one by one.
        """
        check_number(f"worker {self.name!r}: max_size", max_size, whole=True, least=1, error=ContractError)
        check_number(f"worker {self.name!r}: max_wait", max_wait, least=0, error=ContractError)
        return self._register(what, 1, timeout, retry, breaker, dedupe, start, BatchOptions(max_size, max_wait))

    def _register(
        self,
        what: tuple[type[Event] | str, ...],
        concurrency: int,
        timeout: float,
        retry: Retrying,
        breaker: Breaker | None,
        dedupe: float | None,
        start: Start | None,
        batch: BatchOptions | None,
    ) -> Callable[[F], F]:
        if not what:
            raise ContractError(f"{self.name}: name at least one event class, type or glob")
        check_number(f"worker {self.name!r}: concurrency", concurrency, whole=True, least=1, error=ContractError)
        check_number(f"worker {self.name!r}: timeout", timeout, error=ContractError)
        if timeout <= 0:
            raise ContractError(f"worker {self.name!r}: timeout={timeout!r}: use seconds above 0")
        if not isinstance(breaker, Breaker | None):
            raise ContractError(f"{self.name}: breaker={breaker!r} is no Breaker")
        begin: Start = start or ("latest" if self.group is PER_INSTANCE else "earliest")
        _check_start(self.name, begin)
        rules = _checked(self.name, retry)
        remembered = 0 if dedupe is None else window_ms(dedupe, f"worker {self.name!r}: dedupe", ContractError)
        types, globs = _split(self.name, what)

        def register(function: F) -> F:
            check_function(f"worker {self.name!r}: handler", function)
            name = getattr(function, "__qualname__", repr(function))
            target: Any = function.func if isinstance(function, functools.partial) else function
            if inspect.isasyncgenfunction(target) or inspect.isasyncgenfunction(getattr(target, "__call__", None)):  # noqa: B004
                raise ContractError(
                    f"worker {self.name!r}: {name} is an async generator; return a list of events instead of yielding "
                    "them"
                )
            handler = Handler(
                name=name,
                function=function,
                classes=tuple(item for item in what if isinstance(item, type)),
                types=types,
                globs=globs,
                concurrency=concurrency,
                timeout=timeout,
                retry=rules,
                breaker=breaker,
                start=begin,
                dedupe=remembered,
                batch=batch,
                is_async=inspect.iscoroutinefunction(target)
                or inspect.iscoroutinefunction(getattr(target, "__call__", None)),  # noqa: B004  async __call__
                wants_context=_parameters(self.name, name, function) == 2,
            )
            for other in self.handlers:
                clash = _clash(handler, other)
                if clash:
                    raise ContractError(
                        f"worker {self.name!r}: {other.name} and {name} would both get {clash}. Within a worker one "
                        "handler serves a type; to do two things with an event, use two workers"
                    )
            check_newest(self.name, handler)
            self.handlers.append(handler)
            return function

        return register

    def lifespan(self, function: F) -> F:
        """Open something before the worker joins its group, close it once it has left: a function without arguments
        that yields once, or that returns a context manager. Handlers get what it yields as `ctx.resources`.

        It is entered once per process, not again when the worker loses its group and joins anew. An error on entering
        stops the program. What follows the yield may await, within the grace time. A plain function runs in threads.
        """
        if self.open is not None:
            raise ContractError(f"worker {self.name!r} has a lifespan already: open everything in one")
        self.open = opener(self.name, function)
        return function

    def use(self, middleware: M) -> M:
        """Surround each run of this worker's handlers, also of those registered before, with a function that takes a
        handler and returns one (see `canvasbus.consume.middleware`). The first one used is the outermost."""
        check_middleware(self.name, middleware)
        self.middleware.append(middleware)
        return middleware

    def handler_for(self, event_type: str) -> Handler | None:
        """The handler of a type: by its exact name, else by glob; None when nobody listens."""
        for handler in self.handlers:
            if event_type in handler.types:
                return handler
        for handler in self.handlers:
            if handler.matches(event_type):
                return handler
        return None

    @property
    def has_globs(self) -> bool:
        return any(handler.globs for handler in self.handlers)

    def __repr__(self) -> str:
        listens = ", ".join(t for h in self.handlers for t in (*h.types, *h.globs))
        return f"<Worker {self.name}: {listens or 'no handlers'}>"


def check_newest(worker: str, handler: Handler) -> None:
    """Handlers get the newest version of a type: raises ContractError when one names the class of an older one. Asked
    again when the worker starts, since modules that declare newer versions may be imported later."""
    for cls in handler.classes:
        declared = registry.of(cls)
        newest = registry.latest(declared.name)
        if newest is not None and newest.version > declared.version:
            raise ContractError(
                f"worker {worker!r}: {handler.name} names {cls.__qualname__}, v{declared.version} of {declared.name}; "
                f"handlers get the newest version, v{newest.version}: name {newest.cls.__module__}."
                f"{newest.cls.__qualname__}"
            )


def _clash(a: Handler, b: Handler) -> str | None:
    same = set(a.types) & set(b.types)
    if same:
        return min(same)
    for mine in a.globs:
        for other in b.globs:
            if globs_overlap(mine, other):
                return f"types that match both {mine!r} and {other!r}"
    return None


def _split(worker: str, what: tuple[type[Event] | str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    types: list[str] = []
    globs: list[str] = []
    for item in what:
        if isinstance(item, type) and issubclass(item, Event):
            types.append(registry.of(item).name)
        elif isinstance(item, str) and _GLOB.fullmatch(item):
            (globs if "*" in item else types).append(item)
        else:
            raise ContractError(f"worker {worker!r}: {item!r} is neither an event class, nor a type, nor a glob")
    return tuple(dict.fromkeys(types)), tuple(dict.fromkeys(globs))


def _parameters(worker: str, name: str, function: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    surplus = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not positional or len(required) > 2 or surplus:
        raise ContractError(f"worker {worker!r}: {name} must take (event) or (event, ctx)")
    if positional[0].name in ("self", "cls") and len(required) == 2:
        raise ContractError(
            f"worker {worker!r}: {name} is a method of a class, and nobody has its object: register the bound one, "
            f"worker.on(...)(object.{name}), or a function"
        )
    if len(required) == 2:
        return 2
    return 2 if len(positional) >= 2 and positional[1].name in ("ctx", "context", "ctxs") else 1


def _checked(worker: str, retry: Retrying) -> Backoff | RetryRules:
    if isinstance(retry, Backoff):
        return retry
    if not isinstance(retry, Mapping):
        raise ContractError(
            f"worker {worker!r}: retry={retry!r} is neither a Backoff nor a mapping of exception classes"
        )
    try:
        return RetryRules(retry)
    except ContractError as error:
        raise ContractError(f"worker {worker!r}: {error}") from None


def _check_start(worker: str, start: Start) -> None:
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ContractError(f"worker {worker!r}: start={start!r} has no time zone")
    elif start not in ("earliest", "latest") and not (isinstance(start, str) and _ENTRY_ID.fullmatch(start)):
        raise ContractError(f"worker {worker!r}: start={start!r} is not earliest, latest, a datetime or an entry id")


def start_id(start: Start) -> str:
    """The id after which a new group reads."""
    if start == "earliest":
        return "0"
    if start == "latest":
        return "$"
    if isinstance(start, datetime):
        return f"{max(0, int(start.timestamp() * 1000) - 1)}-{2**64 - 1}"
    return start
