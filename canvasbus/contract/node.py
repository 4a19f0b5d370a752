"""One node of an event's JSON Schema, as all questions about it see it: what it refers to, its alternatives, the kind of
value it stands for, and that in words."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from canvasbus.contract.schema import Schema


def resolve(document: Schema, node: Any) -> Any:
    """The node itself, or what its `$ref` leads to in its document."""
    steps = 0
    while isinstance(node, dict) and "$ref" in node:
        steps += 1
        if steps > 100:
            raise ValueError(f"{node['$ref']} leads to itself")
        name = node["$ref"].rpartition("/")[2]
        node = document if node["$ref"] == "#" else document["$defs"][name]
    return node


def options_of(document: Schema, node: Schema) -> Iterator[Schema]:
    """The alternatives of a node; an enumeration is one for each kind of value in it."""
    node = resolve(document, node)
    if "anyOf" in node:
        for option in node["anyOf"]:
            yield from options_of(document, option)
    elif "enum" in node:
        for kind, holds in (("null", type(None)), ("integer", int), ("string", str)):
            values = [value for value in node["enum"] if isinstance(value, holds)]
            if values:
                yield {"type": kind} | ({"enum": values} if kind != "null" else {})
    else:
        yield node


def kind_of(node: Schema) -> str:
    """The kind of value that one alternative stands for; two of different kinds differ in what msgspec decodes them from.
    JSON Schema's own types, but `struct` and `map` for objects, and `bytes`, `text` or a format for strings."""
    kind = str(node.get("type", "any"))
    if kind == "string":
        return str(node.get("x-type") or node.get("format") or ("bytes" if "contentEncoding" in node else "text"))
    if kind == "object":
        return "struct" if "properties" in node else "map"
    return kind


def in_words(document: Schema, node: Schema) -> str:
    """A type for people, like `integer >= 0` or `text or null`."""
    return " or ".join(dict.fromkeys(_word(document, option) for option in options_of(document, node)))


def _word(document: Schema, node: Schema) -> str:
    kind = kind_of(node)
    if "enum" in node:
        return _some(map(as_json, node["enum"]))
    if kind == "struct":
        return str(resolve(document, node).get("title", "object"))
    if kind == "array":
        parts = node.get("prefixItems") or ([node["items"]] if isinstance(node.get("items"), dict) else [])
        kind = f"array of {_some(in_words(document, part) for part in parts)}" if parts else "array"
    if kind == "map":
        keys = f"{node['x-keys']} → " if "x-keys" in node else ""
        kind = f"map of {keys}{in_words(document, node.get('additionalProperties', {}))}"
    hidden = ("minLength", "maxLength") if kind == "bytes" else ()  # those of the base64
    limits = (f" {sign} {node[name]}" for name, sign in _SIGNS.items() if name in node and name not in hidden)
    return kind + ",".join(limits)


_SIGNS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "multipleOf": "in steps of",
    "pattern": "like",
    **dict.fromkeys(("minLength", "minItems", "minProperties", "x-minBytes"), "of at least"),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties", "x-maxBytes"), "of at most"),
}


def _some(parts: Iterable[str]) -> str:
    return " | ".join(parts)


def as_json(value: Any) -> str:
    """A value as JSON writes it."""
    return json.dumps(value, ensure_ascii=False)
