"""What an answer of a destination means. Pure: status, Retry-After and text in, nothing or an error out.

2xx                 taken
3xx                 Reject: a redirect is not followed, since whoever sends it would choose the address
408, 425, 5xx       Undelivered: it may pass
410                 Gone
429, 503            RetryLater, where the answer says when (429: also where it does not)
any other           Reject: the same request will be refused again
"""

from datetime import datetime

from canvasbus.worker import Reject, RetryLater
from canvasbus_workers.alerts.notification import Gone
from canvasbus_workers.outside.answer import retry_after

SOON = 1.0
"""Seconds: the shortest wait, for those who say "after 0 seconds" and for dates that are past."""
UNSAID = 30.0
"""Seconds after which to come again when a 429 does not say it."""


class Undelivered(Exception):
    """It was not delivered, or nobody knows, and it may pass: no answer in time, refused connections, 5xx."""


def judge(name: str, status: int, wait: str, said: str, *, now: datetime, most: float) -> None:
    """Return when the notification was taken. `name`: of the destination. `wait`: the header Retry-After. `said`: text of
    the answer that may be shown.

    Raises Reject, RetryLater, Gone or Undelivered."""
    told = f"{name} answers {status}{said and f' ({said})'}"
    if 200 <= status < 300:
        return
    if status == 410:
        raise Gone(f"{told}: it does not exist any more")
    seconds = retry_after(wait, now)
    if status == 429 or (status == 503 and seconds is not None):
        after = min(max(UNSAID if seconds is None else seconds, SOON), most)
        raise RetryLater(after, f"{told}: again in {after:g} s")
    if status in (408, 425) or status >= 500:
        raise Undelivered(told)
    if 300 <= status < 400:
        raise Reject(f"{told}, a redirect, and none is followed: give the URL to which it leads")
    raise Reject(told)
