"""A foreign entry with thousands of fields among the dead letters, and those behind it."""

from studio import Eyes, PaintingMade, running
from waiting import until

from canvasbus.operate.deadletter import Filter, dead_letters
from canvasbus.operate.redrive import portions, redrive
from canvasbus.worker import Backoff, Worker


async def test_a_letter_that_is_too_wide_for_a_script_holds_up_no_others(any_url: str, namespace: str) -> None:
    """Redriving either moves it or leaves it in place; the letters behind it go back to work."""
    eyes, worker = Eyes(any_url, namespace), Worker("framers")

    @worker.on(PaintingMade, retry=Backoff(attempts=1))
    async def fail(event: PaintingMade) -> None:
        raise ValueError(event.number)

    async with running(any_url, worker, namespace=namespace) as bus:
        eyes.call("XADD", eyes.stream(), "*", *(word for n in range(4200) for word in (f"f{n}", "v")))
        await bus.publish(PaintingMade(number=1))
        await until(lambda: len(eyes.dead("framers")) == 2)
    letters = eyes._link.run(dead_letters([eyes.keys], Filter())).letters
    for portion in portions(letters):
        eyes._link.run(redrive([eyes.keys], portion))
    assert {letter.reason for letter in eyes.dead("framers")} <= {"foreign"}
    eyes.close()
