"""Trace context over forks, threads, kills and a server that is away."""

from produce.programs import Program
from studio import Eyes

from canvasbus import Producer

TRACED = """
    def trace(number):
        return f"00-0af7651916cd43dd8448eb211c80319c-{number:016x}-01"
"""


def carried(program: Program) -> dict[int, str | None]:
    eyes = Eyes(program.url, program.namespace)
    found = {event.number: envelope.traceparent for envelope, event in eyes.entries("painting.made")}
    eyes.close()
    return found


def trace(number: int) -> str:
    return f"00-0af7651916cd43dd8448eb211c80319c-{number:016x}-01"


def test_a_child_and_a_thread_have_their_own(program: Program) -> None:
    """A fork inherits what is in force where it forks; a thread begins with nothing; neither changes the other's."""
    program.run(
        TRACED
        + """
    bus = producer()
    with bus.traceparent(trace(1)):
        pid = os.fork()
        if pid == 0:
            bus.publish(PaintingMade(number=1))
            with bus.traceparent(trace(2)):
                bus.publish(PaintingMade(number=2))
            sys.exit(0 if bus.flush(10) else 1)
        thread = threading.Thread(target=lambda: bus.publish(PaintingMade(number=3)))
        thread.start()
        thread.join()
        assert ended(pid) == 0
        bus.publish(PaintingMade(number=4))
    bus.publish(PaintingMade(number=5))
    assert bus.flush(10)
    """
    )
    assert carried(program) == {1: trace(1), 2: trace(2), 3: None, 4: trace(1), 5: None}


def test_a_spool_keeps_it(program: Program) -> None:
    """What a program that is killed left in its spool carries it, when another sends it."""
    url, program.url = program.url, "redis://127.0.0.1:1"
    program.run(
        TRACED
        + """
    bus = producer(spool=SPOOL)
    for number in (1, 2):
        with bus.traceparent(trace(number)):
            bus.publish(PaintingMade(number=number))
    bus.publish(PaintingMade(number=3))
    os._exit(0)
    """
    )
    program.url = url
    with Producer(program.url, namespace=program.namespace, spool=program.spool) as bus:
        assert bus.flush(20)
    assert carried(program) == {1: trace(1), 2: trace(2), 3: None}
