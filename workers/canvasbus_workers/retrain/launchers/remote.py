"""What launchers on the network have in common: orders as JSON, and what statuses mean."""

from typing import Any
from urllib.parse import urlsplit

import msgspec

from canvasbus import clock
from canvasbus_workers.outside.answer import retry_after
from canvasbus_workers.outside.client import LARGEST_ANSWER, Client, NoAnswer, NotSent
from canvasbus_workers.outside.secret import Secret
from canvasbus_workers.retrain.launchers.protocol import Ambiguous, Busy, Order, Rejected, Unreachable
from canvasbus_workers.retrain.settings import Remote

BUSY = frozenset({408, 425, 429, 503})
"""Not now; nothing has been begun."""
AGAIN = 10.0
"""Seconds after which to come back when nothing is said about that."""
LONGEST = 3600.0


class Api:
    """One other side."""

    def __init__(self, client: Client, settings: Remote, authorization: Secret | None = None) -> None:
        self._client = client
        self._settings = settings
        self._authorization = authorization

    async def ask(
        self, method: str, url: str, *, body: Any = None, key: str = "", traceparent: str = "", missing: bool = False
    ) -> tuple[int, Any]:
        """(status, JSON; None where it is none) of a success, or, with `missing`, of a 404.

        Raises Rejected, Busy, Unreachable; Ambiguous when nobody knows what became of a request that might have begun
        something. `traceparent`: the trace that the request belongs to.
        """
        headers = {"Accept": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        if traceparent:
            headers["traceparent"] = traceparent
        data = None if body is None else msgspec.json.encode(body)
        host = urlsplit(url).hostname
        unknown = Unreachable if body is None else Ambiguous
        try:
            reply = await self._client.request(
                method, url, body=data, headers=headers, authorization=self._authorization,
                seconds=self._settings.timeout_seconds,
            )  # fmt: skip
        except NotSent as error:
            raise Unreachable(f"{host}: {error}") from None
        except NoAnswer as error:
            raise unknown(f"{host}: {error}") from None
        if missing and reply.status == 404:
            return reply.status, None
        if reply.status < 300:
            if not reply.whole:
                raise unknown(f"{host}: its answer broke off, or has more than {LARGEST_ANSWER} bytes")
            return reply.status, _json(reply.body)
        if reply.status in BUSY:
            raise Busy(f"{host} answered {reply.status}", _after(reply.retry_after))
        if reply.status >= 500:
            raise unknown(f"{host} answered {reply.status}")
        if reply.status in (401, 403):
            raise Rejected(f"{host} answered {reply.status}: look at its authorization_file or authorization_env")
        raise Rejected(f"{host} answered {reply.status}: {reply.said}")


def unknown(order: Order, url: str) -> Rejected:
    """Its time is over, and nobody here has written down whether it was sent."""
    return Rejected(f"its time was over before it was known to have begun; look at {url} for the key {order.key}")


def order_as_json(order: Order) -> dict[str, Any]:
    """An order for whoever reads JSON."""
    return {
        "key": order.key,
        "run_id": order.run_id,
        "model_name": order.model_name,
        "model_version": order.model_version,
        "fence": order.fence,
        "episode_id": order.episode_id,
        "reason": order.reason,
        "windows": order.windows,
        "correlation_id": order.correlation_id,
        "traceparent": order.traceparent,
    }


def field(value: Any, path: str) -> str:
    """What lies at a dotted path, as text; empty: nothing."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return "" if value is None or isinstance(value, dict | list) else str(value)


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None


def _after(said: str) -> float:
    seconds = retry_after(said, clock.now())
    return AGAIN if seconds is None else min(max(seconds, 0.0), LONGEST)
