"""Dead letters put back to work: to their own group only, once each, whatever is lost on the way."""

from random import Random
from typing import Any

import pytest
from faulty import Fault, FaultyServer
from seeds import seeds
from studio import Eyes, PaintingFramed, PaintingMade, quiet, running
from waiting import until

from canvasbus.errors import Refused
from canvasbus.operate.deadletter import DeadLetter, Filter, dead_letters
from canvasbus.operate.groups import groups
from canvasbus.operate.redrive import portions, purge, redrive
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.scripts import REDRIVE
from canvasbus.worker import Backoff, Worker


class Framers:
    """A worker that gives everything up until it is mended."""

    def __init__(self, name: str = "framers") -> None:
        self.worker = Worker(name)
        self.mended = False
        self.seen: list[int] = []

        @self.worker.on(PaintingMade, retry=Backoff(attempts=1))
        async def frame(event: PaintingMade) -> PaintingFramed:
            if not self.mended:
                raise ValueError("no frames")
            self.seen.append(event.number)
            return PaintingFramed(title=name, number=event.number)


def letters(eyes: Eyes, **wanted: Any) -> list[DeadLetter]:
    return list(eyes.run(dead_letters([eyes.keys], Filter(**wanted), limit=10_000)).letters)


def redrive_all(eyes: Eyes, link: BlockingLink | None = None, **wanted: Any) -> int:
    link = link or eyes._link
    return sum(link.run(redrive([eyes.keys], portion)) for portion in portions(letters(eyes, **wanted)))


async def test_letters_go_back_to_their_own_group(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Two groups gave the same events up; one is redriven: it handles them, with the ids that they would have had, the
    other sees nothing, and the stream of redriven events is tidied up."""
    one, other = Framers("one"), Framers("other")
    async with running(any_url, one.worker, other.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(250)])
        await until(lambda: len(eyes.dead("one")) == len(eyes.dead("other")) == 250)
        one.mended = True
        assert redrive_all(eyes, group="one") == 250
        await until(lambda: len(one.seen) == 250)
        await until(lambda: eyes.count("painting.framed") == 250)
        assert sorted(one.seen) == list(range(250)) and other.seen == []
        assert eyes.dead("one") == [] and len(eyes.dead("other")) == 250
        retry = eyes.keys.retry("one", "painting.made")
        await until(lambda: eyes.call("XPENDING", retry, "one")[0] == 0)
    parents = {envelope.id for envelope, _ in eyes.entries("painting.made")}
    derived = eyes.entries("painting.framed")
    assert {envelope.causation_id for envelope, _ in derived} == parents
    assert len({envelope.id for envelope, _ in derived}) == 250


async def test_what_fails_again_is_a_letter_again(any_url: str, namespace: str, eyes: Eyes) -> None:
    """And can be redriven again."""
    framers = Framers()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=7))
        for _ in range(3):
            await until(lambda: eyes.dead("framers"))
            assert redrive_all(eyes) == 1
            assert letters(eyes) == [] or eyes.dead("framers")
        await until(lambda: eyes.dead("framers"))
        framers.mended = True
        assert redrive_all(eyes) == 1
        await until(lambda: framers.seen == [7])


async def test_a_group_that_nobody_runs_finds_them_later(any_url: str, namespace: str, eyes: Eyes) -> None:
    """They count as its lag until then."""
    framers = Framers()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await until(lambda: len(eyes.dead("framers")) == 3)
    assert redrive_all(eyes) == 3
    (group,) = eyes.run(groups([eyes.keys]))
    assert {topic.topic: topic.lag.value for topic in group.topics} == {
        "painting.made": 0,
        "painting.made (redriven)": 3,
    }
    again = Framers()
    again.mended = True
    async with running(any_url, again.worker, namespace=namespace):
        await until(lambda: sorted(again.seen) == [0, 1, 2])
        await quiet(eyes)
    (group,) = eyes.run(groups([eyes.keys]))
    shown = {topic.topic: (topic.lag.value, topic.pending) for topic in group.topics}
    assert shown["painting.made (redriven)"] == (0, 0)


@pytest.mark.parametrize("kind", ["lose_reply", "lose_request"])
async def test_a_lost_reply_redrives_once(any_url: str, namespace: str, eyes: Eyes, kind: Any) -> None:
    """Whoever is unsure does it again: what was moved has gone, nothing is there twice."""
    framers = Framers()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(30)])
        await until(lambda: len(eyes.dead("framers")) == 30)
        framers.mended = True
        eyes.run(REDRIVE.call([eyes.keys.dead("framers"), eyes.keys.retries("framers")], ["framers"]))  # loaded now
        faulty = FaultyServer(open_server(any_url) if any_url.startswith("redis") else eyes.server)
        faulty.faults.append(Fault(kind, REDRIVE.sha.encode()))
        link = BlockingLink(faulty)
        with pytest.raises(Exception, match="lost"):
            redrive_all(eyes, link)
        moved = redrive_all(eyes)
        assert moved == (0 if kind == "lose_reply" else 30)
        await until(lambda: len(framers.seen) == 30)
        await quiet(eyes)
        link.close()
    assert sorted(framers.seen) == list(range(30)) and eyes.count("painting.framed") == 30


async def test_a_letter_stays_while_nobody_would_find_it(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Something else lies where the types of what was redriven are listed: redriving is refused, and moves nothing."""
    framers = Framers()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await until(lambda: eyes.dead("framers"))
        framers.mended = True
        eyes.call("RPUSH", eyes.keys.retries("framers"), "x")
        with pytest.raises(Refused, match="another type"):
            redrive_all(eyes)
        assert len(eyes.dead("framers")) == 1
        eyes.call("DEL", eyes.keys.retries("framers"))
        assert redrive_all(eyes) == 1
        await until(lambda: framers.seen == [1])


async def test_an_operator_who_may_not_remove_letters(server_url: str, namespace: str) -> None:
    """Redriving is refused before a letter is put back, which would else be so at every attempt."""
    eyes, framers = Eyes(server_url, namespace), Framers()
    eyes.call("ACL", "SETUSER", namespace, "reset", "on", ">pw", "~*", "&*", "+@all", "-xdel")
    async with running(server_url, framers.worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await until(lambda: eyes.dead("framers"))
        framers.mended = True
        link = BlockingLink(open_server(server_url.replace("redis://", f"redis://{namespace}:pw@")))
        for _ in range(2):
            with pytest.raises(Refused, match="xdel"):
                redrive_all(eyes, link)
        link.close()
        assert redrive_all(eyes) == 1
        await until(lambda: framers.seen)
        await quiet(eyes)
    assert framers.seen == [1]
    eyes.call("ACL", "DELUSER", namespace)
    eyes.close()


async def test_two_who_redrive_at_once(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Both have the same list; each letter is moved by one of them."""
    framers = Framers()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(300)])
        await until(lambda: len(eyes.dead("framers")) == 300)
        framers.mended = True
        both = [portions(letters(eyes)), portions(letters(eyes))]
        moved = 0
        for first, second in zip(*both, strict=True):
            moved += eyes.run(redrive([eyes.keys], first)) + eyes.run(redrive([eyes.keys], second))
        assert moved == 300
        await until(lambda: len(framers.seen) >= 300)
        await quiet(eyes)
    assert sorted(framers.seen) == list(range(300))


@pytest.mark.parametrize("seed", seeds(2, "purge amid redrive"))
async def test_a_purge_amid_a_redrive(any_url: str, namespace: str, eyes: Eyes, seed: int) -> None:
    """Both have the same list: each letter is put back to work or removed by one of them, both count truly, and what was
    put back is handled once."""
    draw = Random(seed)
    print(f"seed {seed}")
    framers = Framers()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(300)])
        await until(lambda: len(eyes.dead("framers")) == 300)
        framers.mended = True
        listed = letters(eyes)
        some = [listed[at : at + 10] for at in range(0, 300, 10)]
        steps = [(redrive, portion) for portion in some] + [(purge, portion) for portion in some]
        draw.shuffle(steps)
        done = {redrive: 0, purge: 0}
        for what, portion in steps:
            done[what] += eyes.run(what([eyes.keys], portion))
        assert sum(done.values()) == 300 and 0 < done[redrive] < 300
        await until(lambda: len(framers.seen) >= done[redrive])
        await quiet(eyes)
    assert len(framers.seen) == len(set(framers.seen)) == done[redrive] and eyes.dead("framers") == []


async def test_purging_removes_what_was_chosen(any_url: str, namespace: str, eyes: Eyes) -> None:
    """Foreign entries too; others stay."""
    framers = Framers()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(3)])
        await until(lambda: len(eyes.dead("framers")) == 3)
    eyes.call("XADD", eyes.keys.dead("framers"), "*", "hello", "there")
    chosen = letters(eyes)
    assert portions(chosen) and sum(len(portion) for portion in portions(chosen)) == 3
    assert eyes.run(purge([eyes.keys], chosen[1:])) == 3
    assert [letter.id for letter in letters(eyes)] == [chosen[0].id]
    assert eyes.run(purge([eyes.keys], chosen)) == 1


async def test_a_letter_that_is_too_wide_for_a_script_holds_up_no_others(
    any_url: str, namespace: str, eyes: Eyes
) -> None:
    """A stranger's entry with thousands of fields stays in place; the letters behind it go back to work."""
    framers = Framers()
    async with running(any_url, framers.worker, namespace=namespace) as bus:
        eyes.call("XADD", eyes.stream(), "*", *(word for n in range(4200) for word in (f"f{n}", "v")))
        await bus.publish(PaintingMade(number=1))
        await until(lambda: len(eyes.dead("framers")) == 2)
        framers.mended = True
        assert sum(eyes.run(redrive([eyes.keys], portion)) for portion in portions(letters(eyes))) == 1
        await until(lambda: framers.seen == [1])
    assert [letter.reason for letter in eyes.dead("framers")] == ["foreign"]
