"""Real servers of one's own: what a crash leaves, and what has to be done about it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from servers import ServerProcess

TEN_AND_ONE = "for i = 1, 10 do redis.call('RPUSH', 'effects', string.rep(i, 300)) end redis.call('SET', 'done', 1)"


def torn(server: ServerProcess) -> None:
    """End the append-only file within the seventh of ten effects."""
    server.ask("SET before 1")
    server.ask(f'EVAL "{TEN_AND_ONE}" 0')
    server.kill()
    (file,) = Path(server.folder).glob("appendonlydir/*.incr.aof")
    data = file.read_bytes()
    file.write_bytes(data[: data.index(b"77777") + 30])


def state(server: ServerProcess) -> list[str]:
    return [server.ask(f"EXISTS {key}").strip() for key in ("before", "effects", "done", "after")]


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_torn_transaction_does_not_come_back(make_server: Callable[..., ServerProcess], kind: str) -> None:
    """A crash tore the file; a server that was mended has nothing of the transaction, neither now nor after the next
    crash."""
    server = make_server(kind, persistent=True)
    torn(server)
    server.start()
    assert state(server) == [":1", ":0", ":0", ":0"]
    server.ask("SET after 1")
    server.restart()
    assert state(server) == [":1", ":0", ":0", ":1"]


def test_without_that_it_does(make_server: Callable[..., ServerProcess]) -> None:
    """Redis carries out its beginning with the next transaction, or drops what it was told since. When this fails Redis
    has mended it: say so where it is mended, and let the doctor be silent."""
    server = make_server("redis", persistent=True)
    torn(server)
    server.start(mend=False)
    server.ask("SET after 1")
    server.kill()
    server.start(mend=False)
    assert state(server) == [":1", ":0", ":0", ":0"]
    torn(server)
    server.start(mend=False)
    server.ask(f'EVAL "{TEN_AND_ONE}" 0')
    server.kill()
    server.start(mend=False)
    assert server.ask("LLEN effects").strip() == ":16"
