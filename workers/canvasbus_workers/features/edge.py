"""What the features worker touches: settings → sinks. What makes no sense is a ConfigError of one line, before it has begun."""

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from canvasbus.errors import ConfigError
from canvasbus.store import TrioStore, place
from canvasbus_workers.features.offline import OfflineLog
from canvasbus_workers.features.settings import FeastSettings, RedisSettings, Sink, SqliteSettings
from canvasbus_workers.features.sinks import FeatureSink
from canvasbus_workers.features.sinks.redis import RedisSink
from canvasbus_workers.features.sinks.sqlite import SqliteSink
from canvasbus_workers.outside.secret import fits_a_header, from_file


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
    where = f"[workers.features.sinks.{name}]"
    if isinstance(one, RedisSettings):
        if one.url and one.url_file:
            raise ConfigError(f"{where}: url and url_file are both set: keep one")
        url = from_file(f"{where}: url_file", one.url_file).reveal() if one.url_file else one.url
        try:
            store = TrioStore(url, timeout=one.timeout_seconds)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return RedisSink(name, one, store, one.namespace or place().namespace)
    if isinstance(one, SqliteSettings):
        try:
            return SqliteSink(name, OfflineLog(one.path))
        except sqlite3.Error as error:
            raise ConfigError(f"{where}: {one.path} cannot be opened: {error}") from None
    assert isinstance(one, FeastSettings)
    try:
        from canvasbus_workers.features.sinks.feast import FeastSink
    except ModuleNotFoundError as error:
        raise ConfigError(f"{where}: needs {error.name}: pip install 'canvasbus[features]'") from None
    key = from_file(f"{where}: authorization_file", one.authorization_file) if one.authorization_file else None
    if key is not None and not fits_a_header(key):
        raise ConfigError(f"{where}: the authorization does not fit into a header: one line of ASCII is wanted")
    return FeastSink(name, one, key)
