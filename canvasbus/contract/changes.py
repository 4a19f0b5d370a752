"""What changed from one JSON Schema of an event type to the next, field by field.

Whether a change may be made in place is another question than who can read whom, answered by the rule: a field with a
default that is *added* may; everything else is a new version, also where old and new can be decoded, because the same bytes
would not mean the same before and after.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from canvasbus.contract.compatibility import Verdict, node_verdict, reads
from canvasbus.contract.node import as_json, in_words, kind_of, options_of, resolve
from canvasbus.contract.schema import Schema


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


class _Comparing:
    """Walks two schemas side by side, down to the fields that differ."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old, self._new = old, new
        self._seen: set[tuple[int, int]] = set()

    def node(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        before, after = list(options_of(self._old, old)), list(options_of(self._new, new))
        inner = [[o for o in options if kind_of(o) != "null"] for options in (before, after)]
        if len(before) - len(inner[0]) == len(after) - len(inner[1]) and len(inner[0]) == len(inner[1]) == 1:
            yield from self._same_place(inner[0][0], inner[1][0], old, new, path)
        elif not self._same(old, new):
            yield self._became(old, new, path)

    def _same_place(self, old: Schema, new: Schema, was: Schema, now: Schema, path: str) -> Iterator[Change]:
        kind = kind_of(old) if kind_of(old) == kind_of(new) else None
        if kind == "struct":
            yield from self._struct(old, new, path)
        elif kind == "array" and _rest(old, "items") == _rest(new, "items") and "prefixItems" not in old:
            yield from self.node(old.get("items", {}), new.get("items", {}), f"{path}[]")
        elif kind == "map" and _rest(old, "additionalProperties") == _rest(new, "additionalProperties"):
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
            what = f"has another default: {as_json(now.get('default'))} instead of {as_json(was.get('default'))}"
            yield Change(where, what, Verdict.FULL, in_place=False)
        yield from self.node(was, now, where)

    def _became(self, old: Schema, new: Schema, path: str) -> Change:
        before, after = in_words(self._old, old), in_words(self._new, new)
        what = f"was {before}, is {after}" if before != after else f"is another {after}"
        return Change(path, what, node_verdict(self._old, old, self._new, new), in_place=False)

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
    node = resolve(document, node)
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
