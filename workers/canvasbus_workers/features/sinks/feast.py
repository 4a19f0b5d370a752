"""Feast, by the HTTP of its feature server: POST /push. Its SDK is 445 MB and wants another redis-py than ours.

Rows that go to one push source and have the same columns are one request, in the order of their event times. Pushing a row
twice leaves the online store as it was. Which of two rows stays when the older one is pushed later is up to Feast's
online store: the one on Redis compares event times, the one in SQLite keeps what was pushed last.
"""

from collections.abc import Iterator, Sequence
from struct import unpack
from typing import Any, NamedTuple

import msgspec

from canvasbus.events import FloatArray
from canvasbus_workers.features.rows import FeatureRow
from canvasbus_workers.features.settings import FeastSettings, FeastView, place_of
from canvasbus_workers.features.sinks import Away, RowsRefused
from canvasbus_workers.outside.client import Client, NoAnswer, NotSent, parse
from canvasbus_workers.outside.secret import Secret

_PASSING = frozenset({401, 403, 404, 408, 425, 429, 502, 503, 504})
"""Statuses that are not the rows' fault: configuration, or load."""
_NO_SOURCE = b"PushSourceNotFound"
"""Feast answers 422 then, as it does to what it cannot read; nothing but its registry, or our settings, can help."""


class Push(NamedTuple):
    """One request."""

    body: bytes
    positions: Sequence[int]
    """Of its rows in the batch."""


class FeastSink:
    """Pushes to one feature server."""

    def __init__(self, name: str, settings: FeastSettings, authorization: Secret | None = None) -> None:
        """Raises ConfigError for a URL that is none."""
        self.name = name
        self._settings = settings
        self._url = f"{settings.url.rstrip('/')}/push"
        parse(f"{place_of(name)}: the url", self._url)
        self._authorization = authorization
        self._client = Client("canvasbus-features", kept=1)

    async def write(self, rows: Sequence[FeatureRow]) -> None:
        """See FeatureSink."""
        refused: dict[int, str] = {}
        failed: dict[int, str] = {}
        for push in pushes(rows, self._settings):
            status, why = await self._sent(push)
            if status < 300:
                continue
            if status < 500:
                refused |= dict.fromkeys(push.positions, why)
            elif len(push.positions) == 1:
                failed[push.positions[0]] = why
            else:  # one row that Feast fails over must not take its neighbours along
                for at in push.positions:
                    (alone,) = pushes([rows[at]], self._settings)
                    status, why = await self._sent(alone)
                    if status >= 300:
                        (refused if status < 500 else failed)[at] = why
        if refused or failed:
            raise RowsRefused(refused, failed)

    async def _sent(self, push: Push) -> tuple[int, str]:
        """Below 300, 4xx or 5xx, and what was said. Raises Away when it is not the rows' fault."""
        try:
            reply = await self._client.request(
                "POST",
                self._url,
                body=push.body,
                authorization=self._authorization,
                seconds=self._settings.timeout_seconds,
            )
        except (NotSent, NoAnswer) as error:
            raise Away(f"{self.name}: {error}") from error
        status = reply.status
        why = f"{self.name}: Feast answered {status} {reply.said}".rstrip()
        if 300 <= status < 400 or status in _PASSING or (status == 422 and _NO_SOURCE in reply.body):
            raise Away(why)
        return status, why

    async def aclose(self) -> None:
        """See FeatureSink."""
        await self._client.aclose()


def pushes(rows: Sequence[FeatureRow], settings: FeastSettings) -> Iterator[Push]:
    """The requests for a batch of rows."""
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    sent: dict[int, dict[str, Any]] = {}
    for at in sorted(range(len(rows)), key=lambda at: rows[at].order):
        view = settings.views.get(rows[at].view)
        if view is None:
            continue
        sent[at] = _columns(rows[at], view, settings.timestamp)
        groups.setdefault((rows[at].view, tuple(sorted(sent[at]))), []).append(at)
    for (view_name, columns), positions in groups.items():
        body = {
            "push_source_name": settings.views[view_name].push_source,
            "df": {column: [sent[at][column] for at in positions] for column in columns},
            "to": settings.to,
        }
        yield Push(msgspec.json.encode(body), positions)


def _columns(row: FeatureRow, view: FeastView, timestamp: str) -> dict[str, Any]:
    features: dict[str, Any] = {**row.values, **{name: _list(vector) for name, vector in row.vectors.items()}}
    if view.columns:
        features = {column: features[name] for name, column in view.columns.items() if name in features}
    return {**features, view.entity: row.entity, timestamp: row.event_time.isoformat()}


def _list(vector: FloatArray) -> list[float]:
    """Feast's arrays have one axis."""
    return list(unpack(f"<{len(vector.data) // 4}f", vector.data))
