"""Who can still read whom, by two JSON Schemas of one event type.

The words are Confluent's (https://docs.confluent.io/platform/current/schema-registry/fundamentals/schema-evolution.html):

    BACKWARD   new readers read old data: upgrade the workers first
    FORWARD    old readers read new data: upgrade the producers first
    FULL       both
    BREAKING   neither

"Reads" means that every document which the writer's schema allows is decoded by msgspec as the reader's type, from
msgpack and from JSON. `reads` answers that exactly, except that it says no, to be on the safe side, where

    two different patterns, or different steps of multipleOf, may still mean the same texts and numbers
    bounds leave so few values that a type of another kind could hold them all
    a tuple whose elements can never be equal becomes a set of at least two
    objects become maps or maps become objects

(tests/contract/test_compatibility.py compares it with what msgspec does). Whether a change may be made in place is another
question: see `canvasbus.contract.changes`.
"""

import enum
import math
import re
from typing import Any

from canvasbus.contract.node import kind_of, options_of
from canvasbus.contract.schema import Schema

_TEXT_LIKE = ("date", "time", "partial-time", "duration", "decimal")
"""What is text on the wire, in msgpack too (a datetime and a UUID are not)."""


class Verdict(enum.StrEnum):
    """Who can read whom after a change."""

    FULL = "FULL"
    BACKWARD = "BACKWARD"
    FORWARD = "FORWARD"
    BREAKING = "BREAKING"

    @classmethod
    def of(cls, *, backward: bool, forward: bool) -> "Verdict":
        """`backward`: the new reads the old; `forward`: the old reads the new."""
        if backward:
            return cls.FULL if forward else cls.BACKWARD
        return cls.FORWARD if forward else cls.BREAKING

    @property
    def backward(self) -> bool:
        """New readers read old data."""
        return self in (Verdict.FULL, Verdict.BACKWARD)

    @property
    def forward(self) -> bool:
        """Old readers read new data."""
        return self in (Verdict.FULL, Verdict.FORWARD)


def verdict(old: Schema, new: Schema) -> Verdict:
    """Who can read whom."""
    return node_verdict(old, old, new, new)


def node_verdict(old: Schema, was: Schema, new: Schema, now: Schema) -> Verdict:
    """The same of two nodes: `was` of the document `old`, `now` of the document `new`."""
    return Verdict.of(backward=_Reading(new, old).node(now, was), forward=_Reading(old, new).node(was, now))


def reads(reader: Schema, writer: Schema) -> bool:
    """Does `reader` read every document that `writer` allows?"""
    return _Reading(reader, writer).node(reader, writer)


class _Reading:
    """One question: does this reader read that writer? Types that contain themselves are taken to, until the contrary
    is found."""

    def __init__(self, reader: Schema, writer: Schema) -> None:
        self._reader, self._writer = reader, writer
        self._asked: set[tuple[int, int]] = set()

    def node(self, reader: Schema, writer: Schema) -> bool:
        targets, options = list(options_of(self._reader, reader)), list(options_of(self._writer, writer))
        kinds = {kind_of(option): option for option in options}
        if "number" in kinds and "integer" not in kinds:
            options.append(_whole(kinds["number"]))
        return all(self._some(targets, option) for option in options)

    def _some(self, targets: list[Schema], writer: Schema) -> bool:
        kind = kind_of(writer)
        if any(kind_of(target) == "any" for target in targets):
            return True
        if kind == "struct":
            return self._struct_among([t for t in targets if kind_of(t) == "struct"], writer)
        for accepted in _accepted(kind):  # msgspec goes by the kind of the value: the first that there is decides
            same = [target for target in targets if kind_of(target) == accepted]
            if same:
                return any(self._same_kind(accepted, target, writer) for target in same)
        return False

    def _same_kind(self, kind: str, reader: Schema, writer: Schema) -> bool:
        match kind:
            case "integer" | "number":
                return _numbers(reader, writer)
            case "text":
                return _texts(reader, writer)
            case "bytes":
                return _within(reader, writer, "x-minBytes", "x-maxBytes")
            case "array":
                return self._array(reader, writer)
            case "map":
                return self._map(reader, writer)
        return True

    def _array(self, reader: Schema, writer: Schema) -> bool:
        if (id(reader), id(writer)) in self._asked:
            return True
        self._asked.add((id(reader), id(writer)))
        least, most = _lengths(writer, writes=True)
        lower, upper = _lengths(reader, writes=False)
        if least < lower or most > upper:
            return False
        if reader.get("uniqueItems") and not writer.get("uniqueItems") and lower > 1:
            return False  # counted in JSON after doubles are gone
        ends = max(len(writer.get("prefixItems", ())), len(reader.get("prefixItems", ()))) + 1
        pairs = ((_element(reader, at), _element(writer, at)) for at in range(int(min(most, ends))))
        return all(r is None or (w is not None and self.node(r, w)) for r, w in pairs)

    def _map(self, reader: Schema, writer: Schema) -> bool:
        if not _within(reader, writer, "minProperties", "maxProperties"):
            return False
        if writer.get("maxProperties") == 0:
            return True
        if reader.get("x-keys") != writer.get("x-keys"):
            return False
        keys = {"type": "string"}
        if not self.node(keys | reader.get("propertyNames", {}), keys | writer.get("propertyNames", {})):
            return False
        return self.node(reader.get("additionalProperties", {}), writer.get("additionalProperties", {}))

    def _struct_among(self, targets: list[Schema], writer: Schema) -> bool:
        if len(targets) > 1:
            tag = _tag(targets[0], targets[1])
            value = writer["properties"].get(tag, {}).get("enum")
            if tag not in writer["required"]:
                return False
            targets = [target for target in targets if target["properties"][tag]["enum"] == value]
        return any(self._struct(target, writer) for target in targets)

    def _struct(self, reader: Schema, writer: Schema) -> bool:
        if (id(reader), id(writer)) in self._asked:
            return True
        self._asked.add((id(reader), id(writer)))
        known, written = reader["properties"], writer["properties"]
        if not set(reader["required"]) <= set(writer["required"]):
            return False
        if reader.get("additionalProperties") is False and not written.keys() <= known.keys():
            return False
        return all(self.node(known[name], node) for name, node in written.items() if name in known)


def _accepted(kind: str) -> tuple[str, ...]:
    """The kinds of readers that take a value of this kind."""
    if kind == "integer":
        return ("integer", "number", "decimal")
    if kind == "number":
        return ("number", "decimal")
    return (kind, "text") if kind in _TEXT_LIKE else (kind,)


def _tag(one: Schema, other: Schema) -> str:
    """The field by which msgspec tells two Structs of a union apart."""
    return next(
        str(name)
        for name, node in one["properties"].items()
        if name in one["required"]
        and len(node.get("enum", ())) == 1
        and other["properties"].get(name, {}).get("enum", node["enum"]) != node["enum"]
    )


def _whole(node: Schema) -> Schema:
    """A number may be written as 3 instead of 3.0, and is read as an integer then, where the reader knows those."""
    return {**node, "type": "integer"}


def _numbers(reader: Schema, writer: Schema) -> bool:
    if "enum" in writer:
        return all(_holds_number(reader, value) for value in writer["enum"])
    if "enum" in reader:
        return False
    whole = writer["type"] == "integer"
    low, high = _bounds(writer, whole)
    lower, upper = _bounds(reader, whole)
    if whole and low > high:
        return True  # there is none
    step, wanted = writer.get("multipleOf", 1 if whole else None), reader.get("multipleOf")
    fits = wanted is None or step == wanted or (whole and step % wanted == 0)
    return low >= lower and high <= upper and fits


def _bounds(node: Schema, whole: bool) -> tuple[Any, Any]:
    """Lower and upper bound as something that compares: (value, 1) excludes the value from below, (value, -1) from above."""
    low, high = (-math.inf, 0), (math.inf, 0)
    if "minimum" in node:
        low = max(low, (math.ceil(node["minimum"]) if whole else node["minimum"], 0))
    if "exclusiveMinimum" in node:
        bound = node["exclusiveMinimum"]
        low = max(low, (math.floor(bound) + 1, 0) if whole else (bound, 1))
    if "maximum" in node:
        high = min(high, (math.floor(node["maximum"]) if whole else node["maximum"], 0))
    if "exclusiveMaximum" in node:
        bound = node["exclusiveMaximum"]
        high = min(high, (math.ceil(bound) - 1, 0) if whole else (bound, -1))
    return low, high


def _holds_number(reader: Schema, value: int) -> bool:
    if "enum" in reader:
        return value in reader["enum"]
    low, high = _bounds(reader, whole=True)
    return low <= (value, 0) <= high and ("multipleOf" not in reader or value % reader["multipleOf"] == 0)


def _texts(reader: Schema, writer: Schema) -> bool:
    if "enum" in writer:
        return all(_holds_text(reader, value) for value in writer["enum"])
    if "enum" in reader or kind_of(writer) != "text":
        return not {"enum", "minLength", "maxLength", "pattern"} & reader.keys()
    if reader.get("pattern") not in (None, writer.get("pattern")):
        return False
    return _within(reader, writer, "minLength", "maxLength")


def _holds_text(reader: Schema, value: str) -> bool:
    if "enum" in reader:
        return value in reader["enum"]
    if not reader.get("minLength", 0) <= len(value) <= reader.get("maxLength", math.inf):
        return False
    return "pattern" not in reader or re.search(reader["pattern"], value) is not None


def _within(reader: Schema, writer: Schema, least: str, most: str) -> bool:
    return bool(
        writer.get(least, 0) >= reader.get(least, 0) and writer.get(most, math.inf) <= reader.get(most, math.inf)
    )


def _lengths(node: Schema, *, writes: bool) -> tuple[float, float]:
    """Least and most elements. A Struct as an array ends with its last field when written, and ignores more when read."""
    most = node.get("maxItems", math.inf)
    if writes and "items" not in node and "prefixItems" in node:
        most = min(most, len(node["prefixItems"]))
    return node.get("minItems", 0), most


def _element(node: Schema, at: int) -> Schema | None:
    """The schema of one element; None: there is none, or what stands there is ignored."""
    prefix = node.get("prefixItems", ())
    if at < len(prefix):
        found: Schema = prefix[at]
        return found
    if "items" not in node:
        return None if prefix else {}
    return node["items"] if isinstance(node["items"], dict) else None
