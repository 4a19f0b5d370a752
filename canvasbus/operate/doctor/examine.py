"""Everything the doctor looks at, one finding after another as they are found."""

from collections.abc import Iterable, Iterator

from canvasbus.errors import TransportError
from canvasbus.operate.doctor.ask_namespace import ask_namespace
from canvasbus.operate.doctor.finding import Finding
from canvasbus.operate.doctor.judge_namespace import judge_namespace
from canvasbus.operate.doctor.judge_server import judge_address, judge_failure, judge_server
from canvasbus.operate.doctor.judge_workers import judge_started
from canvasbus.operate.doctor.rights import judge_rights, lacking
from canvasbus.operate.doctor.server import ask
from canvasbus.transport.address import Address
from canvasbus.transport.blocking import BlockingLink
from canvasbus.wire.keys import Keys


def examine(
    address: Address, link: BlockingLink, namespace: str, wanted: int | None = None, tables: Iterable[str] = ()
) -> Iterator[Finding]:
    """Look at a server and a namespace on it. A server that is away, or goes away meanwhile, is a finding too.

    `wanted`: the number of partitions that this process is set to; None: it takes what is on record.
    `tables`: workers that canvasbus.toml has settings for.
    """
    yield from judge_address(address)
    keys = Keys(namespace)
    try:
        facts = link.run(ask(keys))
        yield from judge_server(facts)
        yield from judge_rights(lacking(link, keys, group="group", event_type="type"), facts.user)
        found = link.run(ask_namespace(namespace, wanted))
        if facts.write_error:  # no heartbeat comes through either
            found.forget_who_lives()
        yield from judge_namespace(found, wanted)
        yield from judge_started(tables, found)
    except TransportError as error:
        yield judge_failure(error)


def without_server(address: Address) -> Finding | None:
    """What a URL means that leads to no server; None: it leads to one."""
    if address.scheme == "off":
        return Finding(
            "note",
            "url",
            "off://: the bus is switched off. Every publish is counted and dropped, flush says True, workers do not start",
            "give the URL of a server to switch it on",
        )
    if address.scheme == "memory":
        return Finding(
            "note",
            "url",
            "memory://: the bus lives in the memory of one process and ends with it; other processes, this one too, see "
            "nothing of it",
            "for more than one process, or to keep anything, give the URL of a server",
        )
    return None
