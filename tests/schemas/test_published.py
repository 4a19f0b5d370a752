"""This project's own schemas: every version that lies in the folder can be read, by us and by others."""

import json
from pathlib import Path

import msgspec
import pytest
from jsonschema import Draft202012Validator, FormatChecker

import canvasbus.contract.bus_events
import canvasbus.events
from canvasbus.contract.registry import registry
from canvasbus.operate.schemas import check, read, versions
from canvasbus.wire.codec import Codec

FOLDER = Path(__file__).parent.parent.parent / "schemas"
CONTENT = read(FOLDER)
VERSIONS = versions(CONTENT)
OURS = [one for one in registry if one.cls.__module__.startswith("canvasbus.")]


def test_the_folder_is_what_the_code_exports() -> None:
    """Else: canvasbus schema export."""
    assert check(CONTENT, OURS, registry) == []


def test_every_event_is_there() -> None:
    """The domain's and the bus's own, in their newest version."""
    exports = [getattr(canvasbus.events, name) for name in canvasbus.events.__all__]
    declared = {cls.__event_type__ for cls in exports if hasattr(cls, "__event_type__")}
    assert len(declared) == 24
    assert {(one.name, one.version) for one in declared} <= VERSIONS.keys()


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_examples_and_bytes_of_every_version_decode(name: str, version: int) -> None:
    """Both are the same event, as the newest Struct; the envelopes are the same but for nothing."""
    newest = registry.latest(name)
    assert newest is not None
    found = []
    for value in (
        CONTENT[f"{name}/v{version}.example.json"].strip(),
        bytes.fromhex(CONTENT[f"{name}/v{version}.wire.hex"].decode()),
    ):
        envelope, event = Codec().decode(value, stream_type=name, entry_id="0-1")
        assert type(event) is newest.cls and envelope.version == version
        found.append((msgspec.structs.replace(envelope, data=msgspec.Raw(b"")), event))
    assert found[0] == found[1]


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_every_example_fits_its_schema(name: str, version: int) -> None:
    """By an independent validator; the key field is the subject."""
    schema = VERSIONS[name, version]
    Draft202012Validator.check_schema(schema)
    example = json.loads(CONTENT[f"{name}/v{version}.example.json"])
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(example["data"])
    assert example["dataschema"] == schema["$id"] == f"urn:canvasbus:{name}/v{version}"
    assert example["subject"] == example["data"][schema["x-key"]]


def test_every_field_is_described() -> None:
    """By the text below it, which is where units stand."""
    bare = [
        f"{name}.{field}"
        for (name, _), schema in VERSIONS.items()
        for part in (schema, *schema.get("$defs", {}).values())
        for field, node in part.get("properties", {}).items()
        if not node.get("description")
    ]
    assert bare == []


def test_the_folder_holds_data_only() -> None:
    """Any language reads it; besides the README nothing else is there."""
    others = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()} - CONTENT.keys()
    assert others == {"README.md"}
