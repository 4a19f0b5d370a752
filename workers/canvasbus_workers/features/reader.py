"""For model servers: the rows of the online store. Plain functions, no trio, nothing but the base install.

online = FeatureReader("redis://localhost:6379")
(row,) = online.get("embedding-v2", ["artwork-7"], fields=["clip"], max_age=3600)
if row is not None:
    vector = np.asarray(row.vectors["clip"])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from canvasbus import clock
from canvasbus.errors import Unavailable
from canvasbus.store import Reply, ReplyError, Store, check
from canvasbus_workers.features.online import Floats, OnlineKeys, parsed, wanted_fields
from canvasbus_workers.features.rows import moment_of


@dataclass(frozen=True, slots=True)
class Features:
    """What the store knows of one entity."""

    entity: str
    event_time: datetime
    """The moment that it is true for."""
    event_id: str
    """Of the event that brought it, 32 hexadecimal digits."""
    values: Mapping[str, float]
    """Scalar features by name."""
    vectors: Mapping[str, Floats]
    """Vector features by name: float32, to be indexed, or given to `numpy.asarray` without a copy."""


class FeatureReader:
    """Reads the online store. Threads may share it; a forked child gets a connection of its own. `timeout`: seconds for
    an answer. Raises ConfigError for a URL that cannot work."""

    def __init__(self, url: str, namespace: str = "canvasbus", *, timeout: float = 5.0) -> None:
        self._store = Store(url, timeout=timeout)
        self._namespace = namespace
        self._timeout = timeout

    def get(
        self,
        view: str,
        entities: Sequence[str],
        fields: Sequence[str] | None = None,
        *,
        max_age: float | None = None,
    ) -> list[Features | None]:
        """The rows of some entities of a feature set, in their order, in one round trip; None where there is none.

        `fields`: names of the features that are wanted; one that a row does not have is missing in it. Default: all.
        `max_age`: seconds; a row whose event time is longer ago counts as none.

        Raises Unavailable when the server does not answer, Refused when it does not let us.
        """
        for name, given in (("entities", entities), ("fields", () if fields is None else fields)):
            if isinstance(given, str) or not all(isinstance(one, str) for one in given):
                raise TypeError(f"{name}: a list of names is wanted, not {given!r}")
        if not entities:
            return []
        keys = OnlineKeys(self._namespace, view)
        wanted = None if fields is None else wanted_fields(fields)
        head, tail = (b"HGETALL", []) if wanted is None else (b"HMGET", wanted)
        ask = [(head, keys.row(one), *tail) for one in entities]
        oldest = None if max_age is None else clock.now() - timedelta(seconds=max_age)
        found: list[Features | None] = []
        for entity, reply in zip(entities, self._asked(ask), strict=True):
            one = _features(entity, _named(check(reply, f"the features of {entity!r}"), wanted))
            found.append(one if one is None or oldest is None or one.event_time >= oldest else None)
        return found

    def _asked(self, ask: list[tuple[bytes, ...]]) -> list[Reply]:
        begun = clock.monotonic()
        try:
            return self._store.ask(*ask)
        except Unavailable:
            if clock.monotonic() - begun > self._timeout / 2:
                raise
            return self._store.ask(*ask)  # the connection had died while it was idle; reading twice does no harm

    def close(self) -> None:
        """Disconnect; the next `get` connects again."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FeatureReader {self._namespace} on {self._store!r}>"


def _named(reply: Reply, wanted: list[bytes] | None) -> dict[bytes, bytes | None]:
    assert not isinstance(reply, ReplyError)
    if wanted is None:
        return dict(zip(reply[::2], reply[1::2], strict=True))
    return dict(zip(wanted, reply, strict=True))


def _features(entity: str, fields: dict[bytes, bytes | None]) -> Features | None:
    found = parsed(fields)
    if found is None:
        return None
    time, event_id, values, vectors = found
    return Features(entity, moment_of(time), event_id, values, vectors)
