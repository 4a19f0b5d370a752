"""The online store: a batch of rows is one packet, or two when the server does not know the script yet."""

from collections.abc import Sequence

from canvasbus.errors import TransportError, Unavailable
from canvasbus.store import Argument, Reply, ReplyError, TrioStore, check
from canvasbus_workers.features.online import write_command
from canvasbus_workers.features.rows import FeatureRow
from canvasbus_workers.features.settings import RedisSettings
from canvasbus_workers.features.sinks import Away, RowsRefused

PACKET_BYTES = 4 * 1024 * 1024
"""About so much is sent at once: 500 rows may have a megabyte each."""


class RedisSink:
    """Writes to the server of `store`."""

    def __init__(self, name: str, settings: RedisSettings, store: TrioStore, namespace: str) -> None:
        self.name = name
        self._settings = settings
        self._store = store
        self._namespace = namespace

    async def write(self, rows: Sequence[FeatureRow]) -> None:
        """See FeatureSink."""
        refused: dict[int, str] = {}
        begin = 0
        while begin < len(rows):
            size, end = 0, begin
            while end < len(rows) and (end == begin or size < PACKET_BYTES):
                size += sum(len(vector.data) for vector in rows[end].vectors.values()) + 50 * len(rows[end].values)
                end += 1
            for at, reply in enumerate(await self._written(rows[begin:end]), begin):
                if isinstance(reply, ReplyError):
                    refused[at] = self._why(reply)
            begin = end
        if refused:
            raise RowsRefused(refused)

    async def _written(self, rows: Sequence[FeatureRow]) -> list[Reply]:
        replies = await self._ask([self._command(row) for row in rows])
        unknown = [at for at, reply in enumerate(replies) if isinstance(reply, ReplyError) and _is_unknown(reply)]
        if unknown:  # a new server, or SCRIPT FLUSH
            again = [self._command(rows[at], by_source=at == unknown[0]) for at in unknown]
            for at, reply in zip(unknown, await self._ask(again), strict=True):
                replies[at] = reply
        return replies

    async def _ask(self, calls: list[tuple[Argument, ...]]) -> list[Reply]:
        try:
            return await self._store.ask(*calls)
        except TransportError as error:
            raise Away(f"{self.name}: {error}") from error

    def _command(self, row: FeatureRow, *, by_source: bool = False) -> tuple[Argument, ...]:
        settings = self._settings
        return write_command(self._namespace, row, settings.ttl_seconds, settings.history, by_source=by_source)

    def _why(self, reply: ReplyError) -> str:
        """Why this row was not taken. Raises Away when it is not the row's fault."""
        text = str(reply)
        if "WRONGTYPE" in text:
            return f"{self.name}: its key holds something that is not of the feature store ({text})"
        try:
            check(reply, f"{self.name}: writing a row")
        except Unavailable as error:
            raise Away(str(error)) from error
        except TransportError as error:
            raise Away(f"{error}; its keys begin with {self._namespace}:{{fv:") from error
        raise AssertionError("an error reply is an error")

    async def aclose(self) -> None:
        """See FeatureSink."""
        await self._store.aclose()


def _is_unknown(reply: ReplyError) -> bool:
    return str(reply).startswith("NOSCRIPT")
