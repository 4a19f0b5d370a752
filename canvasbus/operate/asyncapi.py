"""The topics and workers of a bus as an AsyncAPI 3.0.0 document: what to read, without Python, to know who says what to whom.

    server      where the bus is; never who we are there
    channel     a topic, which is one stream in each partition
    message     a version of an event: its data as the payload, the attributes of the CloudEvents object as the headers
    operation   send: anybody may publish a topic; and what a worker's handlers say that they return
                receive: a worker, which is a consumer group, handles a topic

A key of the bus has braces in it (`{canvasbus:0}:stream:drift.detected`), and in an address braces are parameters. So the
braces and what is in them are the values of one parameter, `partition`: with a value put in, an address is the key itself.

Payloads are the schemas of `canvasbus schema export`, told in AsyncAPI's own dialect, which is a superset of draft 7 (the
parser knows no 2020-12): definitions are components, tuples are lists of items, a reference has nothing beside it. There
are no bindings, since AsyncAPI's for Redis must be empty so far; what Redis has to know stands in `x-redis`.
"""

import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from canvasbus.consume.handlers import Handler, Worker
from canvasbus.consume.instances import PER_INSTANCE
from canvasbus.contract.event import Event
from canvasbus.contract.example import example
from canvasbus.contract.raw import builtins
from canvasbus.contract.registry import EventType, Registry, schema_id
from canvasbus.contract.schema import Schema, document
from canvasbus.errors import ContractError, EncodeError
from canvasbus.transport.address import Address, place
from canvasbus.wire.keys import Keys

Older = Mapping[tuple[str, int], Schema]
"""Schemas of versions that the code has no Struct for any more, as a folder keeps them."""

_ATTRIBUTES = "CloudEvent"
_STORY = "correlation"
_USER = "user"


@dataclass(frozen=True, slots=True)
class Bus:
    """What is to be described."""

    title: str
    release: str
    """The version of what is described, in the words of whoever releases it."""
    namespace: str
    partitions: int
    address: Address | None = None
    """None: nobody said where it is."""


@dataclass(slots=True)
class Described:
    """The document, and what it could not say."""

    document: dict[str, Any]
    unknown_types: list[str] = field(default_factory=list)
    """Types that a worker names and nobody declares."""
    unknown_versions: list[tuple[str, int]] = field(default_factory=list)
    """Versions that are read and of which there is neither a Struct nor a schema."""


def describe(
    bus: Bus, types: Iterable[EventType], workers: Iterable[Worker], known: Registry, older: Older
) -> Described:
    """Describe these types, and those that the workers receive and send. Raises ContractError for a type that has no
    JSON Schema."""
    workers = list(workers)
    result = Described({})
    topics: dict[str, EventType] = {}
    for name in {one.name for one in types} | {name for worker in workers for name in _touched(worker, known)}:
        newest = known.latest(name)
        if newest is None:
            result.unknown_types.append(name)
        else:
            topics[name] = newest
    result.unknown_types.sort()
    channels, messages, schemas, operations = {}, {}, {_ATTRIBUTES: _attributes()}, {}
    for name, newest in sorted(topics.items()):
        versions = dict(_versions(newest, known, older))
        result.unknown_versions += [(name, v) for v, schema in versions.items() if schema is None]
        ours = {v: schema for v, schema in versions.items() if schema is not None}
        for version, schema in ours.items():
            messages[_message_id(name, version)] = _message(name, version, schema, known)
            schemas |= _components(_message_id(name, version), schema)
        channels[name] = _channel(newest, ours)
        operations[f"send-{name}"] = {
            "action": "send",
            "summary": f"Anybody may publish {name}.",
            **_said_on(name, ours),
            "x-redis": {"command": "XADD", "field": "e"},
        }
        for worker in workers:
            operations |= _operations(worker, name, ours)
    servers = _servers(bus.address)
    secured = any("security" in server for server in servers.values())
    told = {
        "asyncapi": "3.0.0",
        "id": f"urn:canvasbus:{bus.namespace}",
        "info": {"title": bus.title, "version": bus.release, "description": _ABOUT},
        "defaultContentType": "application/json",
        **({"servers": servers} if servers else {}),
        "channels": channels,
        "operations": dict(sorted(operations.items())),
        "components": {
            "messages": messages,
            "schemas": dict(sorted(schemas.items())),
            "parameters": {"partition": _partition(bus)},
            "correlationIds": {
                _STORY: {"description": "What the event belongs to.", "location": "$message.header#/correlationid"}
            },
            **({"securitySchemes": {_USER: {"type": "userPassword"}}} if secured else {}),
        },
    }
    result.document = msgspec.json.decode(msgspec.json.encode(told))  # defaults and examples have tuples in them
    return result


_ABOUT = (
    "Events on Redis Streams. An entry has one field, `e`, whose value is a CloudEvents 1.0 object in JSON (the headers "
    "below are its attributes, the payload is its `data`; `type` and `data` are enough), or the same as a msgpack array: "
    "id, type, version, source, key, causationid, traceparent, data, expiry in seconds. The first byte tells them apart."
)


def _touched(worker: Worker, known: Registry) -> Iterator[str]:
    for handler in worker.handlers:
        yield from handler.types
        if handler.globs:
            yield from (name for name in known.names() if worker.handler_for(name) is handler)
        yield from _returned(handler)


def _returned(handler: Handler) -> set[str]:
    """The types that a handler says it returns: the events in its annotation, however deep."""
    try:
        hints = typing.get_type_hints(getattr(handler.function, "func", handler.function))
    except (NameError, TypeError, AttributeError):
        return set()  # names that only a type checker sees
    return set(_events_in(hints.get("return")))


def _events_in(hint: Any) -> Iterator[str]:
    if isinstance(hint, type) and issubclass(hint, Event) and "__event_type__" in vars(hint):
        yield hint.__event_type__.name  # type: ignore[attr-defined]
    for inner in typing.get_args(hint):
        yield from _events_in(inner)


def _versions(newest: EventType, known: Registry, older: Older) -> Iterator[tuple[int, Schema | None]]:
    for version in range(newest.upcasters.since, newest.version + 1):
        declared = known.get(newest.name, version)
        yield version, document(declared) if declared is not None else older.get((newest.name, version))


def _message_id(name: str, version: int) -> str:
    return f"{name}.v{version}"


def _channel(newest: EventType, versions: Mapping[int, Schema]) -> dict[str, Any]:
    about = str(versions[newest.version].get("description", ""))
    key = versions[newest.version].get("x-key")
    return {
        "address": "{partition}:stream:" + newest.name,
        "title": newest.name,
        **_words(about),
        "messages": {
            _message_id(newest.name, version): {"$ref": f"#/components/messages/{_message_id(newest.name, version)}"}
            for version in versions
        },
        "parameters": {"partition": {"$ref": "#/components/parameters/partition"}},
        **({"x-key": key} if key else {}),
    }


def _words(about: str) -> dict[str, str]:
    """The first line of a docstring, and all of it."""
    first, _, rest = about.strip().partition("\n")
    return {**({"summary": first} if first else {}), **({"description": about.strip()} if rest.strip() else {})}


def _message(name: str, version: int, schema: Schema, known: Registry) -> dict[str, Any]:
    declared = known.get(name, version)
    return {
        "name": name,
        "title": f"{name} v{version}",
        **_words(str(schema.get("description", ""))),
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "allOf": [{"$ref": f"#/components/schemas/{_ATTRIBUTES}"}],
            "properties": {
                "type": {"type": "string", "const": name},
                "dataschema": {"type": "string", "const": schema_id(name, version)},
            },
            "required": ["type", "dataschema"] if version > 1 else ["type"],
        },
        "payload": {"$ref": f"#/components/schemas/{_message_id(name, version)}"},
        "correlationId": {"$ref": f"#/components/correlationIds/{_STORY}"},
        **(_examples(declared) if declared is not None else {}),
    }


def _examples(declared: EventType) -> dict[str, Any]:
    try:
        data = builtins(example(declared))
    except (ContractError, EncodeError):
        return {}  # `canvasbus schema export` says what to do about it
    attributes = {
        "specversion": "1.0",
        "type": declared.name,
        "time": data.pop("occurred_on"),
        "dataschema": schema_id(declared.name, declared.version),
        "correlationid": data.pop("correlation_id"),
    }
    return {"examples": [{"headers": attributes, "payload": data}]}


def _said_on(name: str, versions: Iterable[int]) -> dict[str, Any]:
    return {
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{_message_id(name, version)}"} for version in versions],
    }


def _operations(worker: Worker, name: str, versions: Iterable[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What one worker does with one topic. (No type has a dash in its name, so no two operations have one id.)"""
    tags = [{"name": worker.name, "description": f"The worker and consumer group {worker.name}."}]
    handler = worker.handler_for(name)
    if handler is not None:
        start = handler.start if isinstance(handler.start, str) else handler.start.isoformat()
        yield (
            f"receive-{name}-by-{worker.name}",
            {
                "action": "receive",
                **_words(_doc(handler)),
                **_said_on(name, versions),
                "tags": tags,
                "x-redis": {
                    "command": "XREADGROUP",
                    "group": worker.name,
                    "group-per-process": worker.group is PER_INSTANCE,
                    "start": start,
                },
            },
        )
    senders = [handler for handler in worker.handlers if name in _returned(handler)]
    if senders:
        newest = max(versions)  # handlers know no other
        yield (
            f"send-{name}-by-{worker.name}",
            {
                "action": "send",
                "summary": f"Returned by {', '.join(handler.name for handler in senders)}.",
                **_said_on(name, [newest]),
                "tags": tags,
            },
        )


def _doc(handler: Handler) -> str:
    return inspect.getdoc(getattr(handler.function, "func", handler.function)) or f"Handled by {handler.name}."


def _partition(bus: Bus) -> dict[str, Any]:
    tags = [Keys(bus.namespace, number).topics.decode().removesuffix(":topics") for number in range(bus.partitions)]
    about = "The namespace and the partition, which is the CRC-32 of the key modulo their number; 0 without a key."
    return {"description": about, "enum": tags, "default": tags[0]}


def _servers(address: Address | None) -> dict[str, Any]:
    """Host, port, database and protocol; whether one has to say who one is, never who that is."""
    if address is None or address.scheme in ("memory", "off"):
        return {}
    security = {"security": [{"$ref": f"#/components/securitySchemes/{_USER}"}]}
    secured = security if address.password is not None or address.username is not None else {}
    if address.sentinels:
        path = f"/{address.master}" + (f"/{address.db}" if address.db else "")
        common = {"protocol": address.scheme, "pathname": path, "description": "One of the sentinels.", **secured}
        return {
            f"sentinel-{number}": {"host": place(*one), **common} for number, one in enumerate(address.sentinels, 1)
        }
    if address.path is not None:
        return {"bus": {"host": "localhost", "protocol": "unix", "pathname": address.path, **secured}}
    path_of = {"pathname": f"/{address.db}"} if address.db else {}
    return {"bus": {"host": place(address.host, address.port), "protocol": address.scheme, **path_of, **secured}}


def _attributes() -> Schema:
    """The attributes of every event, by `canvasbus.wire.cloudevents`."""

    def text(about: str, **more: Any) -> Schema:
        return {"type": "string", "description": about, **more}

    return {
        "type": "object",
        "description": "The attributes of a CloudEvents 1.0 object.",
        "properties": {
            "specversion": text("The version of CloudEvents.", const="1.0"),
            "id": text("Names the event; a UUID where canvasbus made it. Default: made of its place on the stream."),
            "source": text("Who published it.", format="uri-reference"),
            "type": text("The event type, which is the topic, too."),
            "time": text("When it happened. Default: when the server took it.", format="date-time"),
            "subject": text("The key, which orders and partitions."),
            "partitionkey": text("The key again, for bridges."),
            "dataschema": text("Names the version. Default: version 1.", format="uri"),
            "correlationid": text("What it belongs to. Default: the event's own id."),
            "causationid": text("The id of the event whose handler made it."),
            "traceparent": text("W3C trace context."),
            "expirytime": text("From when on consumers skip it. Default: never.", format="date-time"),
        },
        "required": ["type"],
    }


def _components(name: str, schema: Schema) -> dict[str, Schema]:
    """A 2020-12 document as components in AsyncAPI's dialect."""
    parts = schema.get("$defs", {})
    names = {f"#/$defs/{part}": f"{name}.{re.sub('[^A-Za-z0-9._-]', '_', part)}" for part in parts} | {"#": name}
    root = {key: value for key, value in schema.items() if key not in ("$schema", "$id", "$defs")}
    return {name: _retold(root, names)} | {
        names[f"#/$defs/{part}"]: _retold(inner, names) for part, inner in parts.items()
    }


def _retold(node: Any, names: Mapping[str, str]) -> Any:
    """One schema; only where schemas are is anything changed, since a field may be called `items`, too."""
    if not isinstance(node, dict):
        return node
    told: Schema = {}
    for key, value in node.items():
        match key:
            case "$ref":
                told["allOf"] = [{"$ref": f"#/components/schemas/{names[value]}"}]
            case "properties" | "patternProperties":
                told[key] = {name: _retold(inner, names) for name, inner in value.items()}
            case "anyOf" | "allOf" | "oneOf":
                told[key] = [_retold(inner, names) for inner in value]
            case "prefixItems":
                told["items"] = [_retold(inner, names) for inner in value]
                told["additionalItems"] = _retold(node.get("items", True), names)
            case "items" | "additionalProperties" | "propertyNames":
                told.setdefault(key, _retold(value, names))
            case "discriminator":
                pass  # OpenAPI's, an object; AsyncAPI's is a text, and the tags are constants anyway
            case _:
                told[key] = value
    return told["allOf"][0] if told.keys() == {"allOf"} and "$ref" in node else told
