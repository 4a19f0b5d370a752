"""canvasbus spool: whose files lie there, what is damaged in them, and sending what the dead left."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.commands import Run
from studio import Eyes, PaintingMade

from canvasbus import Producer
from canvasbus.cli import spool as spool_command
from canvasbus.produce import spoolfolder

NOWHERE = "redis://ada:s3cret@127.0.0.1:1"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def left(spool: Path, namespace: str) -> Path:
    """The folder of a Producer that ended while its server was away, with twenty events in it."""
    bus = Producer(NOWHERE, namespace=namespace, spool=spool)
    bus.publish_many(PaintingMade(number=n) for n in range(20))
    bus.close(timeout=0)
    return spoolfolder.folders(spool)[-1]


@pytest.fixture
def living(spool: Path, namespace: str) -> Iterator[Producer]:
    """A Producer that lives, with one event in its spool."""
    bus = Producer(NOWHERE, namespace=namespace, spool=spool, flush_timeout=0.0)
    bus.publish(PaintingMade(number=99))
    yield bus
    bus.close()


def numbers(eyes: Eyes) -> list[int]:
    return [made.number for made in eyes.events("painting.made")]


def test_list(run_bare: Run, living: Producer, left: Path, spool: Path, namespace: str) -> None:
    """One row for each process that has files there, alive or dead, without a server and without secrets."""
    ran = run_bare("spool", "list", str(spool), "--json")
    alive, dead = ran.records
    assert ran.code == 0
    assert {key: dead[key] for key in ("name", "alive", "namespace", "partitions", "events", "sending", "damaged")} == {
        "name": left.name, "alive": False, "namespace": namespace, "partitions": 1, "events": 20, "sending": 0, "damaged": [],
    }  # fmt: skip
    assert (dead["pid"], dead["server"], dead["settled"]) == (os.getpid(), "redis://ada:***@127.0.0.1:1", 0)
    assert dead["size"] > 2000 and dead["oldest"] is not None
    assert (alive["alive"], alive["events"]) == (True, 1)
    shown = run_bare("spool", "list", str(spool))
    assert shown.code == 0 and len(shown.lines) == 3 and "s3cret" not in shown.out + ran.out
    assert f"alive, pid {os.getpid()}" in shown.lines[1] and "dead" in shown.lines[2]


def test_who_has_adopted_what_a_dead_one_left(run_bare: Run, left: Path, living: Producer, spool: Path) -> None:
    """What a living process has adopted is alive, under its pid."""
    while not living.statistics().recovered:
        living.flush(timeout=0.01)
    found = run_bare("spool", "list", str(spool), "--json").records
    assert [(r["alive"], r["pid"], r["events"]) for r in found] == [(True, os.getpid(), 20), (True, os.getpid(), 1)]


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_what_is_sent_while_it_is_looked_at(
    run_bare: Run, left: Path, spool: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A file that has just been read goes, since its events are stored: it is looked at anew, and nothing is wrong."""
    read, looks = spoolfolder.read_folder, list[Path]()

    def and_settle(path: Path) -> list[spoolfolder.FoundLog]:
        found = read(path)
        looks.append(path)
        if len(looks) == 1:
            (path / "0-00000001.log").unlink()
        return found

    monkeypatch.setattr(spoolfolder, "read_folder", and_settle)
    ran = run_bare("spool", verb, str(spool))
    assert (ran.code, len(looks)) == (0, 2)
    assert "No such file" not in ran.out + ran.err


def test_list_says_when_there_is_nothing(run_bare: Run, tmp_path: Path) -> None:
    """An empty spool is empty; a folder that is not there is a mistake, told in one line."""
    ran = run_bare("spool", "list", str(tmp_path))
    assert (ran.code, ran.out) == (0, "") and "nothing in" in ran.err
    for verb in ("list", "verify"):
        run_bare("spool", verb, str(tmp_path / "no")).failed(2, "/no: No such file")


@pytest.mark.parametrize("verb", ["list", "verify", "drain"])
def test_no_spool(run_bare: Run, left: Path, spool: Path, tmp_path: Path, verb: str) -> None:
    """A folder with something else in it is a mistake, and the spool in a folder of it may be meant; so is no name."""
    spool.rename(tmp_path / "t7")
    (other := tmp_path / "etc").mkdir()
    (other / "passwd").touch()
    run_bare("spool", verb, str(other)).failed(1, f"no spool is in {other}\n")
    run_bare("spool", verb, str(tmp_path)).failed(1, f"no spool is in {tmp_path}; there is one in {tmp_path / 't7'}\n")
    run_bare("spool", verb, "").failed(2, "PATH is empty")


def test_verify(run_bare: Run, living: Producer, left: Path, spool: Path) -> None:
    """A sound spool: 0. A flipped byte: 1, with the file and how much of it can be read; nothing is changed."""
    ran = run_bare("spool", "verify", str(spool))
    assert (ran.code, ran.out) == (0, "") and "2 spools, 21 events to be sent, 0 damaged" in ran.err
    (file,) = left.glob("*.log")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    ran = run_bare("spool", "verify", str(spool), "--json")
    (record,) = ran.records
    assert ran.code == 1 and record["file"] == file.name and 0 < record["intact"] < record["size"] == len(data)
    shown = run_bare("spool", "verify", str(spool))
    assert shown.code == 1 and f"{left.name}/{file.name}: only the first" in shown.out
    assert "1 damaged: canvasbus spool verify" in run_bare("spool", "list", str(spool)).err
    assert file.read_bytes() == data


def test_drain(run: Run, eyes: Eyes, left: Path, spool: Path) -> None:
    """What a dead process left is sent, once, in order; then there is nothing left to drain."""
    ran = run("spool", "drain", str(spool))
    assert ran.code == 0 and ran.out == f"20 of 20 events are on {eyes.server.name} now\n"
    assert numbers(eyes) == list(range(20)) and list(spool.iterdir()) == []
    again = run("spool", "drain", str(spool), "--json")
    assert again.code == 0 and (again.records[0]["recovered"], again.records[0]["stored"]) == (0, 0)
    assert numbers(eyes) == list(range(20))


def test_drain_leaves_the_living_alone(run: Run, eyes: Eyes, living: Producer, left: Path, spool: Path) -> None:
    """The files of a process that lives are refused, and it is said whose they are."""
    ran = run("spool", "drain", str(spool))
    assert ran.code == 0 and f"1 of them belong to living processes (pid {os.getpid()})" in ran.err
    assert numbers(eyes) == list(range(20)) and living.statistics().waiting_events == 1
    assert len(spoolfolder.folders(spool)) == 1


def test_drain_beside_somebody_who_looks(
    run: Run, eyes: Eyes, left: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`canvasbus spool list` has a share of the lock for a moment: what lies there is no living process's for that."""
    with (left / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        monkeypatch.setattr("canvasbus.produce.spoolfolder.time.sleep", lambda _: lock.close())
        assert run("spool", "drain", str(spool)).code == 0
    assert numbers(eyes) == list(range(20))


def test_drain_tells_what_it_leaves(run: Run, eyes: Eyes, left: Path, spool: Path) -> None:
    """Whatever kept it from what a dead process left, it does not say that all is well."""
    with (left / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        ran = run("spool", "drain", str(spool))
    assert ran.code == 1 and f"20 events are left in {spool}: drain once more" in ran.err
    assert numbers(eyes) == []
    assert run("spool", "drain", str(spool)).code == 0 and numbers(eyes) == list(range(20))


def test_drain_in_another_namespace(run: Run, eyes: Eyes, spool: Path) -> None:
    """Only the namespace that the command is told is sent; whoever reads of success shall know of the others."""
    bus = Producer(NOWHERE, namespace="elsewhere", spool=spool)
    bus.publish(PaintingMade())
    bus.close(timeout=0)
    ran = run("spool", "drain", str(spool))
    assert ran.code == 1 and "1 event is left in" in ran.err and "--namespace elsewhere" in ran.err
    assert eyes.count("painting.made") == 0 and len(spoolfolder.folders(spool)) == 1


def test_drain_with_other_partitions(run: Run, eyes: Eyes, spool: Path, namespace: str) -> None:
    """What a producer with more partitions left is not sent into fewer: it is left, and what to do is said."""
    bus = Producer(NOWHERE, namespace=namespace, partitions=2, spool=spool)
    bus.publish_many(PaintingMade(number=n) for n in range(6))
    bus.close(timeout=0)
    ran = run("spool", "drain", str(spool))
    assert ran.code == 1 and "6 events are left in" in ran.err and "--partitions 2" in ran.err
    assert eyes.count("painting.made") == 0 and len(spoolfolder.folders(spool)) == 1
    titles, row = (line.split() for line in run("spool", "list", str(spool)).lines)
    assert row[titles.index("PARTITIONS")] == "2"
    assert run("spool", "drain", str(spool), "--partitions", "2").code == 0 and list(spool.iterdir()) == []


def test_drain_of_a_damaged_spool(run: Run, eyes: Eyes, left: Path, spool: Path) -> None:
    """What can be read is sent, the rest is set aside and told; verify goes on telling until somebody has looked."""
    (file,) = left.glob("*.log")
    os.truncate(file, file.stat().st_size - 1)
    ran = run("spool", "drain", str(spool))
    assert ran.code == 1 and "1 quarantined" in ran.err and numbers(eyes) == list(range(19))
    (aside,) = spool.iterdir()
    ran = run("spool", "verify", str(spool))
    assert ran.code == 1 and ran.out.startswith(f"{aside.name}: ")
    aside.unlink()
    assert run("spool", "verify", str(spool)).code == 0


def test_what_lies_behind_a_damaged_record(run: Run, eyes: Eyes, left: Path, spool: Path) -> None:
    """The rest of the file is set aside with it, sound as it may be."""
    (file,) = left.glob("*.log")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    ran = run("spool", "drain", str(spool))
    sent = numbers(eyes)
    assert ran.code == 1 and "1 quarantined" in ran.err and sent == list(range(len(sent))) and 8 <= len(sent) <= 11
    (aside,) = spool.iterdir()
    assert aside.stat().st_size > len(data) // 3


def test_drain_without_a_server(run_bare: Run, left: Path, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the reason; everything stays where it is. Without any URL: 2."""
    before = [path.read_bytes() for path in left.iterdir()]
    run_bare("spool", "drain", str(spool), "--url", "redis://127.0.0.1:1").failed(1, "nobody listens")
    run_bare("spool", "drain", str(spool)).failed(2, "CANVASBUS_URL")
    assert [path.read_bytes() for path in left.iterdir()] == before


def test_drain_gives_up(run: Run, eyes: Eyes, left: Path, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes nothing: drain gives up after a while without progress, says why, and everything is kept."""
    monkeypatch.setattr(spool_command, "PATIENCE", 0.3)
    monkeypatch.setattr("canvasbus.produce.fenced.FencedSender.send", refuse)
    ran = run("spool", "drain", str(spool))
    assert ran.code == 1 and "20 events are still in" in ran.err and "no room today" in ran.err
    monkeypatch.undo()
    assert len(spoolfolder.folders(spool)) == 1 and eyes.count("painting.made") == 0


def refuse(*_: object, **__: object) -> object:
    from canvasbus.errors import Unavailable

    raise Unavailable("no room today")
