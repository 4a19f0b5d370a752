"""Logging of the processes. Producers do not log; they return, raise or count."""

from contextlib import suppress
from typing import Any, TextIO, cast


def get_logger(name: str) -> Any:
    """A structlog logger, made when it is used, so that importing stays cheap.

    A line that cannot be written (a closed terminal, a full disk) is dropped: the bus goes on.
    """
    return _Lazy(name)


class _Lazy:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        import structlog

        # Made anew for each line: a kept one would hold on to the stdout and the configuration of its first day.
        write = getattr(structlog.get_logger().bind(logger=self._name), method)

        def say(*words: Any, **facts: Any) -> None:
            with suppress(OSError, ValueError):
                write(*words, **facts)

        return say


_CANNOT = (OSError, ValueError, AttributeError)
"""A full disk or a terminal that is gone; a stream that was closed; sys.stderr where the program has none: None."""


class _Forgiving:
    """Standard error, on which a line that cannot be written is dropped: a handler that logs one has not failed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(*_CANNOT):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(*_CANNOT):
            self._stream.flush()

    def isatty(self) -> bool:
        with suppress(*_CANNOT):
            return self._stream.isatty()
        return False


def configure(*, json: bool | None = None, level: str = "info") -> None:
    """Set structlog up for a program: readable lines on a terminal, one JSON object a line elsewhere (or by `json`)."""
    import logging
    import sys

    import msgspec
    import structlog

    stderr = _Forgiving(sys.stderr)
    if json is None:
        json = not stderr.isatty()
    renderer: Any
    if json:
        renderer = structlog.processors.JSONRenderer(
            serializer=lambda value, **_: msgspec.json.encode(value, enc_hook=str).decode()
        )
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # A line is one write: processes share the stream.
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", stderr)),
        cache_logger_on_first_use=True,
    )
