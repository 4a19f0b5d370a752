"""To an incoming webhook of Slack: Block Kit, with a plain text for notifications and screen readers. Pure.

What users wrote (names of models, titles, lines) is escaped, so that `<!channel>` wakes nobody, and stands in objects that
are `verbatim`, so that `@here` and `#general` stay what they are. The header alone is not mrkdwn, and has words of ours only.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC
from typing import Any

import msgspec

from canvasbus_workers.alerts.destinations.message import Form, Message
from canvasbus_workers.alerts.notification import Notification

# Slack's limits, in characters and blocks (docs.slack.dev/reference/block-kit/blocks).
HEADER, SECTION, FIELD, CONTEXT, FALLBACK, BLOCKS = 150, 3000, 2000, 3000, 4000, 50
SECTIONS = 4
"""Sections of lines at most: who wants to read more follows the link."""
LINKS = 8
LOOKED_AT = 4 * FALLBACK
"""Characters of a text: whatever comes behind them would be cut anyway."""

_HEADINGS = {
    "opened": "Incident",
    "escalated": "Escalated incident",
    "repeated": "Incident, still open",
    "resolved": "Resolved",
    "test": "Test of this destination",
}


def make(notification: Notification, _: bytes = b"") -> Message:
    """The request."""
    return Message(msgspec.json.encode(payload(notification)), {"Content-Type": "application/json"})


FORM = Form(make)


def payload(notification: Notification) -> dict[str, Any]:
    """The message: what happened, to what, the lines, where to look."""
    heading = _HEADINGS[notification.kind]
    if notification.kind != "resolved":
        heading += f" ({notification.severity})"
    title = fit(_line(notification.title or notification.incident_id), SECTION - 2)
    facts = {"Model": notification.model_name, "Since": f"{notification.since.astimezone(UTC):%Y-%m-%d %H:%M:%S %Z}"}
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": heading[:HEADER], "emoji": False}},
        _section(f"*{title}*"),
        {
            "type": "section",
            "fields": [_mrkdwn(f"*{name}*\n{fit(_line(text), FIELD - 20)}") for name, text in facts.items() if text],
        },
        *map(_section, pages(notification.summary)),
    ]
    links = [f"<{_url(url)}|{_link_text(word)}>" for word, url in notification.links.items() if _is_web(url)]
    if links:
        blocks.append(_section(_joined(links[:LINKS], " · ", SECTION)))
    about = f"{notification.incident_id} · {notification.correlation_id}"
    blocks.append({"type": "context", "elements": [_mrkdwn(fit(_line(about), CONTEXT))]})
    return {
        "text": f"{heading}: {fit(_line(notification.title or notification.incident_id), FALLBACK - HEADER)}",
        "blocks": blocks[:BLOCKS],
        "unfurl_links": False,
        "unfurl_media": False,
    }


def pages(lines: Sequence[str]) -> Iterator[str]:
    """The lines as texts of sections, the last of which says how many do not fit."""
    room, page, left = SECTION - 40, "", SECTIONS
    for number, line in enumerate(lines):
        text = f"• {fit(_line(line), room - 2)}"
        if page and len16(page) + 1 + len16(text) > room:
            left -= 1
            if not left:
                yield f"{page}\n… and {len(lines) - number} more"
                return
            yield page
            page = text
        else:
            page = f"{page}\n{text}" if page else text
    if page:
        yield page


def fit(text: str, limit: int) -> str:
    """`text` escaped for mrkdwn, at most `limit` characters: cut, where it has to be, between characters, with an ellipsis."""
    escaped = [_ESCAPES.get(one, one) for one in text[: limit + 1]]
    if sum(map(len16, escaped)) <= limit:
        return "".join(escaped)
    kept, room = [], limit - 1
    for one in escaped:
        room -= len16(one)
        if room < 0:
            break
        kept.append(one)
    return "".join(kept) + "…"


def len16(text: str) -> int:
    """Characters as JavaScript counts them: the stricter way, and Slack does not say how it counts."""
    return len(text) + sum(one > "\uffff" for one in text)


_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _line(text: str) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in text[:LOOKED_AT]).split()) or "–"


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn(text)}


def _mrkdwn(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _is_web(url: str) -> bool:
    return url.startswith(("https://", "http://")) and url.isprintable() and len16(_url(url)) <= SECTION // 2


def _url(url: str) -> str:
    """For inside <…|…>, which these end."""
    for one, code in ((" ", "%20"), ("<", "%3C"), (">", "%3E"), ("|", "%7C"), ("&", "&amp;")):
        url = url.replace(one, code)
    return url


def _link_text(word: str) -> str:
    return fit(_line(word), 75).replace("|", "¦")


def _joined(parts: Sequence[str], between: str, limit: int) -> str:
    """As many of the first parts as fit."""
    found = parts[0]
    for part in parts[1:]:
        if len16(found) + len16(between) + len16(part) > limit:
            break
        found += between + part
    return found
