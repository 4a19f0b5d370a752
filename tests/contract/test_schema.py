"""The JSON Schema of an event: valid, complete, and the same every time."""

import subprocess
import sys
from collections.abc import Mapping
from datetime import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import Meta, Struct

from canvasbus import ALLOW_NON_FINITE, Event
from canvasbus.contract.registry import Registry, registry
from canvasbus.contract.schema import document, field_docs, formatted  # noqa: F401  a child process imports it from here
from canvasbus.errors import ContractError
from canvasbus.events import DriftDetected


class Branch(Struct, frozen=True):
    """A part of a tree."""

    leaves: int = 0
    """How many."""
    branches: tuple["Branch", ...] = ()


class Grown(Event, forbid_unknown_fields=True):
    """A tree
    has grown."""

    height: Annotated[float, Meta(ge=0, extra_json_schema={"unit": "m"})]
    """Above the ground,
    in metres."""
    tree: Branch
    digest: Annotated[bytes, Meta(min_length=1, max_length=2)] = b"x"
    hour: time | None = None
    rings: Mapping[int, float] = {}
    tags: frozenset[str] = frozenset({"oak", "old", "tall", "alone"})
    limit: Annotated[float, ALLOW_NON_FINITE] = float("inf")
    kind: str = msgspec.field(name="class", default="oak")
    """Which."""
    told: Annotated[str, Meta(description="By hand.")] = ""
    """Not this."""


@pytest.fixture
def grown() -> Any:
    return document(Registry().register(Grown, "tree.grown", 3, "kind", since=3))


def test_the_head_names_type_version_and_key(grown: Any) -> None:
    """By their names on the wire."""
    assert list(grown)[:4] == ["$schema", "$id", "title", "description"]
    assert grown["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (grown["$id"], grown["title"], grown["x-key"]) == ("urn:canvasbus:tree.grown/v3", "tree.grown", "class")
    assert grown["description"] == "A tree\nhas grown."
    assert grown["required"] == ["height", "tree"] and grown["additionalProperties"] is False


def test_what_is_written_below_a_field_describes_it(grown: Any) -> None:
    """Inherited and nested fields too, units as they are declared; what the type says itself comes first."""
    fields = grown["properties"]
    assert fields["height"]["description"] == "Above the ground, in metres." and fields["height"]["unit"] == "m"
    assert fields["class"]["description"] == "Which."
    assert fields["told"]["description"] == "By hand."
    assert fields["occurred_on"]["description"].startswith("When it happened")
    assert "description" not in fields["tree"]
    assert grown["$defs"]["Branch"]["properties"]["leaves"]["description"] == "How many."


def test_what_json_schema_cannot_say_is_said_beside_it(grown: Any) -> None:
    """The length of bytes, times of the day, keys that are numbers; infinity is no default."""
    fields = grown["properties"]
    assert (fields["digest"]["x-minBytes"], fields["digest"]["x-maxBytes"]) == (1, 2)
    assert fields["hour"]["anyOf"][0] == {"type": "string", "x-type": "time"}
    assert fields["rings"]["x-keys"] == "int"
    assert "default" not in fields["limit"] and fields["tags"]["default"] == ["alone", "oak", "old", "tall"]


def test_a_type_without_source_has_no_texts_for_its_fields() -> None:
    """Classes made at run time, or typed into a prompt."""
    made = msgspec.defstruct("Made", [("it", int)], module="nowhere")
    assert field_docs(made) == {}


def test_an_event_that_holds_itself_points_to_the_whole() -> None:
    """There is no second copy of the event among its parts."""

    class Answer(Event):
        replies: tuple["Answer", ...] = ()

    Answer.__annotations__["replies"] = tuple[Answer, ...]
    Reply = type(Event)(
        "Reply", (Event,), {"__annotations__": {"to": "Reply | None"}, "to": None, "__module__": __name__}
    )
    globals()["Reply"] = Reply
    made = document(Registry().register(Reply, "letter.replied", 1, None))
    assert made["properties"]["to"]["anyOf"][0] == {"$ref": "#"} and "$defs" not in made


def test_a_default_that_json_has_no_word_for_is_refused() -> None:
    """As an error of the declaration, with the type's name."""

    class Odd(Event):
        it: msgspec.Raw = msgspec.Raw(b"")

    with pytest.raises(ContractError, match=r"odd\.one v1 has no JSON Schema"):
        document(Registry().register(Odd, "odd.one", 1, None))


def test_names_that_msgspec_writes_alike_are_refused() -> None:
    """Instead of a KeyError out of its depths."""
    first, second = (msgspec.defstruct(name, [("it", int)], frozen=True) for name in ("Größe", "Gräße"))
    Odd = type(Event)("Odd", (Event,), {"__annotations__": {"a": first, "b": second}, "__module__": __name__})
    with pytest.raises(ContractError, match=r"odd\.one v1 has no JSON Schema: the name of .*rename one"):
        document(Registry().register(Odd, "odd.one", 1, None))


def test_the_same_declaration_gives_the_same_bytes(tmp_path: Path) -> None:
    """In another process, whatever the seed of its hashes."""
    script = "from contract.test_schema import *; import sys; known = Registry()\n"
    script += "sys.stdout.buffer.write(formatted(document(known.register(Grown, 'tree.grown', 3, 'kind', since=3))))"
    path = Path(__file__).parent.parent
    outs = {
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r}); {script}"],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outs) == 1


def test_data_with_and_without_the_bus_s_own_fields_are_valid() -> None:
    """The data of a CloudEvents object, and the payload of an envelope; a wrong one is found."""
    validator = Draft202012Validator(document(registry.of(DriftDetected)))
    Draft202012Validator.check_schema(validator.schema)
    found = DriftDetected(model_name="m", drift_score=0.5, drift_type="psi")
    whole = msgspec.json.decode(msgspec.json.encode(found))
    bare = {name: value for name, value in whole.items() if name not in ("occurred_on", "correlation_id")}
    for good in (whole, bare):
        validator.validate(good)
    assert not validator.is_valid({**bare, "severity": "awful"})
