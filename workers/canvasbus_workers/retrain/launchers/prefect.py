"""Trains as a run of a Prefect deployment, over Prefect's REST API (server 3): plain HTTP, without its 170 MB of packages.

Prefect knows orders again by their idempotency_key, so one whose answer was lost is sent again: 201 the first time, 200
and the same run afterwards. A parameter of the wrong type is a 409; one that the flow does not have is taken, and its run
fails. (Seen on 3.9.1 by tests/interop/prefect_flow.py.)
"""

from urllib.parse import quote

from canvasbus_workers.outside.client import Client
from canvasbus_workers.outside.secret import Secret
from canvasbus_workers.retrain.launchers.protocol import Ended, Launched, Order, Rejected, Running
from canvasbus_workers.retrain.launchers.remote import Api, field, order_as_json, unknown
from canvasbus_workers.retrain.settings import Policy

FAILED = frozenset({"FAILED", "CRASHED", "CANCELLED"})


class Prefect:
    """The launcher of one policy."""

    def __init__(self, policy: Policy, client: Client, authorization: Secret | None = None) -> None:
        self._settings = policy.prefect
        self._api = Api(client, policy.prefect, authorization)
        self._base = policy.prefect.url.rstrip("/")

    async def launch(self, order: Order, *, late: bool = False) -> Launched | Ended:
        """Create a flow run, or find the one that there is."""
        if late:
            raise unknown(order, self._base)
        flow, _, name = self._settings.deployment.partition("/")
        where = f"{self._base}/deployments/name/{quote(flow, safe='')}/{quote(name, safe='')}"
        status, deployment = await self._api.ask("GET", where, missing=True)
        if status == 404:
            raise Rejected(f"Prefect has no deployment {self._settings.deployment}")
        parameters = dict(self._settings.parameters)
        if self._settings.order_parameter:
            parameters[self._settings.order_parameter] = order_as_json(order)
        body = {
            "name": order.run_id,
            "parameters": parameters,
            "idempotency_key": order.key,
            "tags": ["canvasbus", f"correlation:{order.correlation_id}"],
        }
        url = f"{self._base}/deployments/{field(deployment, 'id')}/create_flow_run"
        status, run = await self._api.ask("POST", url, body=body, traceparent=order.traceparent)
        return Launched(external_id=field(run, "id"), duplicate=status == 200)

    async def status(self, external_id: str) -> Running | Ended:
        """Ask for the flow run's state."""
        status, run = await self._api.ask("GET", f"{self._base}/flow_runs/{quote(external_id, safe='')}", missing=True)
        if status == 404:
            return Ended(error=f"Prefect knows no flow run {external_id}")
        state = field(run, "state_type")
        seconds = field(run, "total_run_time")
        duration = float(seconds) if seconds else 0.0
        if state == "COMPLETED":
            return Ended(duration=duration)
        if state in FAILED:
            message = field(run, "state.message")
            return Ended(error=f"{field(run, 'name')}: {state}{f', {message}' if message else ''}", duration=duration)
        return Running()
