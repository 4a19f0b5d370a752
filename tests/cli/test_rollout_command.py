"""canvasbus schema can-publish, and what canvasbus groups shows of a rollout."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cli.commands import Run
from studio import Eyes
from versions import LAID, Era, framing
from waiting import until

from canvasbus.bus import EventBus

MODULE = """
from canvasbus import Event, event

@event("mosaic.laid", version=3, upcast={1: dict, 2: dict})
class Laid(Event):
    number: int = 0

@event("mosaic.sold")
class Sold(Event):
    number: int = 0
"""

pytestmark = pytest.mark.usefixtures("quick_hearts")


@pytest.fixture
async def fleet(server_url: str, namespace: str, eyes: Eyes) -> AsyncIterator[tuple[EventBus, EventBus]]:
    """In the middle of a rollout: of framers an old and a new worker run, of the archive only an old one."""
    async with (
        Era(2).running(server_url, framing("framers"), framing("archive"), namespace=namespace) as old,
        Era(3).running(server_url, framing("framers"), namespace=namespace) as new,
    ):
        for group, count in (("framers", 2), ("archive", 1)):
            await until(lambda g=group, n=count: eyes.call("HLEN", eyes.keys.accepts(g)) == n)
        yield old, new


async def test_the_answer_for_people(run: Run, fleet: tuple[EventBus, EventBus]) -> None:
    """One line for all workers of a group that do the same, then whose move it is; the exit code is the answer."""
    old, new = fleet
    (framer, archivist), (newer,) = ([one.consumer for one in bus.statistics()] for bus in (old, new))
    ran = run("schema", "can-publish", "mosaic.laid@3")
    assert ran.code == 1
    assert [line.split() for line in ran.lines] == [
        ["EVENT", "GROUP", "WORKERS", "READ", "AND", "WHO"],
        ["mosaic.laid@3", "archive", "1", "v1–v2", "park", "it", archivist],
        ["mosaic.laid@3", "framers", "1", "v1–v3", "take", "it", newer],
        ["mosaic.laid@3", "framers", "1", "v1–v2", "park", "it", framer],
    ]
    assert ran.err == (
        "mosaic.laid@3: group archive: nobody takes mosaic.laid v3: deploy its workers that know it first\n"
    )
    ran = run("schema", "can-publish", "mosaic.laid@v2")
    assert (ran.code, ran.err) == (0, "mosaic.laid@2 can be published\n") and len(ran.lines) == 4


async def test_the_answer_for_programs(run: Run, fleet: tuple[EventBus, EventBus]) -> None:
    """One object for each group; the move stays on stderr, too."""
    old, _ = fleet
    ran = run("schema", "can-publish", "mosaic.laid@3", "--json")
    archive, framers = ran.records
    assert ran.code == 1 and ran.err.count("\n") == 1
    assert archive == {
        "type": LAID,
        "version": 3,
        "group": "archive",
        "instance": False,
        "fine": False,
        "answer": "parked",
        "move": "nobody takes mosaic.laid v3: deploy its workers that know it first",
        "workers": [{"consumer": old.statistics()[1].consumer, "does": "park", "since": 1, "newest": 2}],
    }
    assert (framers["fine"], framers["answer"], framers["move"]) == (True, "taken", None)
    assert sorted(worker["does"] for worker in framers["workers"]) == ["park", "take"]


async def test_what_a_module_declares_is_asked_for(
    run: Run, fleet: tuple[EventBus, EventBus], unique_module: Callable[[str], str]
) -> None:
    """Without a version the newest that it declares; without a type all of its types, so that a deployment asks about
    what it is about to publish and nobody has to write down numbers."""
    name = unique_module(MODULE)
    ran = run("schema", "can-publish", "mosaic.laid", "--module", name)
    assert ran.code == 1 and "mosaic.laid@3: group archive: nobody takes mosaic.laid v3" in ran.err
    ran = run("schema", "can-publish", "--module", name)
    assert ran.code == 1
    assert [line for line in ran.err.splitlines() if "sold" in line] == [
        f"mosaic.sold: no group reads it in namespace {ran.err.split(chr(39))[1]!r} on {ran.err.split(' on ')[1].split()[0]}",
        "mosaic.sold@1 can be published",
    ]
    ran = run("schema", "can-publish", "mosaic.sold", "--module", name)
    assert (ran.code, ran.out) == (0, "")


@pytest.fixture
def unique_module(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module that can be imported, and whose types are known in this test only."""
    import sys

    import canvasbus.events  # noqa: F401  what is imported within the test would be forgotten with it
    from canvasbus.contract import registry as module

    def write(text: str) -> str:
        (empty_folder / "rollout_events.py").write_text(text)
        monkeypatch.syspath_prepend(str(empty_folder))
        monkeypatch.delitem(sys.modules, "rollout_events", raising=False)
        for attribute in ("_by_name", "_newest", "_by_class"):
            monkeypatch.setattr(module.registry, attribute, dict(getattr(module.registry, attribute)))
        return "rollout_events"

    return write


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("mosaic.laid@x", 2, "'mosaic.laid@x': name a type and a version, like drift.detected@3"),
        ("mosaic.laid@0", 2, "name a type and a version"),
        (
            "mosaic.laid",
            2,
            "no event 'mosaic.laid' is declared here: name its version, like mosaic.laid@2, or --module",
        ),
        ("my_events:Laid", 2, "'my_events:Laid' is no event type: name one, like drift.detected or drift.detected@3"),
        ("", 2, "'' is no event type"),
        ("drift.detectd@1", 1, "drift.detectd: no group reads it in namespace"),
        ("drift.detectd@1", 1, "no module declares it here; did you mean drift.detected?"),
        ("qqq@1", 1, "if it is a new type, name its --module"),
    ],
)
def test_what_cannot_be_asked(run: Run, what: str, code: int, says: str) -> None:
    """One line; a name that nobody knows is an error, since "nobody reads it" would let a misspelt gate stand open."""
    run("schema", "can-publish", what).failed(code, says)


def test_a_type_that_nobody_reads_may_be_published(run: Run) -> None:
    """It is said, for it may be a surprise."""
    ran = run("schema", "can-publish", "drift.detected@1")
    assert (ran.code, ran.out) == (0, "")
    assert "drift.detected: no group reads it in namespace" in ran.err
    assert run("schema", "can-publish").code == 0, "all that come with canvasbus"


def test_a_group_without_workers_is_shown(run: Run, eyes: Eyes) -> None:
    """It hinders nobody; what its next workers know, nobody can tell."""
    eyes.call("XGROUP", "CREATE", eyes.stream(LAID), "archive", "0", "MKSTREAM")
    ran = run("schema", "can-publish", "mosaic.laid@3")
    assert ran.code == 0 and ran.lines[1].split() == ["mosaic.laid@3", "archive", "0", "–", "no", "worker", "runs"]
    assert ran.err.splitlines() == [
        "mosaic.laid@3: group archive: no worker runs: mosaic.laid v3 waits for those to come",
        "mosaic.laid@3 can be published",
    ]


async def test_groups_show_a_rollout(run: Run, fleet: tuple[EventBus, EventBus], eyes: Eyes) -> None:
    """Where workers of a group differ, or events are parked, the notes say what its workers read; --json always does."""
    eyes.put(Era(3).encoded(1), LAID)
    await until(lambda: [owner for _, owner, _ in eyes.pending("archive", LAID)] == ["~v:mosaic.laid:3"])
    ran = run("groups")
    archive, framers = (line for line in ran.lines if "mosaic.laid" in line)
    assert archive.endswith("1 parked for newer workers, 1 worker reads v1–v2")
    assert framers.endswith("1 worker reads v1–v3, 1 worker reads v1–v2")
    (topic,) = run("groups", "framers", "--json").records[0]["topics"]
    assert topic["accepts"] == [{"since": 1, "newest": 3, "workers": 1}, {"since": 1, "newest": 2, "workers": 1}]
