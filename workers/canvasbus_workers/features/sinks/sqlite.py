"""The offline log, written by a thread: the loop waits for no disk."""

import sqlite3
from collections.abc import Sequence

import trio

from canvasbus_workers.features.offline import OfflineLog
from canvasbus_workers.features.rows import FeatureRow
from canvasbus_workers.features.sinks import Away


class SqliteSink:
    """Adds rows to a log."""

    def __init__(self, name: str, log: OfflineLog) -> None:
        self.name = name
        self._log = log

    async def write(self, rows: Sequence[FeatureRow]) -> None:
        """See FeatureSink."""
        try:
            await trio.to_thread.run_sync(self._log.add, rows)
        except sqlite3.Error as error:
            raise Away(f"{self.name}: {self._log!r} cannot be written: {error}") from error

    async def aclose(self) -> None:
        """See FeatureSink."""
        self._log.close()
