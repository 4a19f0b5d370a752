"""Logging of the processes. Producers do not log; they return, raise or count."""

from typing import Any


def get_logger(name: str) -> Any:
    """A structlog logger, made when it is first used, so that importing stays cheap."""
    return _Lazy(name)


class _Lazy:
    __slots__ = ("_logger", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger: Any = None

    def __getattr__(self, method: str) -> Any:
        if self._logger is None:
            import structlog

            self._logger = structlog.get_logger(self._name).bind(logger=self._name)
        return getattr(self._logger, method)


def configure(*, json: bool | None = None, level: str = "info") -> None:
    """Set structlog up for a program: readable lines on a terminal, one JSON object a line elsewhere (or by `json`)."""
    import logging
    import sys

    import msgspec
    import structlog

    if json is None:
        json = not sys.stderr.isatty()
    renderer: Any
    if json:
        renderer = structlog.processors.JSONRenderer(
            serializer=lambda value, **_: msgspec.json.encode(value, enc_hook=str).decode()
        )
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
