"""Links: whose reply is whose, what a failure means, and that nothing is sent twice."""

import random
import select
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import trio
import trio.testing
from scripted import Scripted
from servers import ServerProcess
from waiting import until

from canvasbus.errors import Refused, Unavailable
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.connect import open_server
from canvasbus.transport.link import Link, SharedLink
from canvasbus.transport.resp import Operation, Packet, Pause, Reply, ReplyError, command, commands


class Puppet:
    """A server whose every move the test decides: it answers what is put into `answers`, when it is put there."""

    name = "puppet://"
    blocks = True
    shared = True

    def __init__(self) -> None:
        self.connections: list[PuppetConnection] = []
        self.refuse: Exception | None = None

    async def connect(self) -> "PuppetConnection":
        await trio.lowlevel.checkpoint()
        if self.refuse is not None:
            raise self.refuse
        self.connections.append(PuppetConnection())
        return self.connections[-1]

    def connect_blocking(self) -> "PuppetBlocking":
        if self.refuse is not None:
            raise self.refuse
        return PuppetBlocking()

    @property
    def last(self) -> "PuppetConnection":
        return self.connections[-1]


class PuppetConnection:
    client_id: int | None = 7
    history = "puppet"

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.answers: deque[list[Reply] | Exception] = deque()
        self.stuck = False
        self.closed = False
        self._news = trio.lowlevel.ParkingLot()

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        while self.stuck:
            await self._news.park()
        self.sent.append(data)

    async def receive(self) -> list[Reply]:
        await trio.lowlevel.checkpoint()
        while not self.answers:
            await self._news.park()
        answer = self.answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def trouble(self) -> str:
        return ""

    async def wait_change(self, seconds: float) -> None:
        raise AssertionError

    async def aclose(self) -> None:
        self.closed = True
        self._news.unpark_all()
        await trio.lowlevel.checkpoint()

    def answer(self, *replies: Reply) -> None:
        self.answers.append(list(replies))
        self._news.unpark_all()

    def break_with(self, error: Exception) -> None:
        self.answers.append(error)
        self._news.unpark_all()


class PuppetBlocking:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def request(self, data: bytes, replies: int, timeout: float) -> list[Reply]:
        self.sent.append(data)
        return [b"ok"] * replies

    def close(self) -> None:
        pass


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
async def shared(puppet: Puppet, nursery: trio.Nursery) -> SharedLink:
    link = SharedLink(puppet, timeout=5)
    await nursery.start(link.run_tasks)
    return link


@pytest.fixture
async def real(any_url: str, nursery: trio.Nursery) -> AsyncIterator[SharedLink]:
    link = SharedLink(open_server(any_url))
    await nursery.start(link.run_tasks)
    yield link


async def settle_down() -> None:
    await trio.testing.wait_all_tasks_blocked()


# --- one task's link --------------------------------------------------------------------------------------------------


async def test_the_reply_of_a_cancelled_request_is_skipped(puppet: Puppet) -> None:
    """A request cancelled while it waits leaves its reply to nobody; the next request gets its own."""
    link = Link(puppet)
    with trio.move_on_after(0):
        await link.request(Packet(b"first", 2))
    await trio.lowlevel.checkpoint()
    async with trio.open_nursery() as nursery:

        async def cancelled() -> None:
            with trio.CancelScope() as scope:
                scopes.append(scope)
                await link.request(Packet(b"second", 2))

        scopes: list[trio.CancelScope] = []
        nursery.start_soon(cancelled)
        await settle_down()
        puppet.last.answer(b"second-1")
        await settle_down()
        scopes[0].cancel()
        await settle_down()
        puppet.last.answer(b"second-2", b"third-1")
        assert await link.request(Packet(b"third", 1)) == [b"third-1"]
    assert puppet.last.sent[-2:] == [b"second", b"third"]
    await link.aclose()


async def test_a_send_cut_in_the_middle_poisons_the_connection(puppet: Puppet) -> None:
    """After a cancelled send nobody knows how many bytes left: the connection is closed, the next request has a new one."""
    link = Link(puppet)
    await link.connect()
    puppet.last.stuck = True
    with trio.move_on_after(0.01):
        await link.request(Packet(b"half", 1))
    await settle_down()
    assert puppet.connections[0].closed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.request, Packet(b"whole", 1))
        await settle_down()
        assert puppet.connections[1].sent == [b"whole"]
        puppet.connections[1].answer(b"ok")
    assert link.epoch == 2
    await link.aclose()


async def test_no_answer_in_time_means_away(puppet: Puppet, autojump_clock: trio.testing.MockClock) -> None:
    """A server that accepts and never answers is Unavailable after the timeout, and what it did is unknown."""
    link = Link(puppet, timeout=5)
    before = trio.current_time()
    with pytest.raises(Unavailable, match="no answer for 5 s") as raised:
        await link.request(Packet(b"ping", 1))
    assert raised.value.ambiguous and trio.current_time() - before == pytest.approx(5)
    await settle_down()
    assert puppet.last.closed
    before = trio.current_time()
    with pytest.raises(Unavailable, match="no answer for 30 s"):
        await link.request(Packet(b"blocking", 1), timeout=30)
    assert trio.current_time() - before == pytest.approx(30)


async def test_a_server_that_takes_no_bytes_is_away(puppet: Puppet, autojump_clock: trio.testing.MockClock) -> None:
    """A send that is stuck ends after the timeout."""
    link = Link(puppet, timeout=5)
    await link.connect()
    puppet.last.stuck = True
    with pytest.raises(Unavailable, match="could not send"):
        await link.request(Packet(b"ping", 1))


async def test_a_broken_connection_is_ambiguous_a_refused_one_is_not(puppet: Puppet) -> None:
    """After bytes have left the outcome is unknown; a connect that failed sent nothing."""
    link = Link(puppet)
    await link.connect()
    puppet.last.break_with(Unavailable("cut"))
    with pytest.raises(Unavailable, match="cut") as raised:
        await link.request(Packet(b"x", 1))
    assert raised.value.ambiguous
    puppet.refuse = Unavailable("nobody listens there")
    with pytest.raises(Unavailable, match="nobody") as raised:
        await link.request(Packet(b"x", 1))
    assert not raised.value.ambiguous
    puppet.refuse = Refused("wrong password")
    with pytest.raises(Refused, match="wrong password"):
        await link.request(Packet(b"x", 1))


async def test_more_replies_than_were_asked_for_end_the_connection(puppet: Puppet) -> None:
    """Nobody knows which reply is the answer, so none is given: ambiguous, and what comes next has a new connection."""
    link = Link(puppet)
    await link.connect()
    puppet.last.answer(b"stray", b"answer")
    with pytest.raises(Unavailable, match="more than was asked for") as caught:
        await link.request(Packet(b"x", 1))
    assert caught.value.ambiguous
    await link.connect()
    puppet.last.answer(b"ok")
    assert await link.request(Packet(b"y", 1)) == [b"ok"]
    assert [connection.sent for connection in puppet.connections] == [[b"x"], [b"y"]] and puppet.connections[0].closed
    await link.aclose()


async def test_nothing_is_sent_again_by_itself(puppet: Puppet) -> None:
    """A request that failed is not repeated on the new connection; only its caller knows whether it may be."""
    link = Link(puppet)
    await link.connect()
    puppet.last.break_with(Unavailable("cut"))
    with pytest.raises(Unavailable):
        await link.request(Packet(b"once", 1))
    await link.connect()
    assert [c.sent for c in puppet.connections] == [[b"once"], []]
    await link.aclose()


def doubling(log: list[str]) -> Operation[str]:
    """An operation with everything: packets, a pause, a failure that it handles."""
    try:
        replies = yield command("PING")
    except Unavailable as error:
        log.append(str(error))
        yield Pause(0.01)
        replies = yield command("PING")
    return str(replies[0].decode())


async def test_an_operation_runs_the_same_under_trio_and_in_a_thread(any_url: str) -> None:
    """One generator, driven by both kinds of link, with the failure thrown in where it happened."""
    server = open_server(any_url)
    link, blocking = Link(server), BlockingLink(server)
    assert await link.run(doubling([])) == "PONG"
    assert blocking.run(doubling([])) == "PONG"
    blocking.close()
    await link.aclose()


async def test_a_failure_is_thrown_into_the_operation(puppet: Puppet) -> None:
    """The operation learns of a broken connection where it yielded the packet, and may go on."""
    link = Link(puppet)
    await link.connect()
    puppet.last.break_with(Unavailable("cut"))
    log: list[str] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            assert await link.run(doubling(log)) == "PONG"

        nursery.start_soon(run)
        while len(puppet.connections) < 2 or not puppet.last.sent:
            await trio.sleep(0.005)
        puppet.last.answer(b"PONG")
    assert log == ["cut"]
    await link.aclose()


# --- everybody's link -------------------------------------------------------------------------------------------------


async def test_requests_of_many_tasks_leave_in_one_piece(puppet: Puppet, shared: SharedLink) -> None:
    """What gathers while the writer is away is sent together, in order; replies are handed out first-in-first-out."""
    results: dict[int, list[Reply]] = {}

    async def ask(number: int) -> None:
        results[number] = await shared.request(Packet(b"<%d>" % number, number + 1))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(ask, number)
            await trio.lowlevel.checkpoint()
        await settle_down()
        order = [int(part) for part in b"".join(puppet.last.sent).decode().strip("<>").split("><")]
        assert sorted(order) == [0, 1, 2] and len(puppet.last.sent) < 3
        replies = [b"%d" % number for number in order for _ in range(number + 1)]
        puppet.last.answer(*replies[:2])
        puppet.last.answer(*replies[2:])
    assert results == {number: [b"%d" % number] * (number + 1) for number in range(3)}


async def test_a_cancelled_waiter_keeps_its_place(puppet: Puppet, shared: SharedLink) -> None:
    """Cancelling one of three waiting requests drops its reply and moves nobody else's."""
    results: dict[bytes, list[Reply]] = {}
    scopes: dict[bytes, trio.CancelScope] = {}

    async def ask(name: bytes) -> None:
        with trio.CancelScope() as scopes[name]:
            results[name] = await shared.request(Packet(name, 1))

    async with trio.open_nursery() as nursery:
        for name in (b"a", b"b", b"c"):
            nursery.start_soon(ask, name)
            await settle_down()
        scopes[b"b"].cancel()
        await settle_down()
        puppet.last.answer(b"A", b"B", b"C")
    assert results == {b"a": [b"A"], b"c": [b"C"]}


async def test_one_broken_connection_fails_all_who_wait(puppet: Puppet, shared: SharedLink) -> None:
    """Everybody in the queue hears of it at once, and who comes after gets a new connection."""
    errors: list[Unavailable] = []

    async def ask() -> None:
        try:
            await shared.request(Packet(b"x", 1))
        except Unavailable as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await settle_down()
        puppet.last.break_with(Unavailable("cut"))
    assert len(errors) == 5 and all(error.ambiguous for error in errors)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await settle_down()
        puppet.last.answer(b"ok")
    assert len(errors) == 5 and shared.epoch == 2 and puppet.connections[0].closed


async def test_a_reply_that_nobody_waits_for_ends_the_connection(puppet: Puppet, shared: SharedLink) -> None:
    """A stray reply costs the connection, not the link: who comes next is answered by a new one."""
    for epoch, answer in enumerate(([b"ok", b"stray"], [b"ok"]), 1):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def ask() -> None:
                assert await shared.request(Packet(b"x", 1)) == [b"ok"]

            await settle_down()
            assert shared.epoch == epoch
            puppet.last.answer(*answer)
        await settle_down()
    assert puppet.connections[0].closed and not puppet.connections[1].closed


async def test_a_silent_server_fails_the_waiting(
    puppet: Puppet, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """No answer for the timeout: the connection is given up; an idle link never times out."""
    shared = SharedLink(puppet, timeout=5)
    await nursery.start(shared.run_tasks)

    async def answer_soon() -> None:
        while not puppet.connections or not puppet.last.sent:
            await trio.sleep(1)
        puppet.last.answer(b"ok")

    nursery.start_soon(answer_soon)
    await shared.request(Packet(b"x", 1))
    await trio.sleep(3600)
    assert shared.epoch == 1
    before = trio.current_time()
    with pytest.raises(Unavailable, match="no answer for 5 s"):
        await shared.request(Packet(b"x", 1))
    assert trio.current_time() - before == pytest.approx(5)


async def test_after_the_end_nothing_is_asked(puppet: Puppet, autojump_clock: trio.testing.MockClock) -> None:
    """A request on a link whose tasks have ended fails at once; it would wait for ever."""
    shared = SharedLink(puppet)
    async with trio.open_nursery() as nursery:
        await nursery.start(shared.run_tasks)
        nursery.cancel_scope.cancel()
    with pytest.raises(Unavailable):
        with trio.fail_after(1):
            await shared.request(Packet(b"x", 1))


async def test_a_connection_that_breaks_as_its_link_ends_is_closed(puppet: Puppet) -> None:
    """In the very same moment: nobody else would close its socket."""
    shared = SharedLink(puppet)
    async with trio.open_nursery() as nursery:
        await nursery.start(shared.run_tasks)
        nursery.start_soon(shared.request, Packet(b"x", 1))
        await settle_down()
        puppet.last.break_with(Unavailable("cut"))
        nursery.cancel_scope.cancel()
    assert puppet.last.closed


async def test_three_hundred_tasks_each_get_their_own_replies(real: SharedLink) -> None:
    """Interleaved requests of 1 to 4 commands from 300 tasks, a third of them cancelled at a random moment: whoever
    gets an answer gets his own. The seed of the moments is fixed."""
    rng = random.Random(1729)
    wrong: list[object] = []
    answered = 0

    async def ask(number: int) -> None:
        nonlocal answered
        for turn in range(10):
            texts = [f"{number}-{turn}-{i}" for i in range(rng.randint(1, 4))]
            with trio.CancelScope() as scope:
                if rng.random() < 0.3:
                    scope.deadline = trio.current_time() + rng.random() * 0.003
                replies = await real.request(commands(*(("ECHO", text) for text in texts)))
                answered += 1
                if replies != [text.encode() for text in texts]:
                    wrong.append((texts, replies))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(ask, number)
    assert not wrong
    assert answered > 1500
    assert await real.call("PING") == b"PONG"


async def test_error_replies_reach_only_their_own_request(real: SharedLink) -> None:
    """An error among pipelined requests is the value of one of them."""
    results: dict[int, Reply] = {}

    async def ask(number: int) -> None:
        results[number] = await (real.call("NONSENSE") if number % 2 else real.call("ECHO", number))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(ask, number)
    for number, reply in results.items():
        assert isinstance(reply, ReplyError) if number % 2 else reply == b"%d" % number


# --- a real server that cuts ------------------------------------------------------------------------------------------


async def test_a_killed_client_connects_again(server_url: str, nursery: trio.Nursery) -> None:
    """CLIENT KILL: one error at most, and the next request is answered. A link of one task has noticed before it sent
    anything, so that nothing is ambiguous."""
    server = open_server(server_url)
    shared, link, other = SharedLink(server), Link(server), BlockingLink(server)
    await nursery.start(shared.run_tasks)
    for request in (shared.request, link.request):
        (number,) = await request(command("CLIENT", "ID"))
        assert other.call("CLIENT", "KILL", "ID", number) == 1
        with trio.fail_after(10):
            while True:
                try:
                    (after,) = await request(command("CLIENT", "ID"))
                    break
                except Unavailable as error:
                    assert error.ambiguous is (request == shared.request)
        assert after != number
    assert shared.epoch == link.epoch == 2
    other.close()
    await link.aclose()


async def test_a_cancelled_blocking_read_keeps_its_place_too(server_url: str, namespace: str) -> None:
    """A blocked XREADGROUP that was cancelled: the next request on the link waits for it and gets its own reply."""
    server = open_server(server_url)
    link = Link(server)
    await link.request(command("XGROUP", "CREATE", namespace, "g", "0", "MKSTREAM"))
    read = command("XREADGROUP", "GROUP", "g", "me", "BLOCK", 150, "STREAMS", namespace, ">")
    with trio.move_on_after(0.02):
        await link.request(read)
    assert await link.request(command("PING")) == [b"PONG"]
    await link.aclose()


async def test_megabytes_both_ways_do_not_lock_up(server_url: str, nursery: trio.Nursery) -> None:
    """8 tasks × 20 values of 200 kB at once: sender and receiver never wait for each other."""
    shared = SharedLink(open_server(server_url))
    await nursery.start(shared.run_tasks)

    async def ask(number: int) -> None:
        value = bytes([number]) * 200_000
        for _ in range(20):
            assert await shared.call("ECHO", value) == value

    with trio.fail_after(20):
        async with trio.open_nursery() as inner:
            for number in range(8):
                inner.start_soon(ask, number)


def test_a_blocking_link_says_where_it_stands() -> None:
    """repr and epoch tell about connection and reconnection, for logs and assertions."""
    puppet = Puppet()
    link = BlockingLink(puppet)
    assert repr(link) == "<BlockingLink puppet:// closed, epoch 0>"
    link.call("PING")
    assert repr(link) == "<BlockingLink puppet:// connected, epoch 1>"


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.close()


@pytest.mark.parametrize("answer", [b"+stray\r\n+a\r\n", b"+a\r\n$5\r\nhal"])
def test_more_than_was_asked_for_ends_a_blocking_connection(scripted: Scripted, answer: bytes) -> None:
    """A reply too many, or a part of one: ambiguous, and the next request has a new connection and its own answer."""
    link = BlockingLink(open_server(scripted.url))
    scripted.answers = [answer, b"+b\r\n"]
    with pytest.raises(Unavailable, match="more than was asked for") as caught:
        link.call("A")
    assert caught.value.ambiguous
    assert link.call("B") == b"b"
    assert (link.epoch, scripted.heard) == (2, [b"A", b"B"])
    link.close()


def test_a_stray_reply_is_not_taken_for_the_answer(scripted: Scripted) -> None:
    """What waits on a connection before a request is nobody's answer: nothing is sent, so nothing is ambiguous."""
    link = BlockingLink(open_server(scripted.url))
    scripted.answers = [b"+a\r\n", b"+b\r\n"]
    assert link.call("A") == b"a"
    scripted.clients[0].sendall(b"*0\r\n")
    select.select([link._connection._connection._sock], [], [], 10)  # type: ignore[union-attr]
    with pytest.raises(Unavailable, match="more than was asked for") as caught:
        link.call("B")
    assert not caught.value.ambiguous and scripted.heard == [b"A"]
    assert link.call("B") == b"b"
    link.close()


async def test_a_stray_reply_is_not_taken_for_the_answer_of_a_task(scripted: Scripted) -> None:
    """The same on the link of a trio task, which asks the socket before it sends."""
    link = Link(open_server(scripted.url))
    scripted.answers = [b"+a\r\n", b"+b\r\n"]
    assert await link.request(command("A")) == [b"a"]
    scripted.clients[0].sendall(b"*0\r\n")
    await until(lambda: link._connection is not None and link._connection.trouble())
    with pytest.raises(Unavailable, match="nobody asked for") as caught:
        await link.request(command("B"))
    assert not caught.value.ambiguous and scripted.heard == [b"A"]
    assert await link.request(command("B")) == [b"b"]
    await link.aclose()


async def test_a_connection_knows_whose_data_it_leads_to(make_server: Callable[..., ServerProcess]) -> None:
    """`history` stays the same over a new connection to the same server, and is another one after a restart."""
    server = make_server(persistent=True)
    link, seen = Link(open_server(server.url)), []
    for happens in (lambda: None, lambda: None, server.restart):
        await link.aclose()
        happens()
        await link.connect()
        seen.append(link.history)
    await link.aclose()
    assert seen[0] and seen[0] == seen[1] != seen[2] and link.history == ""


@pytest.mark.parametrize("pong", [b"*1\r\n$4\r\nPING\r\n", b"*0\r\n"])
async def test_what_does_not_answer_ping_with_pong_is_no_server(scripted: Scripted, pong: bytes) -> None:
    """A socket that is connected to itself answers every command with the command: Unavailable for both kinds of link."""
    scripted.pong = pong
    with pytest.raises(Unavailable, match="PING was answered with"):
        await Link(open_server(scripted.url)).request(command("A"))
    with pytest.raises(Unavailable, match="PING was answered with"):
        await trio.to_thread.run_sync(lambda: BlockingLink(open_server(scripted.url)).call("A"))
    assert scripted.heard == []
