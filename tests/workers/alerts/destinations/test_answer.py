"""What the answers of a destination mean."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from canvasbus.worker import Reject, RetryLater
from canvasbus_workers.alerts.destinations.answer import Undelivered, judge
from canvasbus_workers.alerts.notification import Gone
from canvasbus_workers.outside.answer import retry_after, shown

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


def verdict(status: int, said: str = "", retry: str | None = None) -> Exception | None:
    """The exception; None: taken."""
    try:
        judge("ops", status, retry or "", said, now=NOW, most=900)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_success_is_taken(status: int) -> None:
    """2xx."""
    assert verdict(status) is None


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        *((status, Reject) for status in (101, 300, 301, 302, 303, 304, 307, 308)),
        *((status, Reject) for status in (400, 401, 403, 404, 405, 406, 409, 411, 413, 415, 418, 422, 431, 451)),
        *((status, Undelivered) for status in (408, 425, 500, 501, 502, 503, 504, 507, 599)),
        (410, Gone),
        (429, RetryLater),
    ],
)
def test_every_failure_says_whose_move_is_next(status: int, wanted: type[Exception]) -> None:
    """Dead letter, again later, again with a count, or never again. The text names the destination and the status."""
    error = verdict(status, "no_service")
    assert type(error) is wanted
    assert str(error).startswith(f"ops answers {status} (no_service)")


@pytest.mark.parametrize(
    ("status", "retry", "after"),
    [
        (429, None, 30),
        (429, "7", 7),
        (429, "1.5", 1.5),
        (429, "0", 1),
        (429, "-3", 1),
        (429, "86400", 900),
        (429, "soon", 30),
        (429, "nan", 30),
        (429, "inf", 30),
        (429, "9" * 400, 30),
        (429, format_datetime(NOW + timedelta(seconds=42), usegmt=True), 42),
        (429, format_datetime(NOW - timedelta(hours=1), usegmt=True), 1),
        (429, format_datetime(NOW + timedelta(days=9), usegmt=True), 900),
        (429, "Thursday, 26-Nov-26 12:00:20 GMT", 20),  # RFC 850
        (429, "Thu Nov 26 12:00:20 2026", 20),  # asctime
        (503, "7", 7),
        (503, format_datetime(NOW + timedelta(seconds=42), usegmt=True), 42),
    ],
)
def test_retry_after_is_honoured_within_bounds(status: int, retry: str | None, after: float) -> None:
    """Seconds or a date, at least one second, at most what the settings say."""
    error = verdict(status, retry=retry)
    assert isinstance(error, RetryLater)
    assert error.after == after
    assert f"again in {after:g} s" in str(error)


def test_a_503_that_says_nothing_counts_as_a_failure() -> None:
    """It is broken, not busy: attempts are counted, and there are a few only."""
    assert type(verdict(503, retry="whenever")) is Undelivered


@pytest.mark.parametrize("text", ["", "soon", "Mon, 99 Foo 2026 00:00:00 GMT", "1e999", "\x00", "26"])
def test_retry_after_reads_anything(text: str) -> None:
    """What is neither seconds nor a date says nothing."""
    assert retry_after(text, NOW) == (26 if text == "26" else None)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"invalid_payload", "invalid_payload"),
        (b" two\r\nlines\x1b[31m ", "two lines [31m"),
        (b"x" * 500, "x" * 199 + "…"),
        (b"\x1f\x8b\x08\x00\xff\xfe", ""),
        (b"", ""),
        (b"Cannot POST /services/T0/B0/sesame-opens", "its text repeats a secret and is not shown"),
        (b"no such path: B0/sesame-op...", "its text repeats a secret and is not shown"),
        (b'{"path":"\\/services\\/T0\\/B0\\/ses"}', "its text repeats a secret and is not shown"),
        (b"see T0%2FB0%2Fsesa", "its text repeats a secret and is not shown"),
        (b"bad key Bearer sesame", "its text repeats a secret and is not shown"),
        (b"\xff services/T0/B0/sesame-opens", "its text repeats a secret and is not shown"),
    ],
)
def test_what_an_answer_says_is_told_where_it_repeats_no_secret(body: bytes, told: str) -> None:
    """Many servers put the path, which is the secret, into the page of a 404."""
    assert shown(body, "services/T0/B0/sesame-opens", "Bearer sesame", "") == told
