"""Events that come too late to matter: after an outage, or when a new group begins far back."""

from typing import Any, Literal

from canvasbus import clock
from canvasbus.checks import check_number
from canvasbus.consume.context import Context
from canvasbus.consume.middleware import Middleware
from canvasbus.consume.middleware.gate import gate
from canvasbus.consume.policy import Reject
from canvasbus.errors import ContractError


def max_age(seconds: float, *, then: Literal["reject", "skip"] = "reject") -> Middleware:
    """Do not handle events that occurred (`occurred_on`) more than `seconds` ago: they become dead letters, which can
    be looked at, or with `then="skip"` are acknowledged.

    It is the consumer's word, where `publish(expires_in=)` is the publisher's. Raises ContractError.
    """
    check_number("max_age: seconds", seconds, error=ContractError)
    if not seconds > 0 or then not in ("reject", "skip"):
        raise ContractError(f"max_age({seconds!r}, then={then!r}): seconds above 0; then is 'reject' or 'skip'")

    def check(event: Any, _ctx: Context) -> bool:
        age = clock.time() - event.occurred_on.timestamp()
        if age > seconds and then == "reject":
            raise Reject(f"it occurred {age:.0f} s ago, and this worker takes {seconds:g} s at most")
        return bool(age <= seconds)

    return gate(check)
