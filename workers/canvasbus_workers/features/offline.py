"""The offline log: every row that came, in one SQLite file, for training sets that know nothing of their future.

    CREATE TABLE rows (event_id TEXT PRIMARY KEY, view, entity, event_time (microseconds), features (JSON), vectors)

WAL, so that readers do not wait for the writer; a commit is on the disk when `add` returns. SQLite wants a local disk:
over NFS neither its locks nor its WAL hold.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from canvasbus.events import FloatArray
from canvasbus_workers.features.rows import FeatureRow, micros, moment_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
  event_id TEXT PRIMARY KEY,
  view TEXT NOT NULL,
  entity TEXT NOT NULL,
  event_time INTEGER NOT NULL,  -- microseconds since 1970, UTC
  features TEXT NOT NULL,       -- JSON: name -> number
  vectors BLOB                  -- msgpack: name -> {shape, data}, data as packed float32; NULL: none
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS moments ON rows (view, entity, event_time, event_id);
"""
_AS_OF = """
SELECT event_id, event_time, features, vectors FROM rows
WHERE view = ? AND entity = ? AND event_time <= ? AND event_time >= ?
ORDER BY event_time DESC, event_id DESC LIMIT 1
"""
_BEGINNING = -(2**63)
_BUSY_SECONDS = 30.0

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(dict[str, FloatArray]).decode


class OfflineLog:
    """The log in the file `path`. One thread at a time may use it, from any thread; any number of processes may have it open.

    `create`: make the file if there is none, as the worker does; else FileNotFoundError: a log that is only read and is not
    there is a slip in its path, and an empty one would have no row for anybody. Raises sqlite3.Error when the file cannot be
    used.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self._path = Path(path)
        if not create and not self._path.is_file():
            raise FileNotFoundError(
                f"there is no offline log {self._path.absolute()}: mend the path, or wait until the features worker has "
                "made it (create=True makes an empty one)"
            )
        self._db = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except BaseException:
            self._db.close()
            raise

    def add(self, rows: Iterable[FeatureRow]) -> int:
        """Add rows in one transaction; those whose event id is there already change nothing. Returns how many are new."""
        values = [
            (
                row.event_id,
                row.view,
                row.entity,
                micros(row.event_time),
                json.dumps(dict(row.values)),
                _encode(dict(row.vectors)) if row.vectors else None,
            )
            for row in rows
        ]
        before = self._db.total_changes
        self._db.execute("BEGIN IMMEDIATE")  # waits for another writer now: a lock that is upgraded later would not
        try:
            self._db.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?, ?)", values)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return self._db.total_changes - before

    def as_of(
        self,
        view: str,
        entities: Sequence[str],
        time: datetime | Sequence[datetime],
        *,
        max_age: float | None = None,
    ) -> list[FeatureRow | None]:
        """The rows that counted for each entity at `time`, or at its own of several times; None where there was none yet.

        A row counts from its event time on, that moment included: a training set that joins its labels at the moment of
        each prediction sees no later feature. `max_age`: seconds; rows that were older then count as none.
        Raises ValueError for a time without its zone, and when there are not as many times as entities.
        """
        if isinstance(entities, str):
            raise TypeError(f"entities: a list of names is wanted, not {entities!r}")
        times = [time] * len(entities) if isinstance(time, datetime) else list(time)
        for moment in times:
            if moment.tzinfo is None:
                raise ValueError(
                    f"time: {moment.isoformat()} has no zone: use datetime.now(UTC), or replace(tzinfo=UTC)"
                )
        if len(times) != len(entities):
            raise ValueError(f"{len(times)} times for {len(entities)} entities: one for all, or one for each")
        found: list[FeatureRow | None] = []
        for entity, moment in zip(entities, times, strict=True):
            oldest = _BEGINNING if max_age is None else micros(moment - timedelta(seconds=max_age))
            row = self._db.execute(_AS_OF, (view, entity, micros(moment), oldest)).fetchone()
            found.append(None if row is None else _row(view, entity, *row))
        return found

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM rows").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OfflineLog {self._path}>"


def _row(view: str, entity: str, event_id: str, time: int, features: str, vectors: bytes | None) -> FeatureRow:
    return FeatureRow(
        view=view,
        entity=entity,
        event_time=moment_of(time),
        event_id=event_id,
        values=json.loads(features),
        vectors={} if vectors is None else _decode(vectors),
    )
