"""What a field may be, for errors: msgspec says `Invalid enum value 'bad'` and not which values there are."""

import difflib
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

_WRONG = re.compile(r"^Invalid (?:enum )?value (?P<value>.*?) - at `\$(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)` - at `\$(?P<path>.*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<value>[^`]*)` - at `\$(?P<path>.*)`$")
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?:\.\.\.|\d+)\]")
_AT_KEY = re.compile(r"^.* - at `\$(?P<before>[^`]*?)\[\.\.\.\]", re.DOTALL)


def with_choices(error: object, type: Any) -> str:
    """msgspec's words, and for a value that is none of several what these are. `type`: what was decoded."""
    said = str(error)
    if found := _UNKNOWN.match(said):
        values = [name for node in _at(found["path"], type) for name in _keys(node)]
        return f"{said}{near(found['value'], values)}"
    if found := _WRONG.match(said):
        values = [value for node in _at(found["path"], type) for value in _values(node)]
    elif found := _MISSING.match(said):
        values = [value for node in _at(f"{found['path']}.{found['name']}", type) for value in _values(node)]
    if not found or not values:
        return said
    value = found.groupdict().get("value", "").strip("'")
    return f"{said}: use {', '.join(map(str, values))}{near(value, [one for one in values if isinstance(one, str)])}"


def near(word: str, known: list[str]) -> str:
    """A question after what is most alike; empty: nothing is."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def with_keys(error: str, given: Any, convert: Callable[[Any], object]) -> str:
    """msgspec's words with the keys of mappings, for which it writes `[...]`: each is the one that is wrong when it is alone
    there. `convert` raises the error for `given`."""
    while found := _AT_KEY.match(error):
        steps = [step["name"] for step in _STEP.finditer(found["before"])]
        inside = given
        for step in steps:
            inside = inside.get(step) if isinstance(inside, dict) else None
        if not isinstance(inside, dict):
            return error
        for key in inside:
            alone = _put(given, steps, {key: inside[key]})
            try:
                convert(alone)
            except msgspec.ValidationError as again:
                if error.startswith(str(again).partition(" - at ")[0]):
                    given, error = alone, error.replace("[...]", f".{key}", 1)
                    break
        else:
            return error
    return error


def deeper(key: str, type: Any) -> list[str]:
    """Where in the tables of a table's fields a key of that name belongs: `http`, or `sinks.NAME` where they have names."""
    import msgspec.inspect

    return [
        field.encode_name + more
        for field in getattr(msgspec.inspect.type_info(type), "fields", ())
        for more, node in _tables(field.type)
        if any(inner.encode_name == key for inner in node.fields)
    ]


def _tables(node: Any) -> Iterator[tuple[str, Any]]:
    node = _bare(node)
    match node.__class__.__name__:
        case "StructType":
            yield "", node
        case "DictType":
            yield from ((".NAME", inner) for _, inner in _tables(node.value_type))
        case "UnionType":
            for each in node.types:
                yield from _tables(each)


def _put(given: Any, steps: list[str], value: Any) -> Any:
    return value if not steps else {**given, steps[0]: _put(given[steps[0]], steps[1:], value)}


def _at(path: str, type: Any) -> list[Any]:
    """What may lie at a path of msgspec's."""
    import msgspec.inspect  # which only mistakes need

    nodes = [msgspec.inspect.type_info(type)]
    for step in _STEP.finditer(path):
        nodes = [inner for node in nodes for inner in _inner(node, step["name"])]
    return nodes


def _inner(node: Any, name: str | None) -> list[Any]:
    """The types that a step leads to: into the field of that name, or (None) into an item."""
    inside = [one for each in getattr(node, "types", ()) for one in _inner(each, name)]
    if name is not None:
        inside += [field.type for field in getattr(node, "fields", ()) if field.encode_name == name]
        if getattr(node, "tag_field", None) == name:
            inside.append(msgspec.inspect.LiteralType((node.tag,)))
    else:
        inside += [getattr(node, place) for place in ("item_type", "value_type") if hasattr(node, place)]
        inside += getattr(node, "item_types", ())
    return [_bare(one) for one in inside]


def _bare(node: Any) -> Any:
    return getattr(node, "type", node) if node.__class__.__name__ == "Metadata" else node


def _keys(node: Any) -> list[str]:
    if node.__class__.__name__ == "UnionType":
        return [key for each in node.types for key in _keys(each)]
    return [field.encode_name for field in getattr(node, "fields", ())]


def _values(node: Any) -> list[Any]:
    match node.__class__.__name__:
        case "UnionType":
            return [value for each in node.types for value in _values(each)]
        case "LiteralType":
            return list(node.values)
        case "EnumType":
            return [one.value for one in node.cls]
    return []
