"""An event type as JSON Schema 2020-12: what other languages read, and what versions are compared by.

The schema is msgspec's, with what it leaves out:

    $id, title, x-key       the version's name, the type's name, the field that orders and partitions
    descriptions            of fields too, from the string literal below each, where the source can be had
    x-type, x-keys          times without a zone, and keys that are not text: on the wire they are no plain strings
    x-minBytes, x-maxBytes  the length of bytes; as base64 it is only known to the next three

It describes the data of a CloudEvents object as well as the payload of an envelope, since `occurred_on` and
`correlation_id`, which the former has outside of its data, are not required. The same declaration always gives the same
bytes, so that a schema can be committed and a change of it seen.
"""

import ast
import inspect
import math
import sys
import typing
from functools import lru_cache
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import inspect as mi

from canvasbus.contract.registry import EventType, schema_id
from canvasbus.contract.walk import walk_types
from canvasbus.errors import ContractError

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/{name}"


def document(declared: EventType) -> Schema:
    """The JSON Schema of one version. Raises ContractError for a type that JSON Schema cannot describe."""
    infos = {info.cls: info for info in walk_types(mi.type_info(declared.cls)) if hasattr(info, "fields")}
    classes = [declared.cls, *(cls for cls in infos if cls is not declared.cls)]
    try:
        refs, parts = msgspec.json.schema_components(classes, ref_template=_REF)
    except (TypeError, ValueError) as error:
        raise ContractError(f"{declared.name} v{declared.version} has no JSON Schema: {error}") from error
    except KeyError as error:  # msgspec has lost one of two whose names it writes alike
        raise ContractError(
            f"{declared.name} v{declared.version} has no JSON Schema: the name of {error} differs from another's only in "
            "letters that are not ASCII: rename one of the two"
        ) from error
    names = {cls: ref["$ref"].rpartition("/")[2] for cls, ref in zip(classes, refs, strict=True)}
    for cls, name in names.items():
        _complete(cls, infos[cls], parts[name])
    for part in parts.values():
        if "description" in part:
            part["description"] = inspect.cleandoc(part["description"])
    own = names[declared.cls]
    root = parts.pop(own)
    fields = dict(zip(declared.cls.__struct_fields__, declared.cls.__struct_encode_fields__, strict=True))
    result = {
        "$schema": DIALECT,
        "$id": schema_id(declared.name, declared.version),
        **(root | {"title": declared.name}),
        **({"x-key": fields[declared.key]} if declared.key else {}),
        **({"$defs": {name: parts[name] for name in sorted(parts)}} if parts else {}),
    }
    _point_to_root(result, _REF.format(name=own))
    return result


def formatted(value: Any) -> bytes:
    """A JSON document as it lies in a folder: indented, one line end behind it."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _point_to_root(node: Any, ref: str) -> None:
    """A type that contains itself: what was a part is the document now."""
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        if isinstance(inner, dict) and inner.get("$ref") == ref:
            inner["$ref"] = "#"
        _point_to_root(inner, ref)


def _complete(cls: Any, info: Any, part: Schema) -> None:
    """Say of one Struct, dataclass or NamedTuple what msgspec does not."""
    docs = field_docs(typing.get_origin(cls) or cls)
    for at, field in enumerate(info.fields):
        node = part["properties"][field.encode_name] if "properties" in part else part["prefixItems"][at]
        if field.name in docs:
            node.setdefault("description", docs[field.name])
        if isinstance(field.default, frozenset):
            node["default"] = sorted(node["default"], key=repr)
        if isinstance(field.default, float) and not math.isfinite(field.default):
            del node["default"]  # JSON has no word for it
        _refine(field.type, node)


def _refine(info: Any, node: Any) -> None:
    while isinstance(info, mi.Metadata):
        info = info.type
    if not isinstance(node, dict) or "$ref" in node:
        return
    match info:
        case mi.BytesType():
            limits = {"x-minBytes": info.min_length, "x-maxBytes": info.max_length}
            node |= {name: limit for name, limit in limits.items() if limit is not None}
        case mi.TimeType() if info.tz is None:
            node["x-type"] = "time"
        case mi.CollectionType():
            _refine(info.item_type, node.get("items"))
        case mi.TupleType():
            for inner, item in zip(info.item_types, node.get("prefixItems", ()), strict=False):
                _refine(inner, item)
        case mi.DictType() | mi.FrozenDictType():
            key = _key_kind(info.key_type)
            if key:
                node["x-keys"] = key
            _refine(info.value_type, node.get("additionalProperties"))
        case mi.UnionType():
            _refine_options(info, node)


def _refine_options(info: Any, node: Schema) -> None:
    """The schema's options stand in the order of the types, structs and None behind the others."""
    plain = [inner for inner in map(_bare, info.types) if not isinstance(inner, mi.StructType | mi.NoneType)]
    for inner, option in zip(plain, node.get("anyOf", ()), strict=False):
        _refine(inner, option)


def _bare(info: Any) -> Any:
    while isinstance(info, mi.Metadata):
        info = info.type
    return info


def _key_kind(info: Any) -> str:
    """In one word what kind of key, where it is not text; JSON Schema knows no other."""
    info = _bare(info)
    if isinstance(info, mi.StrType | mi.AnyType):
        return ""
    if isinstance(info, mi.LiteralType):
        values: Any = sorted(info.values, key=repr)
    elif isinstance(info, mi.EnumType):
        values = sorted((member.value for member in info.cls), key=repr)
    else:
        limits = {name: getattr(info, name) for name in info.__struct_fields__ if getattr(info, name) is not None}
        values = [f"{name}={value}" for name, value in limits.items()]
    kind = type(info).__name__.removesuffix("Type").lower()
    return f"{kind} {', '.join(map(str, values))}".strip()


def field_docs(cls: type) -> dict[str, str]:
    """Field → the string literal below it in the source, inherited fields included; nothing where there is no source."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__ not in ("builtins", "msgspec", "typing"):
            found |= _docs_in(base.__module__).get(base.__qualname__, {})
    return found


@lru_cache(maxsize=256)
def _docs_in(module: str) -> dict[str, dict[str, str]]:
    """Qualified name of a class → field → text, for all classes of a module. (Asking `inspect` for each class's source
    parses the whole module each time: 20 ms.)"""
    found: dict[str, dict[str, str]] = {}
    try:
        _collect(ast.parse(inspect.getsource(sys.modules[module])), "", found)
    except (KeyError, OSError, TypeError, SyntaxError):
        pass  # typed into a prompt, or shipped without source
    return found


def _collect(node: Any, inside: str, found: dict[str, dict[str, str]]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            found[inside + child.name] = _literals(child.body)
            _collect(child, f"{inside}{child.name}.", found)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            _collect(child, f"{inside}{child.name}.<locals>.", found)
        else:
            _collect(child, inside, found)


def _literals(body: list[ast.stmt]) -> dict[str, str]:
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
