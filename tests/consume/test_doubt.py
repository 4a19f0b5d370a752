"""A server that comes back with less than it had, or another in its place: what was read before proves nothing."""

from collections import Counter

import pytest
import trio
from faulty import Fault, FaultyServer, commands_in
from studio import Eyes, PaintingFramed, PaintingMade, quiet, runner_of, running, subscription_of
from waiting import until

from canvasbus.consume.delivery import NO_DOUBT
from canvasbus.errors import Unavailable
from canvasbus.transport.connect import open_server
from canvasbus.transport.link import SharedLink
from canvasbus.transport.owner_scripts import RELEASE, TAKE
from canvasbus.transport.resp import Operation, Reply
from canvasbus.transport.settle_script import SETTLE
from canvasbus.wire.keys import FREE_POOL, SUSPECT_POOL
from canvasbus.worker import Backoff, Context, Worker

EVENTS = 20


class Gate:
    """A worker whose handlers wait until the gate opens, and count."""

    def __init__(self, concurrency: int = 100) -> None:
        self.opened = trio.Event()
        self.runs: Counter[int] = Counter()
        self.worker = Worker("framers")

        @self.worker.on(PaintingMade, concurrency=concurrency)
        async def frame(event: PaintingMade) -> PaintingFramed:
            self.runs[event.number] += 1
            await self.opened.wait()
            return PaintingFramed(number=event.number)


@pytest.fixture
def faulty(any_url: str) -> FaultyServer:
    return FaultyServer(open_server(any_url))


def forget(eyes: Eyes, group: str = "framers") -> None:
    """Roll the group back to its beginning, as a failover does that lost the last seconds."""
    for entry_id, _, _ in eyes.pending(group):
        eyes.call("XACK", eyes.stream(), group, entry_id)
    eyes.call("XGROUP", "SETID", eyes.stream(), group, "0")


GIVE_TO_ANOTHER = """
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000)) do
  redis.call('XACK', KEYS[1], ARGV[1], row[1])
end
redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], '0')
return #redis.call('XREADGROUP', 'GROUP', ARGV[1], 'another', 'STREAMS', KEYS[1], '>')
"""


@pytest.mark.parametrize("opens", ["before it reads again", "after it read again"])
async def test_what_is_given_again_has_its_effect_once(
    faulty: FaultyServer, namespace: str, eyes: Eyes, opens: str
) -> None:
    """A worker holds twenty events when the server is replaced by one that never gave them out. It is given them
    again, whether it has finished meanwhile or not, and each is framed once."""
    gate = Gate()
    async with running(faulty, gate.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(EVENTS)])
        await until(lambda: len(gate.runs) == EVENTS)
        forget(eyes)
        if opens == "before it reads again":
            gate.opened.set()
        faulty.replace()
        if opens == "after it read again":
            await until(lambda: len(eyes.pending("framers")) == EVENTS)
            gate.opened.set()
        await until(lambda: eyes.count("painting.framed") >= EVENTS, 15)
        await quiet(eyes)
    assert Counter(e.number for e in eyes.events("painting.framed")) == dict.fromkeys(range(EVENTS), 1)
    if opens == "after it read again":
        assert set(gate.runs.values()) == {1}


async def test_what_another_was_given_meanwhile_is_not_committed(
    faulty: FaultyServer, namespace: str, eyes: Eyes
) -> None:
    """The rolled back group gave the events to somebody else: the outcomes of the first are dropped."""
    gate = Gate()
    async with running(faulty, gate.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(EVENTS)])
        await until(lambda: len(gate.runs) == EVENTS)
        eyes.call("EVAL", GIVE_TO_ANOTHER, 1, eyes.stream(), "framers")
        faulty.replace()
        await until(lambda: subscription_of(bus).topics[eyes.stream()].doubt != NO_DOUBT)
        gate.opened.set()
        await until(lambda: runner_of(bus).statistics().not_ours == EVENTS)
    assert eyes.count("painting.framed") == 0
    assert {owner for _, owner, _ in eyes.pending("framers")} == {"another"}


GIVE_ITS_ID_TO = """
local id = redis.call('XRANGE', KEYS[1], '-', '+')[1][1]
redis.call('DEL', KEYS[1])
redis.call('XADD', KEYS[1], id, 'e', ARGV[2])
return redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0')
"""


def give_its_id_to_another(faulty: FaultyServer, eyes: Eyes) -> None:
    """The server is replaced by one on which event 2 has the id of event 1."""
    other = b'{"type": "painting.made", "data": {"number": 2}}'
    eyes.call("EVAL", GIVE_ITS_ID_TO, 1, eyes.stream(), "framers", other)
    faulty.replace()


@pytest.mark.parametrize("emits", [True, False], ids=["emits", "emits nothing"])
async def test_an_id_that_was_given_again_to_another_event(
    faulty: FaultyServer, namespace: str, eyes: Eyes, emits: bool
) -> None:
    """A worker runs an event that the server forgets; the next one gets its id, since the clock is behind the stream. What the
    first run made is dropped, and the event of now is handled."""
    opened = trio.Event()
    runs: list[int] = []
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> PaintingFramed | None:
        runs.append(event.number)
        if event.number == 1:
            await opened.wait()
        return PaintingFramed(number=event.number) if emits else None

    async with running(faulty, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await until(lambda: runs == [1])
        give_its_id_to_another(faulty, eyes)
        topic = subscription_of(bus).topics[eyes.stream()]
        await until(lambda: topic.doubt != NO_DOUBT and len(eyes.pending("framers")) == 1)
        opened.set()
        await until(lambda: runs == [1, 2], 15)
        await quiet(eyes, "framers")
        assert runner_of(bus).statistics().not_ours == 1
    assert [event.number for event in eyes.events("painting.framed")] == ([2] if emits else [])


async def test_an_id_that_was_given_again_while_its_acknowledgement_was_on_its_way(
    faulty: FaultyServer, namespace: str, eyes: Eyes
) -> None:
    """The server fails before it hears that the first event is done. What is acknowledged then is not the event that has its
    id by now."""
    runs: list[int] = []
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None:
        runs.append(event.number)

    async with running(faulty, worker, namespace=namespace) as bus:
        faulty.faults.append(Fault("lose_request", b"XACK", times=10**9))
        await bus.publish(PaintingMade(number=1))
        await until(lambda: faulty.struck > 0)
        give_its_id_to_another(faulty, eyes)
        await until(lambda: len(eyes.pending("framers")) == 1)
        faulty.faults.clear()
        await until(lambda: runs == [1, 2], 15)
        await quiet(eyes, "framers")


async def test_two_connections_that_stay_at_odds(faulty: FaultyServer, namespace: str, eyes: Eyes) -> None:
    """A server takes another replication id when its first replica comes, and nothing is lost: what emits nothing is
    compared once, and then goes the fast way again."""
    worker = Worker("framers")
    runs: list[int] = []
    acknowledged: list[bytes] = []

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None:
        runs.append(event.number)

    async with running(faulty, worker, namespace=namespace) as bus:
        faulty.on_packet = lambda data: acknowledged.extend(name for name in commands_in(data) if name == b"XACK")
        for number, so_far in enumerate((1, 1, 2, 3)):
            await bus.publish(PaintingMade(number=number))
            await until(lambda number=number: len(runs) == number + 1)
            await quiet(eyes, "framers")
            assert len(acknowledged) == so_far
            if number == 0:
                subscription_of(bus).settler.reads_from = "without a replica"


async def test_failures_of_what_had_an_id_before_do_not_count_for_what_has_it_now(
    faulty: FaultyServer, namespace: str, eyes: Eyes
) -> None:
    """The event that gets the id has all its attempts."""
    opened = trio.Event()
    runs: list[int] = []
    worker = Worker("framers")

    @worker.on(PaintingMade, retry=Backoff(attempts=3, base=0.01))
    async def frame(event: PaintingMade) -> None:
        runs.append(event.number)
        await opened.wait()
        raise ValueError

    async with running(faulty, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await until(lambda: runs == [1])
        give_its_id_to_another(faulty, eyes)
        await until(lambda: len(eyes.pending("framers")) == 1)
        opened.set()
        await until(lambda: eyes.dead("framers"), 15)
    assert Counter(runs) == {1: 3, 2: 3}
    assert [letter.attempts for letter in eyes.dead("framers")] == [3]


async def test_an_id_that_was_given_again_while_its_event_was_being_parked(
    faulty: FaultyServer, namespace: str, eyes: Eyes
) -> None:
    """What has the id now is no event for newer workers."""
    runs: list[int] = []
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> None:
        runs.append(event.number)

    async with running(faulty, worker, namespace=namespace):
        faulty.faults.append(Fault("lose_request", b"park", times=10**9))
        newer = b'{"type": "painting.made", "version": 2, "data": {"number": 1}}'
        eyes.call("XADD", eyes.stream(), "*", "e", newer)
        await until(lambda: faulty.struck > 0)
        give_its_id_to_another(faulty, eyes)
        await until(lambda: len(eyes.pending("framers")) == 1)
        faulty.faults.clear()
        await until(lambda: runs == [2], 15)
        await quiet(eyes, "framers")


async def test_a_restart_that_forgot_nothing_costs_nothing(faulty: FaultyServer, namespace: str, eyes: Eyes) -> None:
    """What is held across it is committed as ours, and the doubt ends with the last of it."""
    gate = Gate()
    async with running(faulty, gate.worker, namespace=namespace) as bus:
        await bus.publish_many([PaintingMade(number=n) for n in range(EVENTS)])
        await until(lambda: len(gate.runs) == EVENTS)
        faulty.replace()
        topic = subscription_of(bus).topics[eyes.stream()]
        await until(lambda: topic.doubt != NO_DOUBT)
        gate.opened.set()
        await until(lambda: topic.doubt == NO_DOUBT)
        await quiet(eyes)
        assert runner_of(bus).statistics().not_ours == 0
    assert set(gate.runs.values()) == {1} and len(gate.runs) == eyes.count("painting.framed") == EVENTS


async def test_settling_follows_reading_to_the_server_of_now(faulty: FaultyServer, namespace: str, eyes: Eyes) -> None:
    """The reader has left a server of the past while the settler's connection to it still answers: it is left, too."""
    gate = Gate()
    gate.opened.set()
    async with running(faulty, gate.worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await until(lambda: eyes.count("painting.framed") == 1)
        settler = subscription_of(bus).settler
        settler.reads_from = "another server"
        await bus.publish(PaintingMade(number=2))
        await until(lambda: eyes.count("painting.framed") == 2)
        assert settler._link.epoch == 2


async def test_a_commit_that_comes_late_after_the_fence_was_forgotten(
    faulty: FaultyServer, namespace: str, eyes: Eyes
) -> None:
    """A worker never uses the number of a fence twice, though the server that lost its last seconds counts from 0 again:
    else what it sent before, and comes late, would be executed once more."""
    kept: list[bytes] = []
    published = 0
    gate = Gate()
    gate.opened.set()

    def meet(data: bytes) -> None:
        if SETTLE.sha.encode() in data and len(kept) < published:
            kept.append(data)
            eyes.call("DEL", eyes.keys.fence(runner_of(bus).statistics().consumer))
            raise Unavailable("the request is late", ambiguous=True)

    async with running(faulty, gate.worker, namespace=namespace) as bus:
        faulty.on_packet = meet
        for published in (1, 2):
            await bus.publish(PaintingMade(number=published))
            await until(lambda: eyes.count("painting.framed") == published)
        connection = eyes.server.connect_blocking()
        for late in kept:
            connection.request(late, 1, 1.0)
        connection.close()
        assert eyes.count("painting.framed") == len(kept) == 2


async def test_what_is_there_again_is_not_told_lost(faulty: FaultyServer, namespace: str, eyes: Eyes) -> None:
    """A worker finds that an entry was trimmed; before it has told, the server comes back without its last seconds, and so
    with the entry. It is handled."""
    stream, gate = eyes.stream(), Gate()
    gate.opened.set()
    async with running(faulty, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
    ((entry_id, fields),) = eyes.call("XRANGE", stream, "-", "+")
    eyes.call("XGROUP", "CREATE", stream, "framers", "0")
    eyes.call("XREADGROUP", "GROUP", "framers", "~free", "STREAMS", stream, ">")
    eyes.call("XTRIM", stream, "MAXLEN", 0)
    told: list[bytes] = []

    def meet(data: bytes) -> None:
        if SETTLE.sha.encode() in data and b"lose" in data and not told:
            told.append(data)
            eyes.call("DEL", stream)
            eyes.call("XADD", stream, entry_id, *fields)
            eyes.call("XGROUP", "CREATE", stream, "framers", "0")
            name = runner_of(bus).statistics().consumer
            eyes.call("XREADGROUP", "GROUP", "framers", name, "STREAMS", stream, ">")

    async with running(faulty, gate.worker, namespace=namespace) as bus:
        faulty.on_packet = meet
        subscription = subscription_of(bus)
        await until(lambda: bool(told) and not subscription.topics[stream].held)
        subscription.recovery.audit_soon()
        await until(lambda: eyes.count("painting.framed") == 1)
        await quiet(eyes, "framers")
    assert eyes.events("bus.loss") == [] and gate.runs == Counter({1: 1})


async def test_a_hand_back_that_comes_late(faulty: FaultyServer, namespace: str, eyes: Eyes) -> None:
    """What a worker handed back, had to say twice, and was given again stays with it when the first try arrives after all:
    else another one would run it at the same time."""
    kept: list[bytes] = []
    gate = Gate(concurrency=1)

    def meet(data: bytes) -> None:
        if RELEASE.sha.encode() in data and not kept:
            kept.append(data)
            raise Unavailable("the request is late", ambiguous=True)

    def owners() -> set[str]:
        return {owner for _, owner, _ in eyes.pending("framers")}

    async with running(faulty, gate.worker, namespace=namespace, grace=0.0) as bus:
        faulty.on_packet = meet
        consumer = runner_of(bus).statistics().consumer
        lane = runner_of(bus)._current.lanes[0]  # type: ignore[union-attr]
        lane.window = 2
        await bus.publish_many([PaintingMade(number=1), PaintingMade(number=2)])
        await until(lambda: gate.runs[1] == 1 and len(lane._queue) == 1)
        lane._unload(lane._halt())
        await until(lambda: subscription_of(bus).recovery.statistics.taken == 1 and owners() == {consumer})
        connection = eyes.server.connect_blocking()
        connection.request(kept[0], len(commands_in(kept[0])), 1.0)
        connection.close()
        assert owners() == {consumer}
        gate.opened.set()
        await quiet(eyes, "framers")
    assert eyes.count("painting.framed") == 2 and gate.runs == Counter({1: 1, 2: 1})


ADD_TO_POOL = """
local fields = redis.call('XRANGE', KEYS[1], '-', '+')[1][2]
redis.call('XADD', KEYS[1], '*', unpack(fields))
return #redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'STREAMS', KEYS[1], '>')[1][2]
"""


@pytest.mark.parametrize("pool", [FREE_POOL, SUSPECT_POOL])
async def test_a_take_that_comes_late(faulty: FaultyServer, namespace: str, eyes: Eyes, pool: str) -> None:
    """What a worker asked a pool for, in vain as it seemed, does not become its own later, when it looks for it no more: it
    would lie there for half a minute, and what killed another worker would run as if nothing was known of it."""
    kept: list[bytes] = []
    runs: list[tuple[int, bool]] = []
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade, ctx: Context) -> None:
        runs.append((event.number, ctx._delivery.suspect))

    def meet(data: bytes) -> None:
        if TAKE.sha.encode() not in data or pool.encode() not in data:
            return
        if not kept:
            kept.append(data)
            raise Unavailable("the request is late", ambiguous=True)
        if len(kept) == 1:
            kept.append(data)
            connection = eyes.server.connect_blocking()
            connection.request(kept[0], len(commands_in(kept[0])), 1.0)
            connection.close()

    async with running(faulty, worker, namespace=namespace) as bus:
        await bus.publish(PaintingMade(number=1))
        await until(lambda: runs == [(1, False)])
        await quiet(eyes, "framers")
        stream = eyes.stream()
        faulty.on_packet = meet
        assert eyes.call("EVAL", ADD_TO_POOL, 1, stream, "framers", pool) == 1
        await until(lambda: len(runs) == 2)
        await quiet(eyes, "framers")
        assert subscription_of(bus).recovery.statistics.audited == 0
    assert runs[1] == (1, pool == SUSPECT_POOL)


async def test_suspects_that_an_audit_finds_before_their_answer_comes(any_url: str, namespace: str, eyes: Eyes) -> None:
    """What a dead worker left is a suspect also for an audit that sees it before whoever asked for it is answered."""
    executed, answered = trio.Event(), trio.Event()
    runs: list[tuple[int, bool]] = []
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade, ctx: Context) -> None:
        runs.append((event.number, ctx._delivery.suspect))

    class Slow:
        """A link whose answers to that take their time."""

        def __init__(self, inner: SharedLink) -> None:
            self.inner = inner

        async def run(self, operation: Operation[Reply]) -> Reply:
            reply = await self.inner.run(operation)
            if isinstance(reply, list) and reply:
                executed.set()
                await answered.wait()
            return reply

    async with running(any_url, worker, namespace=namespace) as bus:
        recovery = subscription_of(bus).recovery
        recovery._shared = Slow(recovery._shared)  # type: ignore[assignment]
        await bus.publish(PaintingMade(number=1))
        await until(lambda: runs == [(1, False)])
        await quiet(eyes, "framers")
        assert eyes.call("EVAL", ADD_TO_POOL, 1, eyes.stream(), "framers", SUSPECT_POOL) == 1
        await executed.wait()
        recovery.audit_soon()
        await until(lambda: len(runs) == 2)
        answered.set()
        await quiet(eyes, "framers")
    assert runs[1] == (1, True)


async def test_everybody_who_wants_to_be_sure_is(faulty: FaultyServer, namespace: str) -> None:
    """Several tasks that have asked for something in vain wait for one raising of the fence."""
    async with running(faulty, Gate().worker, namespace=namespace) as bus:
        settler = subscription_of(bus).settler
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(settler.make_sure)
            await settler.make_sure()
        assert settler.fence.number == 2


OOM = "OOM command not allowed when used memory > 'maxmemory'."


async def test_who_wants_to_be_sure_while_a_commit_waits_for_memory(
    faulty: FaultyServer, namespace: str, eyes: Eyes
) -> None:
    """Is sure when there is memory again, though nothing else happens then."""
    gate = Gate()
    async with running(faulty, gate.worker, namespace=namespace) as bus:
        settler = subscription_of(bus).settler
        full = Fault("answer", SETTLE.sha.encode(), OOM, times=1 << 30)
        faulty.faults.append(full)
        await bus.publish(PaintingMade(number=1))
        gate.opened.set()
        await until(lambda: settler._passing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(settler.make_sure)
            await until(lambda: settler.fence.in_doubt and not settler._work.is_set())
            faulty.faults.remove(full)
            await quiet(eyes, "framers")
    assert gate.runs == Counter({1: 1}) and eyes.count("painting.framed") == 1


async def test_acknowledgements_need_neither_memory_nor_certainty(
    faulty: FaultyServer, namespace: str, eyes: Eyes
) -> None:
    """While a server without memory takes no raising of a fence, what emits nothing is acknowledged."""
    worker = Worker("framers")

    @worker.on(PaintingMade)
    async def frame(event: PaintingMade) -> PaintingFramed | None:
        return PaintingFramed(number=event.number) if event.number == 1 else None

    async with running(faulty, worker, namespace=namespace) as bus:
        settler = subscription_of(bus).settler
        full = [Fault("answer", word, OOM, times=1 << 30) for word in (b"\r\nINCR\r\n", SETTLE.sha.encode())]
        faulty.faults += full
        settler.fence.in_doubt = True
        await bus.publish(PaintingMade(number=1))
        await until(lambda: faulty.struck > 1)
        await bus.publish(PaintingMade(number=2))
        await until(lambda: len(eyes.pending("framers")) == 1)
        for fault in full:
            faulty.faults.remove(fault)
        await quiet(eyes, "framers")
    assert eyes.count("painting.framed") == 1
