"""What a field may be, for errors: msgspec says `Invalid enum value 'bad'` and not which values there are."""

import re
from typing import Any

_ENUM = re.compile(r"^Invalid enum value .*? - at `\$(?P<path>.*)`$", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?:\.\.\.|\d+)\]")


def with_choices(error: object, type: Any) -> str:
    """msgspec's words, and for a value that is none of several what these are. `type`: what was decoded."""
    said = str(error)
    found = _ENUM.match(said)
    if found is None:
        return said
    import msgspec.inspect  # 4 ms, which only mistakes need

    nodes = [msgspec.inspect.type_info(type)]
    for step in _STEP.finditer(found["path"]):
        nodes = [inner for node in nodes for inner in _inner(node, step["name"])]
    values = [value for node in nodes for value in _values(node)]
    return f"{said}: use {', '.join(map(str, values))}" if values else said


def _inner(node: Any, name: str | None) -> list[Any]:
    """The types that a step leads to: into the field of that name, or (None) into an item."""
    inside = [one for each in getattr(node, "types", ()) for one in _inner(each, name)]
    if name is not None:
        inside += [field.type for field in getattr(node, "fields", ()) if field.encode_name == name]
    else:
        inside += [getattr(node, place) for place in ("item_type", "value_type") if hasattr(node, place)]
        inside += getattr(node, "item_types", ())
    return [getattr(one, "type", one) if type(one).__name__ == "Metadata" else one for one in inside]


def _values(node: Any) -> list[Any]:
    match type(node).__name__:
        case "UnionType":
            return [value for each in node.types for value in _values(each)]
        case "LiteralType":
            return list(node.values)
        case "EnumType":
            return [one.value for one in node.cls]
    return []
