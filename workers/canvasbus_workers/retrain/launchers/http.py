"""Trains wherever an HTTP service takes orders: POST, with the order as JSON and its key as Idempotency-Key.

Where the other side knows keys, an order whose answer was lost is sent again. Where it does not, that may train twice: so
what is sent is written down before, and when the answer was lost, or the worker died before it came, the other side is
asked for the order (`lookup_url`); where that is not possible the run fails, and says where to look.
"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import trio

from canvasbus import clock
from canvasbus_workers.outside.client import Client
from canvasbus_workers.outside.secret import Secret
from canvasbus_workers.retrain.launchers import folders, records
from canvasbus_workers.retrain.launchers.protocol import (
    LATE,
    Ambiguous,
    Busy,
    Ended,
    Launched,
    Order,
    Rejected,
    Running,
    Unreachable,
)
from canvasbus_workers.retrain.launchers.remote import Api, field, order_as_json, unknown
from canvasbus_workers.retrain.settings import Policy

LOOK_AGAIN = 5.0
"""Seconds until an order that the other side does not know is looked up again: it may be on its way still."""
LOOKS = 2
"""Looks at which it must be unknown before it is sent again."""


class Http:
    """The launcher of one policy."""

    def __init__(self, policy: Policy, client: Client, authorization: Secret | None = None) -> None:
        self._policy = policy
        self._settings = policy.http
        self._api = Api(client, policy.http, authorization)

    async def launch(self, order: Order, *, late: bool = False) -> Launched | Ended:
        """Send it."""
        if self._settings.keyed:
            if late:
                raise unknown(order, self._settings.url)
            return await self._send(order)
        record = Path(self._policy.folder).absolute() / order.key / "sent.json"
        about = folders.about(order, self._policy) | {"at": clock.time()}
        if not late and records.claim(record, about | {"sent": True}):
            await trio.to_thread.run_sync(folders.prune, order, self._policy)
        else:
            known = {"at": order.ordered} | (records.load(record) or {})
            if "external_id" in known:
                return Launched(external_id=known["external_id"], duplicate=True, began=known["at"])
            if known.get("sent"):
                return await self._look_up(order, record, known, "an earlier worker has sent it")
            if late:
                raise Rejected(LATE)
            records.store(record, about | {"sent": True})
        try:
            said = await self._send(order)
        except Ambiguous as error:
            return await self._look_up(order, record, about, str(error))
        except (Busy, Unreachable, Rejected):
            records.store(record, about)  # nothing has begun
            raise
        records.store(record, about | {"external_id": said.external_id})
        return said

    async def _send(self, order: Order) -> Launched:
        body = order_as_json(order) | {"parameters": self._settings.parameters}
        url = self._settings.url
        _, said = await self._api.ask("POST", url, body=body, key=order.key, traceparent=order.traceparent)
        return Launched(external_id=field(said, self._settings.id_field) if self._settings.status_url else "")

    async def _look_up(self, order: Order, record: Path, known: dict[str, Any], why: str) -> Launched:
        """What became of an order that was sent, of which this is known."""
        if not self._settings.lookup_url:
            raise Rejected(
                f"unknown outcome: {why}; look at {self._settings.url} for the key {order.key} before you ask again"
            )
        url = self._settings.lookup_url.replace("{key}", quote(order.key, safe=""))
        status, said = await self._api.ask("GET", url, missing=True)
        if status != 404:
            external_id = field(said, self._settings.id_field)
            external_id = external_id if self._settings.status_url else ""
            records.store(record, known | {"external_id": external_id})
            return Launched(external_id=external_id, duplicate=True, began=known["at"])
        looks = known.get("looks", 0) + 1
        records.store(record, known | {"sent": looks < LOOKS, "looks": looks})
        raise Busy(f"{why}; the other side does not know it", LOOK_AGAIN)

    async def status(self, external_id: str) -> Running | Ended:
        """Ask for it."""
        url = self._settings.status_url.replace("{id}", quote(external_id, safe=""))
        status, said = await self._api.ask("GET", url, missing=True)
        if status == 404:
            return Ended(error=f"the other side knows no run {external_id}")
        state = field(said, self._settings.state_field)
        if state.lower() in (name.lower() for name in self._settings.succeeded):
            return Ended()
        if state.lower() in (name.lower() for name in self._settings.failed):
            return Ended(error=f"{external_id}: {state}")
        return Running()
