"""What is found when the folder `schemas/` and the code are compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from canvasbus import Event, event
from canvasbus.contract.compatibility import Verdict
from canvasbus.contract.registry import EventType, Registry
from canvasbus.errors import ConfigError
from canvasbus.operate.schemas import Move, against, check, differences, exported, files, read, versions


def declare(known: Registry, hints: dict[str, Any], version: int = 1, **options: Any) -> EventType:
    """`mural.painted` with these fields; those named like a default have one."""
    defaults = {"colours": 7, "wall": "north"}
    names = {"__module__": __name__, "__annotations__": hints} | {n: defaults[n] for n in hints if n in defaults}
    cls: Any = type(Event)(f"Mural{version}", (Event,), names)
    cls.__event_type__ = known.register(cls, "mural.painted", version, None, **options)
    return cls.__event_type__


def world(hints: dict[str, Any], version: int = 1, **options: Any) -> tuple[Registry, dict[str, bytes]]:
    """A process that knows one version, and what it exports."""
    known = Registry()
    return known, files(declare(known, hints, version, **options))


OLD = {"size": int}


def test_a_fresh_folder_is_in_order() -> None:
    """Three files a version; nothing is found in them, also against themselves."""
    known, folder = world(OLD)
    assert sorted(folder) == [
        "mural.painted/v1.example.json",
        "mural.painted/v1.json",
        "mural.painted/v1.wire.hex",
    ]
    assert check(folder, known, known) == against(folder, folder, known) == []


def test_the_example_and_the_bytes_are_the_same_event_in_full() -> None:
    """Id, time, correlation, cause and trace are fixed, and one line of hexadecimal holds the bytes."""
    _, folder = world(OLD)
    shown = json.loads(folder["mural.painted/v1.example.json"])
    assert shown == {
        "specversion": "1.0",
        "id": "0194226e-79fe-7000-8000-00000000ca5e",
        "source": "schemas",
        "type": "mural.painted",
        "time": "2026-01-02T03:04:05.678901Z",
        "dataschema": "urn:canvasbus:mural.painted/v1",
        "correlationid": "0194226e-79fe-7000-8000-00000000c0de",
        "causationid": "0194226e-79fe-7000-8000-00000000cafe",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "data": {"size": 1},
    }
    assert folder["mural.painted/v1.wire.hex"].count(b"\n") == 1


def test_what_is_not_exported_is_found() -> None:
    """A missing file, another contract, other texts: run export."""
    known, folder = world(OLD)
    del folder["mural.painted/v1.wire.hex"]
    (finding,) = [f for f in check(folder, known, known) if f.move is Move.EXPORT]
    assert "mural.painted/v1.wire.hex is not in the folder" in finding.problem

    known, folder = world(OLD)
    after, _ = world({"size": str})
    (finding,) = check(folder, after, after)
    assert (finding.problem, finding.verdict) == ("field 'size' was integer, is text", Verdict.BREAKING)
    assert finding.move is Move.VERSION_OR_EXPORT

    folder["mural.painted/v1.json"] = folder["mural.painted/v1.json"].replace(b"mural.painted", b"mural.painTed")
    (finding,) = check(folder, known, known)
    assert finding.problem == "mural.painted/v1.json is not what the code exports"


def test_a_field_with_a_default_may_be_added_to_what_is_published() -> None:
    """And nothing else: the finding names the field, who can no longer read whom, and the way out."""
    _, published = world(OLD)
    known, folder = world({"size": int, "colours": int})
    assert against(published, folder, known) == []
    for hints, what, seen in (
        ({}, "field 'size' is gone", Verdict.BACKWARD),
        ({"size": float}, "field 'size' was integer, is number", Verdict.BACKWARD),
        ({"size": int, "place": str}, "field 'place' came without a default", Verdict.FORWARD),
    ):
        known, folder = world(hints)
        (finding,) = against(published, folder, known)
        assert (finding.problem, finding.verdict, finding.move) == (what, seen, Move.VERSION)


def test_a_new_version_with_an_upcaster_is_the_way_out() -> None:
    """The old version needs no Struct; its files stay, and are read through the step."""
    _, published = world(OLD)
    known, folder = world({"area": float}, 2, upcast={1: lambda old: {"area": float(old["size"] ** 2)}})
    assert check(published | folder, known, known) == []
    assert against(published, published | folder, known) == []
    seen = differences(published, published | folder, known)
    assert [(d.version, d.what, d.verdict, d.allowed) for d in seen] == [(2, "is new after v1", Verdict.BREAKING, True)]


def test_a_step_that_does_not_read_an_old_example_is_found() -> None:
    """In the folder, and in the baseline even when somebody changed the folder to fit."""
    _, published = world(OLD)
    known, folder = world({"area": float}, 2, upcast={1: lambda old: {"area": old["length"]}})
    for found in (check(published | folder, known, known), against(published, published | folder, known)):
        assert {finding.version for finding in found} == {1} and len(found) == 2
        assert all("raised KeyError: 'length'" in finding.problem for finding in found)
        assert {finding.move for finding in found} == {Move.MEND}


def test_what_is_published_does_not_go_in_silence() -> None:
    """A version that the code no longer reads, a type that it no longer declares, a file that is gone."""
    _, published = world(OLD)
    known, folder = world({"area": float}, 2, upcast={1: lambda old: {"area": 1.0}})
    (finding,) = against(published, folder, known)
    assert (finding.version, finding.problem, finding.move) == (1, "is gone", Move.RESTORE)
    (finding,) = check(published, [], Registry())
    assert "no event of this type is declared" in finding.problem
    older, _ = world(OLD)
    assert any("newest version that is declared is v1" in f.problem for f in check(published | folder, older, older))


def test_a_version_may_be_given_up_in_so_many_words() -> None:
    """since=2 says that nothing of version 1 is left."""
    _, published = world(OLD)
    known, folder = world({"area": float}, 2, since=2)
    assert against(published, folder, known) == []
    (gone, _) = differences(published, folder, known)
    assert gone.allowed and "since=" in gone.what
    assert check(published | folder, known, known) == []


def test_an_example_that_is_another_event_than_the_bytes_is_found() -> None:
    """The two forms keep each other honest."""
    known, folder = world(OLD)
    path = "mural.painted/v1.example.json"
    folder[path] = folder[path].replace(b'"size": 1', b'"size": 2')
    assert any("two different events" in finding.problem for finding in check(folder, known, known))
    folder["mural.painted/v1.wire.hex"] = b"no hex\n"
    assert any("v1.wire.hex cannot be read" in finding.problem for finding in check(folder, known, known))


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_a_spoilt_schema_is_named(content: bytes) -> None:
    """In one line, without a traceback."""
    with pytest.raises(ConfigError, match=r"mural\.painted/v1\.json is no JSON"):
        versions({"mural.painted/v1.json": content})


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"properties":' * 3000 + "1" + "}" * 3000,
        '{"type": "object", "properties": {"size": {"type": "integer"}}}',
        '{"type": "object", "properties": 3, "required": []}',
        '{"type": "object", "required": [], "properties": {"size": {"$ref": "#/$defs/Gone"}}}',
        '{"type": "object", "required": [], "properties": {"size": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}}',
        '{"type": "object", "required": [], "properties": {"size": {"type": "integer", "minimum": "x"}}}',
        '{"type": "object", "required": [], "properties": {"size": {"anyOf": 3}}}',
    ],
    ids=["deep", "deep object", "no required", "no fields", "gone", "loop", "no number", "no options"],
)
def test_a_schema_that_was_changed_by_hand_is_named(content: str) -> None:
    """A merge may do that, too: no traceback, no endless search, but the file that is to be restored."""
    known, folder = world(OLD)
    spoilt = {**folder, "mural.painted/v1.json": content.encode()}
    for look in (lambda: check(spoilt, known, known), lambda: differences(spoilt, folder, known)):
        with pytest.raises(ConfigError, match=r"^mural\.painted/v1\.json is no JSON"):
            look()


def test_a_directory_with_the_name_of_a_schema_is_none(tmp_path: Path) -> None:
    """It is passed by like any other file."""
    (tmp_path / "mural.painted" / "v1.json").mkdir(parents=True)
    assert read(tmp_path) == {}


def test_other_files_are_nobody_s_business() -> None:
    """A README lies there too."""
    assert versions({"README.md": b"", "x/v0.json": b"", "x/notes.json": b"", "X/v1.json": b""}) == {}


def test_an_event_of_the_process_can_be_exported() -> None:
    """As the decorator declares it."""

    @event("mural.cleaned", key="wall")
    class Cleaned(Event):
        wall: str

    content = exported([Cleaned.__event_type__])  # type: ignore[attr-defined]
    assert json.loads(content["mural.cleaned/v1.example.json"])["subject"] == "wall"
