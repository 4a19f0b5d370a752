"""AsyncAPI's own parser accepts what `canvasbus schema asyncapi` writes, and finds in it what is there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interop.node import node
from operate.forest import Felled, Grown, Sawn, board, forester

import canvasbus.events  # noqa: F401  declares them
from canvasbus.contract.registry import registry
from canvasbus.operate import plugins
from canvasbus.operate.asyncapi import Bus, describe
from canvasbus.transport.address import parse

pytestmark = pytest.mark.interop
SCRIPT = Path(__file__).parent / "asyncapi.mjs"
SEVERITIES = ("error", "warning", "information", "hint")


def parsed(document: Any) -> tuple[list[str], Any]:
    """What the parser has against it, but for the note that there is a newer AsyncAPI; and what it found."""
    answer = json.loads(node(SCRIPT, stdin=json.dumps(document)))
    said = [
        f"{SEVERITIES[one['severity']]} {one['code']} at {one['path']}: {one['message']}"
        for one in answer["said"]
        if one["code"] != "asyncapi-latest-version"
    ]
    return said, answer.get("found")


def ours() -> Any:
    """Every event that comes along, with the workers that come along, on sentinels with a password."""
    workers = [plugins.load(plugin.name) for plugin in plugins.installed()]
    assert len(workers) >= 4
    types = [one for one in registry if one.cls.__module__.startswith("canvasbus.")]
    address = parse("rediss+sentinel://mia:hidden@a,b:7/studio/2")
    bus = Bus("Events of canvasbus", "0.0.1", "canvasbus", 3, address)
    return describe(bus, types, workers, registry, {}).document


def yours() -> Any:
    """All that a schema can have in it, an older version among it."""
    types = [registry.of(cls) for cls in (Grown, Felled, Sawn)]
    old = {"title": "async.felled", "type": "object", "properties": {"tree": {"type": "string"}}, "required": ["tree"]}
    bus = Bus("Trees", "7", "woods", 1, parse("redis://lab/1"))
    return describe(bus, types, [forester, board], registry, {("async.felled", 2): old}).document


@pytest.mark.parametrize("make", [ours, yours])
def test_the_parser_has_nothing_against_it(make: Callable[[], Any]) -> None:
    """No error and no warning; the same channels, messages, operations and servers."""
    document = make()
    said, found = parsed(document)
    assert said == []
    assert {name: (address, messages) for name, address, messages in found["channels"]} == {
        name: (channel["address"], len(channel["messages"])) for name, channel in document["channels"].items()
    }
    assert {name: (action, channel) for name, action, channel in found["operations"]} == {
        name: (one["action"], one["channel"]["$ref"].rpartition("/")[2]) for name, one in document["operations"].items()
    }
    assert {name: (host, protocol) for name, host, protocol in found["servers"]} == {
        name: (server["host"], server["protocol"]) for name, server in document["servers"].items()
    }


def break_action(document: Any) -> None:
    document["operations"]["send-async.grown"]["action"] = "subscribe"


def break_reference(document: Any) -> None:
    del document["components"]["schemas"]["async.grown.v1.Leaf"]


def break_parameter(document: Any) -> None:
    document["channels"]["async.grown"]["address"] = "{canvasbus:0}:stream:async.grown"


def break_server(document: Any) -> None:
    del document["servers"]["bus"]["protocol"]


def break_message(document: Any) -> None:
    document["operations"]["send-async.grown"]["messages"][0]["$ref"] = (
        "#/channels/async.felled/messages/async.felled.v3"
    )


def break_schema(document: Any) -> None:
    document["components"]["schemas"]["async.grown.v1"]["properties"]["name"]["type"] = "text"


@pytest.mark.parametrize(
    "change", [break_action, break_reference, break_parameter, break_server, break_message, break_schema]
)
def test_the_parser_notices_what_is_wrong(change: Callable[[Any], None]) -> None:
    """Else its silence would say nothing. (Of examples it says nothing in AsyncAPI 3: tests/operate/test_asyncapi.py does.)"""
    document = yours()
    change(document)
    said, _ = parsed(document)
    assert any(line.startswith("error") for line in said), said
