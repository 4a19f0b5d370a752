"""A master that sentinels watch over: whoever connects asks them first where it is.

Theory of operation. There is nothing to keep up to date. A link connects when it is first used, after a failure, and
after an answer that only a replica gives (`resp.is_demoted`); each time the sentinels are asked anew, the one that
answered last first. What they say may be old (the failover is under way) or wrong from here (containers announce
addresses of their own network), so the server found is asked for its ROLE, and one that is no master is not used. The
callers wait between their attempts, so that nothing here repeats anything.

Sentinel's own notifications (+switch-master) are not listened to. A master that was replaced closes its connections
when it comes back as a replica, one that died has closed them, and one that is cut off answers nothing: the links
notice each of these by themselves, also when no sentinel can be heard.

A client that is cut off together with the old master goes on with it until the network heals, and what is acknowledged
there meanwhile is lost with it: that is what durability="replicated" is for.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING

from canvasbus.errors import Refused, TransportError, Unavailable
from canvasbus.transport.address import Address, place
from canvasbus.transport.remote import RemoteServer
from canvasbus.transport.resp import Packet, Reply, ReplyError, code, command

if TYPE_CHECKING:
    from canvasbus.transport.remote_threads import RemoteBlockingConnection
    from canvasbus.transport.remote_trio import RemoteConnection

SENTINEL_TIMEOUT = 1.0
"""Seconds for a sentinel to let us in, and as many to answer: there are others to ask."""

_Search = Generator[tuple[RemoteServer, Packet], Reply, None]
"""Yields whom to ask what, and is sent the answer, or thrown the failure. It returns when the one asked last is the
master."""


class SentinelServer:
    """The master that a group of sentinels knows under a name."""

    blocks = True
    shared = True

    def __init__(self, address: Address) -> None:
        self._address = address
        self._first = 0  # threads may disagree about it without harm
        self.name = address.shown

    def _search(self) -> _Search:
        address = self._address
        failures: list[TransportError] = []
        masters: list[TransportError] = []
        """What is wrong with each that was announced: it counts for more than what is wrong with a sentinel."""
        ignorant: list[RemoteServer] = []
        tried: set[tuple[str, int]] = set()
        count = len(address.sentinels)
        for number in [(self._first + i) % count for i in range(count)]:
            sentinel = self._sentinel(number)
            try:
                answer = yield sentinel, command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.master)
                if isinstance(answer, ReplyError) and code(answer) == "NOPERM":
                    raise Refused(f"{sentinel.name}: its user may not ask for the master ({answer})")
                if isinstance(answer, ReplyError):
                    raise Refused(f"{sentinel.name}: that is no sentinel ({answer}); redis:// leads to a server")
            except TransportError as error:
                failures.append(_with_hint(error))
                continue
            if answer is None:
                ignorant.append(sentinel)
                continue
            host, port = answer[0].decode(), int(answer[1])
            if (host, port) in tried:
                continue
            tried.add((host, port))
            master = RemoteServer(address.master_at(host, port), name=f"{self.name}, master at {place(host, port)}")
            try:
                role = yield master, command("ROLE")
            except TransportError as error:
                masters.append(_announced(error))
                continue
            if (
                isinstance(role, ReplyError) or role[0] == b"master"
            ):  # forbidden by an ACL, it is the first write that tells
                self._first = number
                return
            masters.append(Unavailable(f"{master.name}: it is a {role[0].decode()}, and no other is agreed on yet"))
        if masters:  # one that may come back counts for more than one that refuses us
            raise next((error for error in reversed(masters) if isinstance(error, Unavailable)), masters[-1])
        if ignorant:
            yield from self._tell_unknown(ignorant[0], failures)
        kind = Refused if all(isinstance(error, Refused) for error in failures) else Unavailable
        raise kind(f"{self.name}: no sentinel answers ({'; '.join(map(str, failures))})")

    def _tell_unknown(self, sentinel: RemoteServer, failures: list[TransportError]) -> _Search:
        try:
            masters = yield sentinel, command("SENTINEL", "MASTERS")
        except TransportError:
            masters = []
        names = [] if isinstance(masters, ReplyError) else sorted(one[1].decode(errors="replace") for one in masters)
        known = f"it knows {', '.join(names)}" if names else "it watches over none"
        others = f"; {'; '.join(map(str, failures))}" if failures else ""
        raise (Unavailable if failures else Refused)(
            f"{self.name}: the sentinel {sentinel.name} knows no master {self._address.master!r}: {known}{others}"
        )

    def _sentinel(self, number: int) -> RemoteServer:
        address = self._address.sentinel(number)
        return RemoteServer(address, name=place(address.host, address.port), timeout=SENTINEL_TIMEOUT)

    async def connect(self) -> "RemoteConnection":
        search = self._search()
        ask = next(search)
        while True:
            try:
                connection, answer = await _ask(*ask)
            except TransportError as error:
                ask = search.throw(error)
                continue
            found = False
            try:
                ask = search.send(answer)
            except StopIteration:
                found = True
                return connection
            finally:
                if not found:
                    await connection.aclose()

    def connect_blocking(self) -> "RemoteBlockingConnection":
        search = self._search()
        ask = next(search)
        while True:
            server, packet = ask
            try:
                connection = server.connect_blocking()
                (answer,) = connection.request(packet.data, packet.replies, server.timeout)  # closes it when it fails
            except TransportError as error:
                ask = search.throw(error)
                continue
            found = False
            try:
                ask = search.send(answer)
            except StopIteration:
                found = True
                return connection
            finally:
                if not found:
                    connection.close()

    def __repr__(self) -> str:
        return f"<SentinelServer {self.name}>"


async def _ask(server: RemoteServer, packet: Packet) -> "tuple[RemoteConnection, Reply]":
    import trio  # here: threads find their master without it

    connection = await server.connect()
    try:
        with trio.move_on_after(server.timeout):
            await connection.send(packet.data)
            return connection, (await connection.receive())[0]
        raise Unavailable(f"{server.name}: no answer for {server.timeout:g} s")
    except BaseException:
        await connection.aclose()
        raise


def _with_hint(error: TransportError) -> TransportError:
    """The credentials before the @ are the master's, which nobody guesses."""
    if isinstance(error, Refused) and ("password" in str(error) or "NOPERM" in str(error)):
        return Refused(f"{error}; a sentinel's own is given by ?sentinel_username= and ?sentinel_password=")
    return error


def _announced(error: TransportError) -> TransportError:
    """Nobody there: dead, or reachable from elsewhere only."""
    if isinstance(error, Refused) or isinstance(error.__cause__, ReplyError):
        return error
    return Unavailable(
        f"{error} (the sentinels give this address; if it is never right from here, let the server announce another: "
        "replica-announce-ip and sentinel announce-ip, or host names with sentinel resolve-hostnames)"
    )
