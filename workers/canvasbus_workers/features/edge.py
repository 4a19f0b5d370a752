"""What the features worker touches: settings → sinks. What makes no sense is a ConfigError of one line, before it has begun."""

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from canvasbus.errors import ConfigError
from canvasbus.store import TrioStore, place
from canvasbus_workers.features.offline import OfflineLog
from canvasbus_workers.features.settings import FeastSettings, RedisSettings, Sink, SqliteSettings, place_of, secrets
from canvasbus_workers.features.sinks import FeatureSink
from canvasbus_workers.features.sinks.redis import RedisSink
from canvasbus_workers.features.sinks.sqlite import SqliteSink


@asynccontextmanager
async def opened(settings: Mapping[str, Sink]) -> AsyncIterator[Sequence[FeatureSink]]:
    """All sinks, until the block ends. Nothing is connected yet: a server that is away is no wrong setting."""
    async with AsyncExitStack() as stack:
        sinks = []
        for name, one in settings.items():
            sink = _open(name, one)
            stack.push_async_callback(sink.aclose)
            sinks.append(sink)
        yield sinks


def _open(name: str, one: Sink) -> FeatureSink:
    where, known = place_of(name), secrets(name, one)
    if isinstance(one, RedisSettings):
        try:
            store = TrioStore(known.url.reveal() if known.url else None, timeout=one.timeout_seconds)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return RedisSink(name, one, store, one.namespace or place().namespace)
    if isinstance(one, SqliteSettings):
        try:
            return SqliteSink(name, OfflineLog(one.path, create=True))
        except sqlite3.Error as error:
            raise ConfigError(f"{where}: {one.path} cannot be opened: {error}") from None
    assert isinstance(one, FeastSettings)
    from canvasbus_workers.features.sinks.feast import FeastSink

    return FeastSink(name, one, known.authorization)
