"""Programs with a spool that are killed: each published event is stored exactly once, in order, whoever has to send it."""

import random
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from produce.programs import Program
from proxy import Proxy
from seeds import seeds
from servers import ServerProcess, binaries
from studio import Eyes, PaintingMade

from canvasbus import Producer
from canvasbus.produce import spoolfolder

Soon = Callable[..., Any]

PUBLISH_FROM = """
bus = producer(spool=SPOOL, buffer_bytes=20_000)
number = int(sys.stdin.readline())
while True:
    bus.publish(PaintingMade(number=number))
    os.write(1, b"%d\\n" % number)
    number += 1
"""
"""Publishes for ever and tells each number once `publish` has returned."""


def drain(program: Program) -> Producer:
    """Send what is left; the closed Producer."""
    with Producer(program.url, namespace=program.namespace, spool=program.spool) as bus:
        assert bus.flush(timeout=30) is True
    return bus


def killed(process: "subprocess.Popen[str]") -> list[str]:
    """What it still said before it was killed just now."""
    process.kill()
    assert process.stdout is not None
    said = process.stdout.read().split()
    process.communicate()
    return said


@pytest.mark.long
@pytest.mark.parametrize("kind", binaries())
@pytest.mark.parametrize("seed", seeds(1, "spool kills"))
def test_kill_at_any_moment(program: Program, make_server: Callable[..., ServerProcess], kind: str, seed: int) -> None:
    """kill -9 of one producer after the other while they publish, with the server killed now and then: in the end
    every event whose publish had returned is stored once, and they are in order."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    server = make_server(kind, persistent=True)
    program.url = server.url
    number, running = 0, True
    for _ in range(8):
        process = program.start(PUBLISH_FROM)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        for _ in range(rng.choice([1, 30, 300, 2000])):
            number = int(process.stdout.readline()) + 1
        if rng.random() < 0.3 and running:
            server.kill()
            running = False
        elif not running:
            server.start()
            running = True
        for word in killed(process):
            number = int(word) + 1
        number += 1  # one more may have been written down and not been told
    if not running:
        server.start()
    drain(program)
    stored = program.stored()
    assert stored == sorted(set(stored))
    missing = set(range(number)) - set(stored)
    # A kill may cut the record of an event whose publish had not returned yet; its beginning is set aside.
    torn = list(program.spool.iterdir())
    assert len(missing) <= 8 and len(torn) <= 8
    assert all(path.suffix == ".damaged" and path.stat().st_size < 400 for path in torn), torn


@pytest.mark.parametrize("fault", ["cut", "tear", "lose", "hold"])
@pytest.mark.parametrize("kind", binaries())
def test_kill_while_a_batch_is_on_its_way(
    program: Program, make_server: Callable[..., ServerProcess], kind: str, fault: Any, soon: Soon
) -> None:
    """A producer dies with a batch under way that was executed or was not, or will be later: whoever
    adopts the spool makes sure; each event is stored once, also when the held packet arrives at last."""
    server = make_server(kind)
    with Proxy(server.port) as proxy:
        program.url = proxy.url
        process = program.start(
            """
            bus = producer(spool=SPOOL)
            bus.publish_many([PaintingMade(number=-1), PaintingMade(number=0)])
            assert bus.flush(10)
            print("ready", flush=True)
            sys.stdin.readline()
            bus.publish_many(PaintingMade(number=n) for n in range(1, 10))
            print("published", flush=True)
            bus.flush(60)
            """
        )
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        eyes = Eyes(server.url, program.namespace)
        eyes.call("XTRIM", eyes.stream(), "MAXLEN", 1)  # what lies before the last known entry is of no concern
        eyes.close()
        proxy.next(b"XADD", fault)
        for _ in range(100):  # it shall not find out what became of it
            proxy.next(b"INCR", "cut")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "published\n"
        soon(lambda: fault in proxy.faults)
        killed(process)
        program.url = server.url
        bus = drain(program)
        proxy.release()
        assert (bus.statistics().recovered, bus.statistics().unknown) == (9, 0)
    assert program.stored() == list(range(10))


@pytest.mark.parametrize("kind", binaries())
def test_killed_with_one_key_twice_in_a_batch(
    program: Program, make_server: Callable[..., ServerProcess], kind: str, soon: Soon
) -> None:
    """A producer with dedupe is killed, its batch executed and the answer lost; the first and the last of it are one
    event. The next producer, without dedupe, stores nothing again."""
    server = make_server(kind)
    with Proxy(server.port) as proxy:
        program.url = proxy.url
        process = program.start(
            """
            bus = producer(spool=SPOOL, dedupe=True)
            bus.publish(PaintingMade(number=-1))
            assert bus.flush(10)
            print("ready", flush=True)
            sys.stdin.readline()
            with bus._buffer.lock:  # all in one batch
                for n in (0, 1, 2, 3, 0):
                    bus.publish(PaintingMade(number=n), dedupe_key=None if n else "first")
            bus.flush(60)
            """
        )
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(100):
            proxy.next(b"EVAL", "lose")
        process.stdin.write("\n")
        process.stdin.flush()
        soon(lambda: "lose" in proxy.faults)
        killed(process)
        program.url = server.url
        drain(program)
    assert program.stored() == [-1, 0, 1, 2, 3]


def test_killed_again_while_it_is_resolved(
    program: Program, make_server: Callable[..., ServerProcess], soon: Soon
) -> None:
    """A batch is held up in the network and its producer killed; who adopts it sends it again and is killed before he
    hears of it; the third finds it, and the held one comes too late."""
    server = make_server()
    publish = """
        bus = producer(spool=SPOOL)
        bus.publish_many(PaintingMade(number=n) for n in range(20))
        bus.flush(60)
    """
    adopt = "bus = producer(spool=SPOOL); bus.flush(60)"
    with Proxy(server.port) as proxy:
        program.url = proxy.url
        for body, fault in ((publish, "hold"), (adopt, "lose")):
            proxy.next(b"XADD", fault)  # type: ignore[arg-type]
            for _ in range(100):
                proxy.next(b"INCR", "cut")
            process = program.start(body)
            soon(lambda fault=fault: fault in proxy.faults)
            killed(process)
            proxy.forget()
        program.url = server.url
        assert drain(program).statistics().recovered == 20
        proxy.release()
    assert program.stored() == list(range(20))


def test_a_batch_that_cannot_be_looked_for(
    program: Program, make_server: Callable[..., ServerProcess], soon: Soon
) -> None:
    """The stream is trimmed while nobody is there: whether the batch had arrived cannot be known, and is told so."""
    server = make_server()
    eyes = Eyes(server.url, program.namespace)
    with Proxy(server.port) as proxy:
        program.url = proxy.url
        process = program.start(
            """
            bus = producer(spool=SPOOL)
            bus.publish(PaintingMade(number=0))
            assert bus.flush(10)
            print("ready", flush=True)
            sys.stdin.readline()
            bus.publish(PaintingMade(number=1))
            bus.flush(60)
            """
        )
        assert process.stdin is not None and process.stdout is not None and process.stdout.readline() == "ready\n"
        proxy.next(b"XADD", "lose")
        for _ in range(100):
            proxy.next(b"INCR", "cut")
        process.stdin.write("\n")
        process.stdin.flush()
        soon(lambda: "lose" in proxy.faults)
        killed(process)
    eyes.call("XTRIM", eyes.stream(), "MAXLEN", 0)
    with Producer(server.url, namespace=program.namespace, spool=program.spool) as bus:
        assert bus.flush(timeout=10) is False
        assert (bus.statistics().unknown, bus.statistics().stored) == (1, 0)
        bus.publish(PaintingMade(number=2))
        assert bus.flush(timeout=10) is True
    eyes.close()
    assert list(program.spool.iterdir()) == []


# --- forks ------------------------------------------------------------------------------------------------------------


def test_forked_children_have_spools_of_their_own(program: Program) -> None:
    """Parent and children publish and are all killed: each one's events are there once, in its order; a child sends
    nothing of what its parent wrote."""
    url, program.url = program.url, "redis://127.0.0.1:1"
    process = program.start(
        """
        bus = producer(spool=SPOOL)
        for n in range(50):
            bus.publish(PaintingMade(title="parent", number=n))
        for child in range(3):
            if os.fork() == 0:
                assert bus.statistics().waiting_events == 0
                for n in range(50):
                    bus.publish(PaintingMade(title=f"child {child}", number=n))
                os.kill(os.getpid(), signal.SIGKILL)
        for child in range(3):
            os.wait()
        for n in range(50, 100):
            bus.publish(PaintingMade(title="parent", number=n))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    process.communicate(timeout=30)
    assert len(spoolfolder.folders(program.spool)) == 4
    program.url = url
    assert drain(program).statistics().recovered == 250
    eyes = Eyes(url, program.namespace)
    by_title: dict[str, list[int]] = {}
    for made in eyes.events("painting.made"):
        by_title.setdefault(made.title, []).append(made.number)
    eyes.close()
    assert by_title == {"parent": list(range(100)), **{f"child {n}": list(range(50)) for n in range(3)}}


def test_a_child_does_not_keep_its_parent_alive(program: Program) -> None:
    """The parent is killed and its child goes on: what the parent left can be adopted, the child's cannot."""
    url, program.url = program.url, "redis://127.0.0.1:1"
    process = program.start(
        """
        bus = producer(spool=SPOOL)
        bus.publish(PaintingMade(title="parent", number=0))
        if os.fork() == 0:
            bus.publish(PaintingMade(title="child", number=1))
            print("published", flush=True)
            sys.stdin.readline()
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "published\n" and process.wait(20) == -9
    program.url = url
    drain(program)
    assert program.stored() == [0] and len(spoolfolder.folders(program.spool)) == 1
    process.stdin.write("\n")
    process.communicate(timeout=20)
    drain(program)
    assert program.stored() == [0, 1]


def test_a_child_that_is_forked_while_something_is_adopted(program: Program) -> None:
    """The parent has just locked what a dead process left when it forks, and is killed then: the child, which goes on, keeps
    nobody from adopting that once more."""
    url, program.url = program.url, "redis://127.0.0.1:1"
    program.run(
        """
        bus = producer(spool=SPOOL)
        bus.publish(PaintingMade(number=0))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        code=-9,
    )
    process = program.start(
        """
        from canvasbus.produce import spoolfolder
        read, reading, forked = spoolfolder.read_folder, threading.Event(), threading.Event()
        def read_folder(path):
            reading.set()
            forked.wait()
            return read(path)
        spoolfolder.read_folder = read_folder
        bus = producer(spool=SPOOL)
        reading.wait()
        if os.fork() == 0:
            print("forked", flush=True)
            sys.stdin.readline()
            os._exit(0)
        forked.set()
        while not bus.statistics().recovered:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "forked\n" and process.wait(20) == -9
    program.url = url
    drain(program)
    stored = program.stored()
    process.stdin.write("\n")
    process.communicate(timeout=20)
    assert stored == [0]


def test_multiprocessing_children_leave_nothing_behind(program: Program) -> None:
    """Children of a pool publish and end in order: all is stored and the spool is empty."""
    program.run(
        """
        bus = producer(spool=SPOOL)
        def work(number):
            bus.publish(PaintingMade(number=number))
        with multiprocessing.get_context("fork").Pool(3) as pool:
            pool.map(work, range(60), chunksize=7)
            pool.close()
            pool.join()
        """
    )
    assert sorted(program.stored()) == list(range(60)) and list(program.spool.iterdir()) == []


def test_children_that_never_publish_make_no_files(program: Program) -> None:
    """A forked child that publishes nothing leaves no trace in the spool."""
    program.run(
        """
        bus = producer(spool=SPOOL)
        bus.publish(PaintingMade())
        assert bus.flush(10)
        before = sorted(os.listdir(SPOOL))
        if (pid := os.fork()) == 0:
            os._exit(0 if sorted(os.listdir(SPOOL)) == before else 1)
        assert ended(pid) == 0 and sorted(os.listdir(SPOOL)) == before
        """
    )
    assert list(program.spool.iterdir()) == []


# --- together ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_processes_that_start_together_share_what_is_left(program: Program) -> None:
    """Several programs start over the spools of several dead ones: all is stored, once, and each part in order."""
    url, program.url = program.url, "redis://127.0.0.1:1"
    for part in range(3):
        program.run(
            f"""
            bus = producer(spool=SPOOL)
            bus.publish_many(PaintingMade(title="{part}", number=n) for n in range(700))
            os._exit(0)
            """
        )
    program.url = url
    processes = [
        program.start(
            """
            bus = producer(spool=SPOOL)
            assert bus.flush(20)
            print(bus.statistics().recovered)
            """
        )
        for _ in range(3)
    ]
    recovered = [int(process.communicate(timeout=30)[0]) for process in processes]
    assert sum(recovered) == 2100
    eyes = Eyes(url, program.namespace)
    events = eyes.events("painting.made")
    eyes.close()
    for part in range(3):
        assert [made.number for made in events if made.title == str(part)] == list(range(700))
    assert Counter(made.title for made in events) == {"0": 700, "1": 700, "2": 700}


def test_threads_that_publish_until_they_are_killed(
    program: Program, make_server: Callable[..., ServerProcess]
) -> None:
    """Four threads of one process: what each was told is stored, once, in its order."""
    server = make_server()
    program.url = server.url
    process = program.start(
        """
        bus = producer(spool=SPOOL, buffer_bytes=50_000)
        def publish(thread):
            number = 0
            while True:
                bus.publish(PaintingMade(title=str(thread), number=number))
                os.write(1, b"%d %d\\n" % (thread, number))
                number += 1
        for thread in range(4):
            threading.Thread(target=publish, args=(thread,), daemon=True).start()
        threading.Event().wait()
        """
    )
    assert process.stdout is not None
    told: Counter[str] = Counter()
    for _ in range(4000):
        told[process.stdout.readline().split()[0]] += 1
    server.freeze()
    for _ in range(1000):
        told[process.stdout.readline().split()[0]] += 1
    told.update(killed(process)[::2])
    server.thaw()
    drain(program)
    eyes = Eyes(server.url, program.namespace)
    by_title: dict[str, list[int]] = {}
    for made in eyes.events("painting.made"):
        by_title.setdefault(made.title, []).append(made.number)
    eyes.close()
    for title, count in told.items():
        assert by_title[title] in (list(range(count)), list(range(count + 1)))


@pytest.mark.parametrize("dedupe", [False, True])
def test_a_restart_after_the_marks_have_expired(program: Program, dedupe: bool) -> None:
    """Killed with a batch that has arrived, and started again when the window is over: it is stored once."""
    program.run(
        f"""
        bus = producer(spool=SPOOL, dedupe={dedupe}, on_delivery=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        bus.publish_many([PaintingMade(number=n) for n in range(10)])
        bus.flush(10)
        """,
        code=-9,
    )
    eyes = Eyes(program.url, program.namespace)
    marks = eyes.call("KEYS", eyes.keys.once("*"))
    assert len(marks) == 10 * dedupe and (not marks or eyes.call("DEL", *marks))
    eyes.close()
    program.run(f"with producer(spool=SPOOL, dedupe={dedupe}) as bus: assert bus.flush(10)")
    assert program.stored() == list(range(10))


def test_files_that_may_not_grow(program: Program) -> None:
    """A limit on the size of files, as a full disk is one: publishing goes on from memory, is told and counted, and
    what is on disk is sound."""
    out, err = program.run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        bus = producer(spool=SPOOL)
        for n in range(1000):
            bus.publish(PaintingMade(number=n))
        assert bus.flush(20)
        now = bus.statistics()
        assert (now.stored, now.dropped, now.quarantined) == (1000, 0, 0), now
        print(now.spool_errors)
        """
    )
    assert program.stored() == list(range(1000))
    assert int(out) >= 1 and err.count("cannot be used (File too large): events are kept in memory only") == 1


def test_a_program_that_crashes_over_and_over(program: Program) -> None:
    """Each time it is started again it leaves one more folder, more than a process may have files: whoever comes when the
    server is back adopts and sends all of them, in order, with files to spare, before its own."""
    program.run(
        """
        buses = [Producer("redis://127.0.0.1:1", namespace=NAMESPACE, spool=SPOOL) for n in range(90)]
        for n, bus in enumerate(buses):  # which is quicker than to die ninety times
            bus.publish(PaintingMade(number=n))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        code=-9,
    )
    program.run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))
        with producer(spool=SPOOL) as bus:
            bus.publish(PaintingMade(number=90))
            assert bus.flush(timeout=30), bus.statistics()
            now = bus.statistics()
            assert (now.recovered, now.stored, now.spool_errors) == (90, 91, 0), now
        assert not os.listdir(SPOOL)
        """
    )
    assert program.stored() == list(range(91))


def test_a_handler_of_signals_publishes(program: Program) -> None:
    """Signals that interrupt publish and publish themselves: all is stored once, the program's own events in order."""
    program.run(
        """
        bus = producer(spool=SPOOL)
        import itertools
        numbers = itertools.count(1_000_000)
        def handler(*_):
            bus.publish(PaintingMade(number=next(numbers)))
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        for n in range(5000):
            bus.publish(PaintingMade(number=n))
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert bus.flush(20)
        fired = next(numbers) - 1_000_000
        assert bus.statistics().stored == 5000 + fired and fired > 0, bus
        """
    )
    stored = program.stored()
    assert [n for n in stored if n < 1_000_000] == list(range(5000))
    assert sorted(n for n in stored if n >= 1_000_000) == list(range(1_000_000, 1_000_000 + len(stored) - 5000))


def test_a_spool_while_the_server_is_away_in_another_process(program: Program, tmp_path: Path) -> None:
    """The outage outlives the process twice; in between the spool is moved to another folder: all is there, in order."""
    url, program.url = program.url, "redis://127.0.0.1:1"
    for first in (0, 400):
        program.run(
            f"""
            bus = producer(spool=SPOOL, buffer_bytes=10_000, flush_timeout=0.01)
            bus.publish_many(PaintingMade(number=n) for n in range({first}, {first} + 400))
            """
        )
        program.spool = program.spool.rename(tmp_path / f"moved{first}")
    program.url = url
    done = threading.Event()
    with Producer(url, namespace=program.namespace, spool=program.spool) as bus:
        bus.publish(PaintingMade(number=800), on_delivery=lambda *_: done.set())
        assert done.wait(20)
    assert program.stored() == list(range(801))
