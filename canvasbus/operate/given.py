"""One event that a person or a file gives as JSON: what `canvasbus publish` takes.

It is read more strictly than on a stream, where strangers may know more than we do: a field that the type does not have is
a slip here, and is refused with the fields that there are.
"""

import difflib
import json
from typing import Any

import msgspec

from canvasbus.choices import with_choices
from canvasbus.contract.event import Event
from canvasbus.contract.registry import Registry, registry
from canvasbus.errors import DecodeError, EncodeError
from canvasbus.wire.cloudevents import BAD_BYTES, Attributes, read_json, said


def from_json(
    value: str | bytes, *, type_name: str | None = None, known: Registry = registry
) -> tuple[Event, Attributes]:
    """Read one event that a person or a file gives: a CloudEvents object, or the bare data with the type named.

    Returns the event and what was said around it: nothing but the type when it was bare data.
    Raises EncodeError, since the move is the giver's: unknown type, unknown or missing field, wrong type.
    """
    try:
        outer = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise EncodeError(f"not JSON: {error}") from error
    if not isinstance(outer, dict):
        raise EncodeError("an event is a JSON object")
    around = Attributes(type_name or "")
    if "specversion" in outer or (type_name is None and ("data" in outer or "data_base64" in outer)):
        try:
            around = read_json(value)
            outer = json.loads(bytes(around.payload()))
        except (DecodeError, ValueError, RecursionError) as error:
            raise EncodeError(said(error)) from error
        if type_name is not None and around.type != type_name:
            raise EncodeError(f"the object says type {around.type!r}, the command says {type_name!r}")
    if not around.type:
        raise EncodeError('the object names no event type: give one, or use {"type": ..., "data": {...}}')
    return _as_newest(outer, around.type, around.event_version, known), around


def _as_newest(fields: Any, type_name: str, version: int | None, known: Registry) -> Event:
    """The newest Struct of fields of this version; of the newest one when none is named."""
    declared = known.latest(type_name)
    if declared is None:
        near = difflib.get_close_matches(type_name, known.names(), n=1, cutoff=0.75)
        hint = f"; did you mean {near[0]!r}?" if near else "; is the module that declares it imported (--module)?"
        raise EncodeError(f"unknown event type {type_name!r}{hint}")
    since, newest = declared.upcasters.since, declared.version
    if version is not None and not since <= version <= newest:
        there = f"v{since} to v{newest} are" if since < newest else f"only v{newest} is"
        raise EncodeError(f"{type_name} v{version} is not known here, {there}")
    surplus = sorted(set(fields) - set(declared.cls.__struct_encode_fields__)) if isinstance(fields, dict) else []
    if version is not None and version < declared.version and isinstance(fields, dict):
        try:
            fields = declared.upcasters(version, fields)  # what a step leaves over is ignored, as on the stream
        except DecodeError as error:
            raise EncodeError(str(error)) from error
    elif surplus:
        raise EncodeError(
            f"{type_name} v{declared.version} has no field {', '.join(map(repr, surplus))}; its fields are "
            + ", ".join(declared.cls.__struct_encode_fields__)
        )
    try:
        return declared.json_decoder.decode(msgspec.json.encode(fields))
    except (*BAD_BYTES, TypeError, msgspec.MsgspecError) as error:
        words = with_choices(said(error), declared.cls)
        raise EncodeError(f"{type_name} v{declared.version}: {words}") from error
