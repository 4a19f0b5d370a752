"""Two JSON Schemas of one event type: what changed, and who can still read whom. Pure functions over two documents.

The words are Confluent's:

    BACKWARD   new readers read old data: upgrade the workers first
    FORWARD    old readers read new data: upgrade the producers first
    FULL       both
    BREAKING   neither

"Reads" means that every document which the writer's schema allows is decoded by msgspec as the reader's type, from
msgpack and from JSON. `reads` answers that exactly, except that it says no, to be on the safe side, where

    two different patterns, or different steps of multipleOf, may still mean the same texts and numbers
    bounds leave so few values that a type of another kind could hold them all
    objects become maps or maps become objects

(tests/contract/test_compatibility.py compares it with what msgspec does). Whether a change may be made in place is another
question, answered by the rule: a field with a default that is *added* may; everything else is a new version, also where
old and new can be decoded, because the same bytes would not mean the same before and after.
"""

import enum
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two schemas."""

    path: str
    """The field, like `model_name` or `arrays{}.shape`; empty: the event as a whole."""
    what: str
    """What happened to it, as the rest of a sentence."""
    verdict: Verdict
    in_place: bool
    """The rule allows it without a new version."""

    def __str__(self) -> str:
        return f"{f'field {self.path!r} ' if self.path else ''}{self.what}"


def verdict(old: Schema, new: Schema) -> Verdict:
    """Who can read whom."""
    return Verdict.of(backward=reads(new, old), forward=reads(old, new))


def reads(reader: Schema, writer: Schema) -> bool:
    """Does `reader` read every document that `writer` allows?"""
    return _Reading(reader, writer).node(reader, writer)


def problem(schema: Schema) -> str | None:
    """Why a document that a person may have changed is not to be compared: it is not what `document` writes. None: it is."""
    try:
        reads(schema, schema)
        changes(schema, schema)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError, StopIteration) as error:
        return f"{type(error).__name__}: {error}"
    return None


def changes(old: Schema, new: Schema) -> list[Change]:
    """Every difference but those of documentation, in the order of the fields; none: the same contract."""
    found = list(_Comparing(old, new).node(old, new, ""))
    if old.get("x-key") != new.get("x-key"):
        what = f"is ordered and partitioned by {_key(new)} instead of {_key(old)}"
        found.insert(0, Change("", what, Verdict.FULL, in_place=False))
    return found


def _key(schema: Schema) -> str:
    return repr(schema["x-key"]) if "x-key" in schema else "nothing"


def _resolve(document: Schema, node: Any) -> Any:
    steps = 0
    while isinstance(node, dict) and "$ref" in node:
        steps += 1
        if steps > 100:
            raise ValueError(f"{node['$ref']} leads to itself")
        name = node["$ref"].rpartition("/")[2]
        node = document if node["$ref"] == "#" else document["$defs"][name]
    return node


def _options(document: Schema, node: Schema) -> Iterator[Schema]:
    """The alternatives of a node; an enumeration is one for each kind of value in it."""
    node = _resolve(document, node)
    if "anyOf" in node:
        for option in node["anyOf"]:
            yield from _options(document, option)
    elif "enum" in node:
        for kind, holds in (("null", type(None)), ("integer", int), ("string", str)):
            values = [value for value in node["enum"] if isinstance(value, holds)]
            if values:
                yield {"type": kind} | ({"enum": values} if kind != "null" else {})
    else:
        yield node


def _kind(node: Schema) -> str:
    kind = str(node.get("type", "any"))
    if kind == "string":
        return str(node.get("x-type") or node.get("format") or ("bytes" if "contentEncoding" in node else "text"))
    if kind == "object":
        return "struct" if "properties" in node else "map"
    return kind


# --- who reads whom ---------------------------------------------------------------------------------------------------


class _Reading:
    """One question: does this reader read that writer? Types that contain themselves are taken to, until the contrary
    is found."""

    def __init__(self, reader: Schema, writer: Schema) -> None:
        self._reader, self._writer = reader, writer
        self._asked: set[tuple[int, int]] = set()

    def node(self, reader: Schema, writer: Schema) -> bool:
        targets, options = list(_options(self._reader, reader)), list(_options(self._writer, writer))
        kinds = {_kind(option): option for option in options}
        if "number" in kinds and "integer" not in kinds:
            options.append(_whole(kinds["number"]))
        return all(self._some(targets, option) for option in options)

    def _some(self, targets: list[Schema], writer: Schema) -> bool:
        kind = _kind(writer)
        if any(_kind(target) == "any" for target in targets):
            return True
        if kind == "struct":
            return self._struct_among([t for t in targets if _kind(t) == "struct"], writer)
        for accepted in _accepted(kind):  # msgspec goes by the kind of the value: the first that there is decides
            same = [target for target in targets if _kind(target) == accepted]
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
    if "enum" in reader or _kind(writer) != "text":
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


# --- what changed -----------------------------------------------------------------------------------------------------


class _Comparing:
    """Walks two schemas side by side, down to the fields that differ."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old, self._new = old, new
        self._seen: set[tuple[int, int]] = set()

    def node(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        before, after = list(_options(self._old, old)), list(_options(self._new, new))
        inner = [[o for o in options if _kind(o) != "null"] for options in (before, after)]
        if len(before) - len(inner[0]) == len(after) - len(inner[1]) and len(inner[0]) == len(inner[1]) == 1:
            yield from self._same_place(inner[0][0], inner[1][0], old, new, path)
        elif not self._same(old, new):
            yield self._became(old, new, path)

    def _same_place(self, old: Schema, new: Schema, was: Schema, now: Schema, path: str) -> Iterator[Change]:
        kind = _kind(old)
        if kind == _kind(new) == "struct":
            yield from self._struct(old, new, path)
        elif kind == _kind(new) == "array" and _rest(old, "items") == _rest(new, "items") and "prefixItems" not in old:
            yield from self.node(old.get("items", {}), new.get("items", {}), f"{path}[]")
        elif kind == _kind(new) == "map" and _rest(old, "additionalProperties") == _rest(new, "additionalProperties"):
            was, now = (node.get("additionalProperties", {}) for node in (old, new))
            yield from self.node(was, now, f"{path}{{}}")
        elif not self._same(was, now):
            yield self._became(was, now, path)

    def _struct(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        if (id(old), id(new)) in self._seen:
            return
        self._seen.add((id(old), id(new)))
        strict_before, strict_after = (node.get("additionalProperties") is False for node in (old, new))
        if strict_before != strict_after:
            what = "unknown fields are refused now" if strict_after else "unknown fields are ignored now"
            yield Change(path, what, Verdict.FULL, in_place=False)
        for name in [*old["properties"], *(name for name in new["properties"] if name not in old["properties"])]:
            where = f"{path}.{name}" if path else name
            if name not in new["properties"]:
                seen = Verdict.of(backward=not strict_after, forward=name not in old["required"])
                yield Change(where, "is gone", seen, in_place=False)
            elif name not in old["properties"]:
                needed = name in new["required"]
                seen = Verdict.of(backward=not needed, forward=not strict_before)
                what = f"came {'without' if needed else 'with'} a default"
                yield Change(where, what, seen, in_place=seen is Verdict.FULL)
            else:
                yield from self._field(name, old, new, where)

    def _field(self, name: str, old: Schema, new: Schema, where: str) -> Iterator[Change]:
        was, now = old["properties"][name], new["properties"][name]
        before, after = (name in node["required"] for node in (old, new))
        if before and not after:
            yield Change(where, "may be left out now", Verdict.BACKWARD, in_place=False)
        elif after and not before:
            yield Change(where, "has no default any more", Verdict.FORWARD, in_place=False)
        elif not after and was.get("default") != now.get("default"):
            what = f"has another default: {_said(now.get('default'))} instead of {_said(was.get('default'))}"
            yield Change(where, what, Verdict.FULL, in_place=False)
        yield from self.node(was, now, where)

    def _became(self, old: Schema, new: Schema, path: str) -> Change:
        backward = _Reading(self._new, self._old).node(new, old)
        forward = _Reading(self._old, self._new).node(old, new)
        before, after = words(self._old, old), words(self._new, new)
        what = f"was {before}, is {after}" if before != after else f"is another {after}"
        return Change(path, what, Verdict.of(backward=backward, forward=forward), in_place=False)

    def _same(self, old: Schema, new: Schema) -> bool:
        return bool(_shape(self._old, old, ()) == _shape(self._new, new, ()))


_KEYWORDS = {
    *("type", "format", "contentEncoding", "pattern", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems"),
    *("minProperties", "maxProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("enum", "required", "x-type", "x-keys", "x-minBytes", "x-maxBytes"),
}


def _rest(node: Schema, *without: str) -> Schema:
    """What a node asks for besides its elements; texts for people do not count."""
    kept = _KEYWORDS | {"propertyNames", "additionalProperties", "prefixItems", "items"}
    return {name: value for name, value in node.items() if name in kept and name not in without}


def _shape(document: Schema, node: Any, above: tuple[int, ...]) -> Any:
    """What a node means, as plain values that can be compared: references followed, documentation left out."""
    node = _resolve(document, node)
    if not isinstance(node, dict):
        return node
    if id(node) in above:
        return above[::-1].index(id(node))  # so many levels up
    above = (*above, id(node))
    shape: dict[str, Any] = {name: value for name, value in node.items() if name in _KEYWORDS}
    for name in ("required", "enum"):
        if name in shape:
            shape[name] = sorted(shape[name], key=repr)
    if "properties" in node:
        shape["properties"] = {name: _shape(document, inner, above) for name, inner in node["properties"].items()}
    for name in ("items", "additionalProperties", "propertyNames"):
        if name in node:
            shape[name] = _shape(document, node[name], above)
    for name in ("anyOf", "prefixItems"):
        if name in node:
            parts = [_shape(document, inner, above) for inner in node[name]]
            shape[name] = parts if name == "prefixItems" else sorted(parts, key=repr)
    return shape


def words(document: Schema, node: Schema) -> str:
    """A type for people, like `integer >= 0` or `text or null`."""
    return " or ".join(dict.fromkeys(_word(document, option) for option in _options(document, node)))


def _word(document: Schema, node: Schema) -> str:
    kind = _kind(node)
    if "enum" in node:
        return _some(map(_said, node["enum"]))
    if kind == "struct":
        return str(_resolve(document, node).get("title", "object"))
    if kind == "array":
        parts = node.get("prefixItems") or ([node["items"]] if isinstance(node.get("items"), dict) else [])
        kind = f"array of {_some(words(document, part) for part in parts)}" if parts else "array"
    if kind == "map":
        keys = f"{node['x-keys']} → " if "x-keys" in node else ""
        kind = f"map of {keys}{words(document, node.get('additionalProperties', {}))}"
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


def _said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
