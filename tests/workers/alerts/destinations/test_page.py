"""The page of the destinations says what is so."""

import base64
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from workers.alerts.destinations.telling import about

import canvasbus_workers.alerts.destinations as destinations
from canvasbus_workers.alerts.destinations.settings import KINDS, Http, read
from canvasbus_workers.alerts.destinations.webhook import Key, form
from canvasbus_workers.outside.secret import Secret

PAGE = (Path(destinations.__file__).parent / "README.md").read_text()


def test_its_settings_are_read() -> None:
    """One table of each kind."""
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    found = read(msgspec.toml.decode(block)["workers"]["alerts"]["destinations"])
    assert {type(one) for one in found.values()} == set(KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_its_line_and_default(kind: str) -> None:
    """In the table, with the kinds that have it where not all do; and nothing that is no setting."""
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", PAGE.partition("## What an answer")[0], re.MULTILINE)
    lines = {key: (default, about) for keys, default, about in rows for key in re.findall(r"`(\w+)`", keys)}
    every = {"kind"} | {field.name for cls in KINDS.values() for field in msgspec.structs.fields(cls)}
    assert set(lines) == every
    common = {field.name for field in msgspec.structs.fields(Http)}
    for field in msgspec.structs.fields(KINDS[kind]):
        default, about = lines[field.name]
        assert field.name in common or f"`{kind}`" in about.partition(":")[0]
        if isinstance(field.default, bool):
            assert default == str(field.default).lower()
        elif field.default == "":
            assert default in ("needed", "none")
        elif isinstance(field.default, float | str):
            assert default.strip("`") == str(field.default)


def test_a_receiver_verifies_as_it_says() -> None:
    """The lines of a receiver, on a request of ours."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    secret = "whsec_" + base64.b64encode(bytes(32)).decode()
    request = form("pager", "cloudevents", [Key(Secret(secret))]).make(about(), b"")
    names: dict[str, Any] = {"secret": secret, "body": request.body, "headers": dict(request.headers)}
    exec(code, names)
    assert names["event"]["data"]["incident_id"] == about().incident_id
