"""The AsyncAPI document says what is there. tests/interop holds it against the official parser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from operate.forest import Felled, Grown, Sawn, board, forester

import canvasbus.events  # noqa: F401  declares them
from canvasbus import Event
from canvasbus.contract.registry import EventType, Registry, registry
from canvasbus.operate import schemas
from canvasbus.operate.asyncapi import Bus, Described, describe
from canvasbus.transport.address import parse
from canvasbus.wire.keys import Keys
from canvasbus.worker import Worker

OURS = [one for one in registry if one.cls.__module__.startswith("canvasbus.")]


def bus(**more: Any) -> Bus:
    return Bus(**({"title": "Trees", "release": "1.2", "namespace": "woods", "partitions": 1} | more))


def of(*types: type[Event]) -> list[EventType]:
    return [registry.of(cls) for cls in types]


def described(types: list[EventType], *workers: Worker, older: Any = (), **more: Any) -> Described:
    return describe(bus(**more), types, workers, registry, dict(older))


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str) and node["$ref"].startswith("#/"):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from references(inner)


def resolved(document: Any, ref: str) -> Any:
    for part in ref.removeprefix("#/").split("/"):
        document = document[part]
    return document


@pytest.mark.parametrize(
    "found", [described(OURS), described(of(Grown, Felled), forester, board)], ids=["ours", "yours"]
)
def test_every_reference_leads_somewhere(found: Described) -> None:
    """And the document is plain JSON, the same each time."""
    document = json.loads(json.dumps(found.document))
    assert document == found.document
    refs = set(references(document))
    assert len(refs) > 10
    for ref in refs:
        resolved(document, ref)


def test_every_topic_is_a_channel() -> None:
    """Each event that comes along, with the key of its stream as the address and its versions as messages."""
    document = described(OURS, namespace="canvasbus").document
    assert set(document["channels"]) == {one.name for one in OURS}
    assert len(document["channels"]) == 24
    (tag,) = document["components"]["parameters"]["partition"]["enum"]
    for name, channel in document["channels"].items():
        assert channel["address"].replace("{partition}", tag).encode() == Keys("canvasbus").stream(name)
        assert channel["parameters"] == {"partition": {"$ref": "#/components/parameters/partition"}}
        assert list(channel["messages"]) == [f"{name}.v1"]
    assert document["channels"]["drift.detected"]["x-key"] == "model_name"


def test_each_partition_is_a_value() -> None:
    """With as many partitions as there are."""
    parameter = described(OURS, partitions=3).document["components"]["parameters"]["partition"]
    assert parameter["enum"] == ["{woods:0}", "{woods:1}", "{woods:2}"]
    assert {parameter["default"]} <= set(parameter["enum"])


@pytest.mark.parametrize("types", [OURS, of(Grown, Felled, Sawn)], ids=["ours", "yours"])
def test_payloads_say_in_draft_7_what_the_schemas_say(types: list[EventType]) -> None:
    """By an independent validator: each example is accepted, and refused as soon as a field of it has another type."""
    document = described(types).document
    for name, message in document["components"]["messages"].items():
        validator = Draft7Validator({**message["payload"], "components": document["components"]})
        (example,) = message["examples"]
        validator.validate(example["payload"])
        for field, value in example["payload"].items():
            wrong = {**example["payload"], field: 7 if isinstance(value, str) else "wrong" if value != "wrong" else 7}
            assert not validator.is_valid(wrong), (name, field)
        headers = Draft7Validator({**message["headers"], "components": document["components"]})
        headers.validate(example["headers"])
        for change in ({"type": "other.type"}, {"dataschema": "urn:canvasbus:x/v1"}, {"id": 3}, {"specversion": "0.3"}):
            assert not headers.is_valid({**example["headers"], **change})


def test_the_golden_examples_are_messages_of_it() -> None:
    """Each object in schemas/, split into attributes and data, is what headers and payload describe."""
    document = described(OURS).document
    folder = schemas.read(Path(__file__).parent.parent.parent / "schemas")
    for name, version in schemas.versions(folder):
        message = document["components"]["messages"][f"{name}.v{version}"]
        attributes = json.loads(folder[f"{name}/v{version}.example.json"])
        for part, value in (("payload", attributes.pop("data")), ("headers", attributes)):
            Draft7Validator({**message[part], "components": document["components"]}).validate(value)
        assert attributes.keys() <= document["components"]["schemas"]["CloudEvent"]["properties"].keys()


def test_a_type_within_itself_and_names_that_are_words_of_json_schema() -> None:
    """References lead to components, fields called `properties` and `discriminator` stay what they are."""
    schemas = described(of(Grown)).document["components"]["schemas"]
    assert set(schemas) == {
        "CloudEvent",
        *(f"async.grown.v1{part}" for part in ("", ".Leaf", ".Branch", ".Box_int_", ".Point")),
    }
    fields = schemas["async.grown.v1"]["properties"]
    assert fields["properties"]["maxLength"] == 30 and fields["discriminator"]["default"] == "prefixItems"
    items = schemas["async.grown.v1.Branch"]["properties"]["children"]["items"]
    assert {option["$ref"] for option in items["anyOf"]} == {
        "#/components/schemas/async.grown.v1.Branch",
        "#/components/schemas/async.grown.v1.Leaf",
    }


def test_workers_receive_and_send() -> None:
    """What a group handles, by name and by glob, and what its handlers' annotations say that they return; only that, when
    no types are named."""
    document = described([], forester, board).document
    operations = document["operations"]
    assert set(document["channels"]) == {"async.grown", "async.felled", "async.sawn"}
    assert set(operations) == {
        *(f"send-async.{name}" for name in ("grown", "felled", "sawn")),
        "receive-async.grown-by-forester",
        "receive-async.sawn-by-forester",
        "send-async.felled-by-forester",
        "receive-async.felled-by-board",
    }
    received = operations["receive-async.grown-by-forester"]
    assert (received["action"], received["summary"]) == ("receive", "Fell what has grown.")
    assert received["channel"] == {"$ref": "#/channels/async.grown"}
    assert received["messages"] == [{"$ref": "#/channels/async.grown/messages/async.grown.v1"}]
    assert (received["x-redis"]["group"], received["x-redis"]["start"]) == ("forester", "2026-01-01T00:00:00+00:00")
    sent = operations["send-async.felled-by-forester"]
    assert (sent["action"], sent["summary"]) == ("send", "Returned by fell.")
    assert operations["receive-async.felled-by-board"]["x-redis"]["group-per-process"] is True


def test_older_versions_come_from_the_folder() -> None:
    """What is read and has no Struct any more is a message by its schema; where there is none, that is told."""
    old = {"title": "async.felled", "type": "object", "properties": {"tree": {"type": "string"}}, "required": ["tree"]}
    found = described(of(Felled), older={("async.felled", 2): old, ("async.felled", 1): {}})
    assert found.unknown_versions == []
    messages = found.document["components"]["messages"]
    assert set(messages) == {"async.felled.v2", "async.felled.v3"}
    assert messages["async.felled.v2"]["headers"]["required"] == ["type", "dataschema"]
    assert found.document["components"]["schemas"]["async.felled.v2"]["required"] == ["tree"]
    assert len(found.document["operations"]["send-async.felled"]["messages"]) == 2
    found = described(of(Felled))
    assert found.unknown_versions == [("async.felled", 2)]
    assert set(found.document["components"]["messages"]) == {"async.felled.v3"}


def test_what_nobody_declares_is_told() -> None:
    """A type that a worker names as text."""
    worker = Worker("early")
    worker.on("async.not_yet")(lambda event: None)
    found = describe(bus(), [], [worker], Registry(), {})
    assert (found.unknown_types, found.document["channels"]) == (["async.not_yet"], {})


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("redis://lab", {"bus": {"host": "lab:6379", "protocol": "redis"}}),
        ("rediss://[::1]:7000/3", {"bus": {"host": "[::1]:7000", "protocol": "rediss", "pathname": "/3"}}),
        ("unix:///run/redis.sock", {"bus": {"host": "localhost", "protocol": "unix", "pathname": "/run/redis.sock"}}),
        ("memory://", None),
        ("off://", None),
    ],
)
def test_the_server(url: str, servers: Any) -> None:
    """Its place and its protocol; none where there is none."""
    assert described(OURS, address=parse(url)).document.get("servers") == servers


@pytest.mark.parametrize(
    "url",
    [
        "redis://mia:hidden@lab:6379/2",
        "redis://:hidden@lab",
        "redis://lab?username=mia&password=hidden",
        "unix://mia:hidden@/run/redis.sock",
        "rediss+sentinel://mia:hidden@a,b:7/studio?sentinel_username=mia&sentinel_password=hidden",
    ],
)
def test_no_secret_is_told(url: str) -> None:
    """Neither password nor user name; that one needs them is."""
    document = described(OURS, address=parse(url)).document
    assert "hidden" not in json.dumps(document) and "mia" not in json.dumps(document)
    for server in document["servers"].values():
        assert server["security"] == [{"$ref": "#/components/securitySchemes/user"}]
    assert document["components"]["securitySchemes"] == {"user": {"type": "userPassword"}}
    if "sentinel" in url:
        assert [server["host"] for server in document["servers"].values()] == ["a:26379", "b:7"]
