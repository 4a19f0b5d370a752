"""One destination while a worker runs: a notification becomes requests, and their answers an end of it."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

import msgspec
import trio

from canvasbus import clock
from canvasbus.worker import Reject, RetryLater
from canvasbus_workers.alerts.destinations.answer import Undelivered, judge
from canvasbus_workers.alerts.destinations.message import Form, Message, Question
from canvasbus_workers.alerts.destinations.settings import Http
from canvasbus_workers.alerts.notification import Gone, Notification
from canvasbus_workers.outside.client import LARGEST_ANSWER, Blocked, Client, NoAnswer, NotSent
from canvasbus_workers.outside.secret import Secret


class Posted:
    """One destination."""

    def __init__(
        self, name: str, form: Form, client: Client, settings: Http, url: Secret, authorization: Secret | None
    ) -> None:
        self.name, self.client = name, client
        self._form, self._settings = form, settings
        self._url, self._authorization = url, authorization
        self._counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<{type(self._settings).__name__} {self.name}: {dict(self._counts)}>"

    def statistics(self) -> dict[str, int]:
        """How many notifications it has taken, and by what the others failed."""
        return {word: self._counts[word] for word in ("taken", *_WORDS.values(), "undelivered")}

    async def send(self, notification: Notification) -> None:
        """Tell it. Raises Reject, RetryLater, Gone, or Undelivered, each with the destination's name and no secret."""
        since = trio.current_time()
        try:
            question = self._form.ask(notification)
            known = b"" if question is None else await self._call(question, since)
            await self._call(self._made(notification, known), since)
        except Exception as error:
            self._counts[_WORDS.get(type(error), "undelivered")] += 1
            raise
        self._counts["taken"] += 1

    async def _call(self, request: Message | Question, since: float) -> bytes:
        if isinstance(request, Message):  # the body of what was taken is not read
            method, query, body, most = "POST", "", request.body, 0
        else:
            method, query, body, most = "GET", request.query, None, LARGEST_ANSWER
        try:
            reply = await self.client.request(
                method, self._url, seconds=self._settings.timeout_seconds, since=since, query=query, body=body,
                headers=request.headers, authorization=self._authorization, most=most,
            )  # fmt: skip
        except Blocked as error:
            raise Reject(f"{self.name}: {error}") from None
        except (NotSent, NoAnswer) as error:
            raise Undelivered(f"{self.name}: {error}") from None
        # What a redirect says is not shown: it leads somewhere, and most of them repeat the URL.
        said = reply.said if reply.status >= 400 else ""
        longest = self._settings.retry_after_seconds
        judge(self.name, reply.status, reply.retry_after, said, now=clock.now(), most=longest)
        return reply.body

    def _made(self, notification: Notification, known: bytes) -> Message:
        with suppress(msgspec.DecodeError):
            return self._form.make(notification, known)
        raise Undelivered(f"{self.name}: its answer is not what it was asked for")


_WORDS: Mapping[type[Exception], str] = {Reject: "rejected", RetryLater: "delayed", Gone: "gone"}
