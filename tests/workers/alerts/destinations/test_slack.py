"""Messages for Slack, held against the models of Slack's own library."""

from typing import Any
from uuid import UUID

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Server, answering
from slack_sdk.models.blocks import Block, HeaderBlock, SectionBlock
from slack_sdk.webhook import WebhookClient
from workers.alerts.destinations.telling import LOCAL, about, tell

from canvasbus.worker import Reject
from canvasbus_workers.alerts.desk import Desk
from canvasbus_workers.alerts.destinations.slack import (
    BLOCKS,
    CONTEXT,
    FALLBACK,
    FIELD,
    HEADER,
    SECTION,
    SECTIONS,
    fit,
    len16,
    pages,
    payload,
)
from canvasbus_workers.alerts.incidents import SHOWN, Incident
from canvasbus_workers.alerts.notification import Notification
from canvasbus_workers.alerts.settings import Settings
from canvasbus_workers.alerts.signals import Signal

KINDS = ("opened", "escalated", "repeated", "resolved", "test")
ANGRY = "<!channel> <@U123> @here & <https://evil.example|a> *x*"


def accepted(message: dict[str, Any]) -> list[Block]:
    """The blocks as Slack's models, each of which has looked at itself; then the limits that they do not know."""
    parsed = Block.parse_all(message["blocks"])
    assert [type(block) for block in parsed] != [] and len(parsed) == len(message["blocks"]) <= BLOCKS
    for block, given_ in zip(parsed, message["blocks"], strict=True):
        block.validate_json()
        assert block.to_dict() == given_  # nothing that the model does not know
        if isinstance(block, SectionBlock) and block.text is not None:
            assert 0 < len16(block.text.text or "") <= SECTION
        for one in given_.get("fields", ()):
            assert 0 < len16(one["text"]) <= FIELD
        for one in given_.get("elements", ()):
            assert 0 < len16(one["text"]) <= CONTEXT
        if isinstance(block, HeaderBlock):
            assert 0 < len16(block.text.text or "") <= HEADER
    assert 0 < len16(message["text"]) <= FALLBACK
    return parsed


def texts(message: Any) -> list[str]:
    """Every text in it."""
    if isinstance(message, dict):
        return [text for value in message.values() for text in texts(value)]
    if isinstance(message, list):
        return [text for value in message for text in texts(value)]
    return [message] if isinstance(message, str) else []


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_message_with_what_a_person_needs(kind: str) -> None:
    """What, where, since when, each line, and where to look."""
    message = payload(about(kind=kind))
    accepted(message)
    everything = "\n".join(texts(message))
    for needed in ("drift, mmd = 0.42", "StyleGAN-Canvas-v3", "2026-11-26 10:00:00 UTC", "accuracy 0.81, expected 0.9"):
        assert needed in everything
    assert "embedding: mmd 0.42 &gt; 0.1" in everything
    assert "<https://studio.example/m?a=1&amp;b=2|dashboard>" in everything
    assert ("critical" in message["text"]) == (kind != "resolved")


def test_the_kinds_can_be_told_from_each_other() -> None:
    """By the header alone."""
    assert len({payload(about(kind=kind))["blocks"][0]["text"]["text"] for kind in KINDS}) == len(KINDS)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Notification,
        kind=st.sampled_from(KINDS),
        incident_id=st.text(min_size=1, max_size=200),
        model_name=st.text(max_size=5000),
        severity=st.sampled_from(["info", "warning", "critical"]),
        title=st.one_of(st.text(), st.sampled_from(["<" * 4000, "😀" * 4000, "&" * 2999, "x" * 3001])),
        since=st.just(about().since),
        at=st.just(about().at),
        summary=st.lists(st.one_of(st.text(), st.sampled_from(["&" * 700, "😀" * 3000, "a" * 2990])), max_size=30).map(
            tuple
        ),
        correlation_id=st.uuids(),
        idempotency_key=st.just("k"),
        links=st.dictionaries(
            st.text(), st.one_of(st.text(), st.sampled_from(["https://x/" + "&" * 2000])), max_size=12
        ),
    )
)
def test_any_notification_fits(notification: Notification) -> None:
    """Whatever stands in it and however long it is."""
    message = payload(notification)
    accepted(message)
    assert msgspec.json.decode(msgspec.json.encode(message)) == message


@pytest.mark.parametrize("kind", ["opened", "resolved"])
@pytest.mark.parametrize("letter", ["x", "&", "<", "😀", "é ", "|", "\u202e", "\n", "*"])
def test_fifty_kilobytes_of_anything_fit(letter: str, kind: str) -> None:
    """Title, model, id, each of many lines, and the words and addresses of many links."""
    long = letter * (50_000 // len(letter))
    message = payload(
        about(
            kind=kind, title=long, model_name=long, incident_id=long, summary=(long,) * 500, signals=(long,) * 500,
            links={f"{number}{long}": f"https://studio.example/{number}{long}" for number in range(50)},
        )
    )  # fmt: skip
    accepted(message)
    assert len(msgspec.json.encode(message)) < 200_000  # six bytes for a letter that JSON escapes


def test_a_storm_with_endless_titles_fits() -> None:
    """From what rings to the message: a thousand signals, each with a title, a name and a model of 50 kB."""
    incident, rules, desk = Incident(), Settings(), Desk()
    for number in range(1000):
        signal = Signal(
            kind=f"{number}{'&' * 50_000}", what="é" * 50_000, model_name="<" * 50_000, severity="critical",
            title=f"{number} {'😀' * 50_000}", at=about().at,
        )  # fmt: skip
        incident.ring(signal, 1000.0, rules)
    opened = incident.step("model_name=" + "<" * 50_000, UUID(int=1), about().at, 1000.0, rules)
    desk.hear("g" * 50_000, incident, opened, about().at, UUID(int=2))
    (told,), _ = desk.tell(1000.0, rules)
    accepted(payload(told.notification))
    assert len(told.notification.signals) == len(told.notification.summary) == SHOWN
    assert len(msgspec.msgpack.encode(told.notification)) < 10_000 and len(msgspec.msgpack.encode(opened)) < 60_000


def test_nobody_is_mentioned() -> None:
    """What users write is text: no mention, no link, and `<` only begins links of ours."""
    message = payload(
        about(
            title=ANGRY, model_name=ANGRY, incident_id=ANGRY, summary=(ANGRY,),
            links={ANGRY: "https://studio.example/|x><!channel>", "b": f"https://{ANGRY}/", "c": "javascript:alert(1)"},
        )
    )  # fmt: skip
    accepted(message)
    for text in [*texts(message["blocks"]), message["text"]]:
        assert "<!" not in text
        assert "<@" not in text
        assert "|a>" not in text
        assert "javascript" not in text
    objects = [block["text"] for block in message["blocks"] if "text" in block]
    objects += [one for block in message["blocks"] for one in (*block.get("fields", ()), *block.get("elements", ()))]
    assert all(one["type"] == "plain_text" or one["verbatim"] for one in objects)  # `@here` stays a word
    header = message["blocks"][0]["text"]["text"]
    assert header == "Incident (critical)"


@pytest.mark.parametrize(
    ("text", "limit", "fitted"),
    [
        ("a<b", 6, "a&lt;b"),
        ("a<b", 5, "a…"),  # an entity is whole or not there
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("😀😀", 4, "😀😀"),
        ("😀😀", 3, "😀…"),
        ("&amp;", 100, "&amp;amp;"),
    ],
)
def test_cutting_respects_characters(text: str, limit: int, fitted: str) -> None:
    """Counted after escaping, two for what takes two in JavaScript."""
    assert fit(text, limit) == fitted


def test_many_lines_end_in_a_number() -> None:
    """A storm is not a wall of text; how much is left out is said."""
    found = list(pages([f"{number} " + "x" * 500 for number in range(100)]))
    assert len(found) == SECTIONS
    assert all(len16(page) <= SECTION for page in found)
    told = sum(page.count("• ") for page in found)
    assert found[-1].endswith(f"… and {100 - told} more")
    assert list(pages([])) == []
    assert list(pages(["a", "b"])) == ["• a\n• b"]


async def test_a_request_is_the_one_that_slack_s_library_makes(nursery: trio.Nursery) -> None:
    """Method, path, type and body, against `slack_sdk.webhook.WebhookClient` at the same server."""
    server = await Server(answering(200, b"ok")).start(nursery)
    await tell({"kind": "slack", "url": server.url, **LOCAL})
    message = payload(about())
    client = WebhookClient(server.url)
    answer = await trio.to_thread.run_sync(
        lambda: client.send(text=message["text"], blocks=message["blocks"], unfurl_links=False, unfurl_media=False)
    )
    assert answer.status_code == 200
    ours, theirs = server.requests
    assert ours.target == theirs.target
    assert ours.headers["content-type"] == theirs.headers["content-type"].partition(";")[0]
    assert msgspec.json.decode(ours.body) == msgspec.json.decode(theirs.body)


async def test_slack_s_own_words_are_told(nursery: trio.Nursery) -> None:
    """Its errors are words in the body of a 4xx."""
    server = await Server(answering(404, b"no_service")).start(nursery)
    with pytest.raises(Reject, match=r"^ops answers 404 \(no_service\)$"):
        await tell({"kind": "slack", "url": server.url, **LOCAL})
