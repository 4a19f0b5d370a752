"""The door to the server itself, for workers that keep something there which others read."""

import subprocess
import sys
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import trio
from studio import PaintingMade, running
from waiting import until

from canvasbus.bus import EventBus
from canvasbus.errors import ConfigError, ContractError, Unavailable
from canvasbus.store import ReplyError, Store, TrioStore, check, place
from canvasbus.worker import Context, Worker


def gallery() -> Worker:
    """A worker that counts paintings where others can see it."""
    worker = Worker("gallery")

    @worker.lifespan
    async def opened() -> AsyncIterator[TrioStore]:
        async with TrioStore() as store:
            yield store

    @worker.on(PaintingMade)
    async def count(event: PaintingMade, ctx: Context) -> None:
        (total,) = await ctx.resources.ask(("SADD", f"{place().namespace}:gallery", event.title))
        check(total, "counting")

    return worker


async def test_a_workers_store_is_on_the_server_of_its_bus(any_url: str, namespace: str) -> None:
    """Its lifespan names no URL, and its handlers know the namespace; others read by URL, in threads and in trio."""
    async with running(any_url, gallery(), namespace=namespace) as bus:
        await bus.publish(PaintingMade(title="irises"))
        with Store(any_url) as store:
            await until(lambda: store.ask(("SMEMBERS", f"{namespace}:gallery")) == [[b"irises"]])
        async with TrioStore(any_url) as there:
            assert await there.ask(("SCARD", f"{namespace}:gallery"), ("GET", f"{namespace}:none")) == [1, None]


async def test_a_private_server_in_memory_is_reached_too() -> None:
    """memory:// without a name has no URL that leads to it."""
    found: list[object] = []
    worker = Worker("gallery")

    @worker.on(PaintingMade)
    async def look(event: PaintingMade) -> None:
        async with TrioStore() as store:
            found.extend(await store.ask(("EXISTS", "{canvasbus:0}:stream:painting.made")))

    async with EventBus("memory://") as bus:
        bus.add(worker)
        await bus.publish(PaintingMade())
        await until(lambda: found)
    assert found == [1]


async def test_only_a_worker_knows_its_bus() -> None:
    """Elsewhere a URL must be named, and one that can be meant."""
    with pytest.raises(ContractError, match="name a URL"):
        TrioStore()
    with pytest.raises(ConfigError):
        Store("http://x")


async def test_tasks_and_threads_may_share_one(any_url: str, namespace: str) -> None:
    """Everybody gets the answer to their own question; an error reply is a value."""
    key = f"{namespace}:shared"
    async with TrioStore(any_url) as store, trio.open_nursery() as nursery:

        async def task(number: int) -> None:
            assert (await store.ask(("HSET", key, number, number), ("HGET", key, number)))[1] == b"%d" % number

        for number in range(50):
            nursery.start_soon(task, number)
    with Store(any_url) as plain:

        def thread(number: int) -> None:
            assert plain.ask(("HGET", key, number)) == [b"%d" % number]

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(trio.to_thread.run_sync, thread, number)
        (wrong,) = plain.ask(("GET", key))
        assert isinstance(wrong, ReplyError) and "WRONGTYPE" in str(wrong)


def test_a_forked_child_asks_over_a_connection_of_its_own(server_url: str) -> None:
    """Two processes on one socket would read each other's answers."""
    code = (
        "import os, sys; from canvasbus.store import Store; store = Store(sys.argv[1])\n"
        "mine = store.ask(('CLIENT', 'ID'))[0]; pid = os.fork()\n"
        "theirs = store.ask(('CLIENT', 'ID'))[0]\n"
        "if pid == 0: os._exit(0 if theirs != mine else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0; assert theirs == mine\n"
        "assert not {'trio', 'structlog'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, server_url], check=True, timeout=30)


def test_servers_in_memory_meet_by_name() -> None:
    """The same one for all who name it, another one for each who does not."""
    name = f"memory://store-{uuid4()}"
    Store(name).ask(("SET", "x", "1"))
    assert Store(name).ask(("GET", "x"), ("GET", "y")) == [b"1", None]
    private = Store("memory://")
    private.ask(("SET", "x", "1"))
    assert private.ask(("GET", "x")) == [b"1"] and Store("memory://").ask(("GET", "x")) == [None]


def test_a_server_that_is_away_is_one_line_and_comes_back(make_server) -> None:  # type: ignore[no-untyped-def]
    """Nothing is sent twice by itself: the one who asks decides."""
    server = make_server()
    with Store(server.url) as store:
        assert store.ask(("SET", "x", "1")) == [b"OK"]
        server.kill()
        for _ in range(2):
            with pytest.raises(Unavailable):
                store.ask(("GET", "x"))
        server.start()
        assert store.ask(("GET", "x")) == [None]
