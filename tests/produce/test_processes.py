"""Forks, multiprocessing, and the end of the process: programs that are run and looked at from outside."""

import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest
from produce.programs import Program
from servers import ServerProcess

# --- fork -------------------------------------------------------------------------------------------------------------


def test_a_forked_child_publishes_with_what_it_inherited(program: Program) -> None:
    """Parent and child go on with the same Producer: what the parent had queued or in hand is sent once, by the parent;
    the child counts from zero; the parent's connection survives the child's end."""
    out, err = program.run(
        """
        gate, held = threading.Event(), threading.Event()
        bus = producer()
        bus.publish(PaintingMade(number=0), on_delivery=lambda *_: (held.set(), gate.wait()))
        held.wait()
        bus.publish_many(PaintingMade(number=n) for n in range(1, 10))  # queued behind what is in hand
        pid = os.fork()
        if pid == 0:
            assert bus.statistics() == type(bus.statistics())(), bus
            bus.publish(PaintingMade(number=100))
            assert bus.flush(10) is True
            assert bus.statistics().stored == 1
            sys.exit(7)
        assert ended(pid) == 7
        gate.set()
        assert bus.flush(10) is True
        bus.publish(PaintingMade(number=10))
        assert bus.flush(10) is True
        assert bus.statistics().stored == 11 and bus._sender._lanes[0].link.epoch == 1
        """
    )
    assert (out, err) == ("", "")
    numbers = program.stored()
    assert Counter(numbers) == Counter([*range(11), 100]) and [n for n in numbers if n < 100] == list(range(11))


@pytest.mark.parametrize("spool", [False, True])
def test_a_callback_that_forks_and_returns_twice(program: Program, spool: bool) -> None:
    """The copy ends with a line instead of sending once more what its parent has in hand, and of waiting for ever."""
    out, err = program.run(
        f"""
        gate, told, pids = threading.Event(), [], []
        def tell(*_):
            told.append(1)
            gate.wait()
            if len(told) == 5:
                pids.append(os.fork())
        bus = producer(on_delivery=tell, spool=SPOOL if {spool} else None)
        for n in range(100):  # in many pieces, of which some are still to be sent
            bus.publish(PaintingMade(number=n), dedupe_key=str(n) if n % 2 else None)
        gate.set()
        assert bus.flush(10) is True
        assert ended(pids[0]) == 70
        """
    )
    assert out == "" and err.count("\n") == 1 and "This copy ends" in err
    assert sorted(program.stored()) == list(range(100))


def test_a_callback_that_starts_a_process(program: Program) -> None:
    """Which runs something of its own, and publishes with the Producer that it inherits."""
    program.run(
        """
        started = []
        def publish():
            bus.publish_many(PaintingMade(number=n) for n in range(1, 5))
            assert bus.flush(10) is True
        def tell(*_):
            if not started and multiprocessing.parent_process() is None:
                started.append(multiprocessing.get_context("fork").Process(target=publish))
                started[0].start()
                started[0].join()
        bus = producer(on_delivery=tell)
        bus.publish(PaintingMade(number=0))
        assert bus.flush(20) is True
        assert started[0].exitcode == 0
        """
    )
    assert sorted(program.stored()) == list(range(5))


def test_a_fork_while_another_thread_holds_the_lock(program: Program) -> None:
    """The child's lock is new: it does not wait for a thread that does not exist there."""
    program.run(
        """
        bus = producer()
        held, release = threading.Event(), threading.Event()
        def hold():
            with bus._buffer.lock:
                held.set()
                release.wait()
        threading.Thread(target=hold).start()
        held.wait()
        pid = os.fork()
        if pid == 0:
            bus.publish(PaintingMade(number=1))
            os._exit(0 if bus.flush(10) else 1)
        release.set()
        assert ended(pid) == 0
        """
    )
    assert program.stored() == [1]


def test_many_forks_while_threads_publish(program: Program) -> None:
    """Forks at any moment, while two threads publish: every child's and every thread's events are stored once."""
    out, _ = program.run(
        """
        bus = producer()
        stop, counts = threading.Event(), [0, 0]
        def publish(index):
            while not stop.is_set():
                bus.publish(PaintingMade(number=index * 1_000_000 + counts[index]))
                counts[index] += 1
                if counts[index] % 50 == 0:
                    time.sleep(0.0005)
        threads = [threading.Thread(target=publish, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        children = []
        for child in range(12):
            pid = os.fork()
            if pid == 0:
                bus.publish(PaintingMade(number=-child - 1))
                os._exit(0 if bus.flush(20) else 1)
            children.append(pid)
        codes = [ended(pid) for pid in children]
        stop.set()
        for thread in threads:
            thread.join()
        assert bus.flush(20) is True
        assert codes == [0] * 12, codes
        print(*counts)
        """
    )
    first, second = map(int, out.split())
    numbers = program.stored()
    assert Counter(numbers) == Counter(
        [*range(first), *range(1_000_000, 1_000_000 + second), *(-n for n in range(1, 13))]
    )


def test_a_forked_grandchild(program: Program) -> None:
    """A child that published forks again: its child has an empty buffer and a connection of its own too."""
    program.run(
        """
        bus = producer()
        bus.publish(PaintingMade(number=0))
        if (child := os.fork()) == 0:
            bus.publish(PaintingMade(number=1))
            if (grandchild := os.fork()) == 0:
                bus.publish(PaintingMade(number=2))
                sys.exit(0)
            assert ended(grandchild) == 0
            sys.exit(0)
        assert ended(child) == 0
        """
    )
    assert sorted(program.stored()) == [0, 1, 2]


def test_a_child_of_a_memory_bus(program: Program) -> None:
    """memory:// lives in the parent: what a forked child publishes is dropped, counted, and said once."""
    program.url = "memory://shared"
    _, err = program.run(
        """
        bus = producer()
        bus.publish(PaintingMade(number=0))
        if (pid := os.fork()) == 0:
            for n in range(3):
                bus.publish(PaintingMade(number=1))
            assert bus.flush(5) is False and bus.statistics().dropped == 3
            os._exit(0)
        assert ended(pid) == 0
        assert bus.flush(5) is True and bus.statistics().stored == 1
        """
    )
    assert err.count("lives in the parent process") == 1


def test_a_closed_producer_stays_closed_in_a_child(program: Program) -> None:
    """A child does not reopen what its parent closed."""
    program.run(
        """
        from canvasbus import BufferFull
        bus = producer()
        bus.close()
        if (pid := os.fork()) == 0:
            try:
                bus.publish(PaintingMade())
            except BufferFull:
                os._exit(0)
            os._exit(1)
        assert ended(pid) == 0
        """
    )


# --- multiprocessing --------------------------------------------------------------------------------------------------


def test_multiprocessing_children_flush_at_their_end(program: Program) -> None:
    """A forked multiprocessing child uses what it inherited, and what is queued when it returns, raises or exits is
    flushed, although such a child runs no atexit."""
    _, err = program.run(
        """
        bus = producer()
        bus.publish(PaintingMade(number=-1))
        def work(number):
            bus.publish_many(PaintingMade(number=number) for _ in range(100))
            if number == 1:
                raise ValueError("as planned")
            if number == 2:
                sys.exit(5)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=work, args=(number,)) for number in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 1, 5]
        """
    )
    assert "ValueError: as planned" in err and err.count("Traceback") == 1
    assert Counter(program.stored()) == {-1: 1, 0: 100, 1: 100, 2: 100}


def test_a_pool_of_forked_workers(program: Program) -> None:
    """The workers of a multiprocessing pool that is closed and joined lose nothing."""
    program.run(
        """
        bus = producer()
        def work(number):
            bus.publish(PaintingMade(number=number))
            return number
        pool = multiprocessing.get_context("fork").Pool(3)
        assert pool.map(work, range(200), chunksize=7) == list(range(200))
        pool.close()
        pool.join()
        """
    )
    assert sorted(program.stored()) == list(range(200))


def test_workers_of_a_data_loader(program: Program) -> None:
    """Daemonic forked workers fetch items and publish, while the training loop in the parent publishes as well."""
    program.run(
        """
        bus = producer()
        context = multiprocessing.get_context("fork")
        indices, batches = context.Queue(), context.Queue()
        def load():
            while (index := indices.get()) is not None:
                bus.publish(PaintingMade(title="loaded", number=index))
                batches.put(index)
        workers = [context.Process(target=load, daemon=True) for _ in range(2)]
        for worker in workers:
            worker.start()
        for index in range(100):
            indices.put(index)
        for _ in range(100):
            bus.publish(PaintingMade(title="trained", number=batches.get()))
        for _ in workers:
            indices.put(None)
        for worker in workers:
            worker.join()
        """
    )
    assert Counter(program.stored()) == dict.fromkeys(range(100), 2)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_that_inherit_nothing(program: Program, method: str) -> None:
    """A Producer does not go to a spawned child, and the error says what to do; one of the child's own flushes at its
    end."""
    program.run(
        f"""
        def work(number):
            bus = producer()
            bus.publish(PaintingMade(number=number))
        def handed(bus):
            pass
        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            bus = producer()
            try:
                context.Process(target=handed, args=(bus,)).start()
            except TypeError as error:
                assert "make one in each process" in str(error), error
            else:
                raise AssertionError("it was pickled")
            child = context.Process(target=work, args=(1,))
            child.start()
            child.join()
            assert child.exitcode == 0
            bus.publish(PaintingMade(number=2))
        """
    )
    assert program.stored() == [1, 2]


def test_finalizers_do_not_pile_up(program: Program) -> None:
    """A multiprocessing child that makes many Producers registers with multiprocessing once."""
    program.run(
        """
        from multiprocessing import util
        def work():
            before = len(util._finalizer_registry)
            for n in range(20):
                with producer() as bus:
                    bus.publish(PaintingMade(number=n))
            assert len(util._finalizer_registry) <= before + 1
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        assert child.exitcode == 0
        """
    )
    assert program.stored() == list(range(20))


# --- the end ----------------------------------------------------------------------------------------------------------

ENDS = {
    "falls off the end": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise ValueError('as planned')", 1),
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(5)", -signal.SIGINT),
    "SIGTERM with a handler": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(4)); os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)",
        4,
    ),
    "a thread goes on": (
        "threading.Thread(target=lambda: (time.sleep(0.1), bus.publish(PaintingMade(number=300)))).start()",
        0,
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_is_queued_is_flushed_at_the_end(program: Program, end: str) -> None:
    """However a program ends, short of being killed, what it published and never flushed is stored; the Producer prints
    nothing and does not change the exit code."""
    statement, code = ENDS[end]
    _, err = program.run(
        f"""
        bus = producer()
        for n in range(300):
            bus.publish(PaintingMade(number=n))
        {statement}
        """,
        code=code,
    )
    assert program.stored() == [*range(300), *([300] if end == "a thread goes on" else [])]
    assert "canvasbus/" not in err and err.count("Traceback") == (end in ("an exception", "Ctrl-C")), err


def test_the_end_while_the_server_is_away(program: Program) -> None:
    """A program whose server is away ends within `flush_timeout` and a little, and one line says what was lost."""
    program.url = "redis://127.0.0.1:1"
    out, err = program.run(
        """
        bus = producer(flush_timeout=0.3)
        bus.publish_many([PaintingMade()] * 5)
        from canvasbus.produce.process import _at_exit
        atexit.unregister(_at_exit)  # again, so that it is done before the clock is read
        atexit.register(lambda: print(time.monotonic() - started))
        atexit.register(_at_exit)
        started = time.monotonic()
        """
    )
    assert 0.3 <= float(out) < 1.3
    lines = err.strip().splitlines()
    assert len(lines) == 2 and "nobody listens" in lines[0], err
    assert "the program ends and 5 events did not reach the server within 0.3 s" in lines[1]


def test_the_end_while_the_server_is_frozen(program: Program, make_server: Callable[..., ServerProcess]) -> None:
    """The same when the server holds the connection open and does not answer: no wait beyond the deadline, no
    traceback."""
    server = make_server()
    program.url = server.url
    process = program.start(
        """
        bus = producer(flush_timeout=0.3)
        bus.publish(PaintingMade(number=0))
        assert bus.flush(10)
        print("stored", flush=True)
        sys.stdin.readline()
        bus.publish(PaintingMade(number=1))
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stored\n"
    server.freeze()
    started = time.monotonic()
    _, err = process.communicate("go on\n", timeout=20)
    assert process.returncode == 0 and time.monotonic() - started < 3
    assert "1 event did not reach the server within 0.3 s" in err and "Traceback" not in err and "Fatal" not in err


def test_several_producers_share_the_deadline(program: Program) -> None:
    """Three Producers whose servers are away take one `flush_timeout` together, not three."""
    program.url = "redis://127.0.0.1:1"

    def takes(producers: int) -> float:
        started = time.monotonic()
        program.run(
            f"""
            buses = [producer(flush_timeout=1.5) for _ in range({producers})]
            for bus in buses:
                bus.publish(PaintingMade())
            """
        )
        return time.monotonic() - started

    assert takes(3) - takes(1) < 2.0  # one after the other would be 3.0


def test_publishing_after_the_last_flush(program: Program) -> None:
    """An atexit handler that was registered before the Producer runs after its last flush: the event is dropped, said,
    and raises nothing; one registered later is in time."""
    _, err = program.run(
        """
        late = []
        atexit.register(lambda: late[0].publish(PaintingMade(number=1)))
        bus = producer()
        late.append(bus)
        atexit.register(lambda: bus.publish(PaintingMade(number=2)))
        bus.publish(PaintingMade(number=3))
        """
    )
    assert sorted(program.stored()) == [2, 3]
    assert "published after the last flush" in err and "Traceback" not in err


def test_daemon_threads_that_publish_to_the_very_end(program: Program) -> None:
    """Daemon threads that never stop publishing do not keep the program from ending, and nothing crashes. What it has
    published itself is stored."""
    for life in range(3):
        _, err = program.run(
            """
            bus = producer(flush_timeout=5)
            def publish():
                while True:
                    bus.publish(PaintingMade())
            for _ in range(2):
                threading.Thread(target=publish, daemon=True).start()
            time.sleep(0.05)
            for number in range(1, 201):
                bus.publish(PaintingMade(number=number))
            """
        )
        assert "Traceback" not in err and "Fatal" not in err
        assert [number for number in program.stored() if number] == [*range(1, 201)] * (life + 1)


def test_an_object_that_publishes_when_the_interpreter_ends(program: Program) -> None:
    """`__del__` of globals runs when the interpreter is taken apart: publishing there raises nothing."""
    _, err = program.run(
        """
        bus = producer()
        class Canvas:
            def __del__(self, bus=bus):
                bus.publish(PaintingMade(number=1))
        canvas = Canvas()
        canvas.itself = canvas
        bus.publish(PaintingMade(number=0))
        """
    )
    assert program.stored() == [0]
    assert "Traceback" not in err and "Exception ignored" not in err


def test_a_program_that_closed_leaves_nothing_to_do(program: Program) -> None:
    """After close the end of the program says and waits for nothing."""
    _, err = program.run(
        """
        with producer() as bus:
            bus.publish(PaintingMade(number=0))
        """
    )
    assert program.stored() == [0] and err == ""


def test_a_producer_that_could_not_be_made(program: Program) -> None:
    """Its error is all that is said: neither a fork nor the end of the program, until when the traceback keeps what there
    is of it, finds half a Producer."""
    program.spool.touch()
    _, err = program.run(
        """
        try:
            producer(spool=SPOOL)
        except Exception as error:
            kept = error
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        assert ended(pid) == 0
        print(kept, file=sys.stderr)
        """
    )
    assert len(err.splitlines()) == 1 and "is no folder" in err
