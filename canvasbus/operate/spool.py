"""What lies in a Producer's spool: whose it is, what is still to be sent, what cannot be read; and sending it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from canvasbus.errors import CanvasbusError, ConfigError
from canvasbus.produce import spoolfolder
from canvasbus.produce.producer import Producer, ProducerStatistics
from canvasbus.produce.spool import read_record, records
from canvasbus.produce.spoolfile import file_name
from canvasbus.produce.spoolfolder import FoundLog
from canvasbus.wire import later
from canvasbus.wire.codec import decode_envelope
from canvasbus.wire.keys import LATER_INBOX
from canvasbus.wire.outgoing import Outgoing

_NO_MATTER = ("lost+found", ".gitkeep")
"""What lies in a folder that is empty."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of which a part cannot be read."""

    file: str
    intact: int
    """Bytes from its beginning that can be."""
    size: int
    """Bytes in all."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """What one process wrote."""

    name: str
    """Its folder in the spool."""
    alive: bool
    pid: int | None
    """Of the process that holds it now, else of the one that wrote it."""
    host: str | None
    namespace: str | None
    """None, here and above: nothing of it can be read, or it has written nothing yet."""
    partitions: int | None
    server: str | None
    events: int
    """Events whose fate is open."""
    size: int
    """Bytes on disk."""
    oldest: datetime | None
    """When the oldest of those events occurred."""
    settled: int
    """Events whose fate is known."""
    sending: int
    """Events that were on their way when it last said so."""
    damaged: tuple[Damage, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What `look_into` found."""

    processes: tuple[Spooled, ...]
    """Those that began first in front."""
    set_aside: tuple[Damage, ...]
    """What others could not read and kept beside."""


def look_into(root: Path) -> Contents:
    """Read every byte of a spool and change nothing. Raises ConfigError when it cannot be read, and CanvasbusError when other
    things lie there, and no spool. An empty folder is an empty spool."""
    try:
        processes = [found for path in spoolfolder.folders(root) if (found := _process(path)) is not None]
        aside = [Damage(path.name, 0, path.stat().st_size) for path in spoolfolder.aside(root)]
        # A Producer may have begun, or all that was here may have been sent, meanwhile.
        there = set() if processes or aside else set(root.iterdir()) - set(spoolfolder.folders(root))
        others = sorted(path for path in there if path.name not in _NO_MATTER and path.exists())
    except OSError as error:
        raise ConfigError(f"{error.filename or root}: {error.strerror}") from None
    if others:
        inner = next((f"; there is one in {path}" for path in others if _is_spool(path)), "")
        raise CanvasbusError(f"no spool is in {root}{inner}")
    return Contents(tuple(processes), tuple(aside))


def _is_spool(path: Path) -> bool:
    try:
        return bool(spoolfolder.folders(path))
    except OSError:  # no folder, or not to be read by this user
        return False


def _process(path: Path) -> Spooled | None:
    holder = spoolfolder.holder(path)
    alive = holder is not None
    try:
        logs = spoolfolder.read_folder(path)
        damaged = {(file, intact): size for log in logs for file, intact, size in log.damaged}
        if damaged and alive:  # what it is just writing looks torn; a moment later it does not
            again = {(file, intact) for log in spoolfolder.read_folder(path) for file, intact, _ in log.damaged}
            damaged = {key: size for key, size in damaged.items() if key in again}
        oldest = min(filter(None, (_oldest(path, log) for log in logs)), default=None)
    except FileNotFoundError:
        return None if not path.exists() else _process(path)  # sent and deleted meanwhile
    header = next((log.header for log in logs if log.header), None)
    return Spooled(
        name=path.name,
        alive=alive,
        pid=holder or (header.pid if header else None),
        host=header.host if header else None,
        namespace=header.namespace if header else None,
        partitions=header.partitions if header else None,
        server=header.server if header else None,
        events=sum(log.ledger.events for log in logs),
        size=sum(log.ledger.bytes for log in logs),
        oldest=oldest,
        settled=sum(log.ledger.settled for log in logs),
        sending=sum(sent.end - sent.start for log in logs if (sent := log.ledger.sending)),
        damaged=tuple(Damage(file.name, intact, size) for (file, intact), size in sorted(damaged.items())),
    )


def _oldest(path: Path, log: FoundLog) -> datetime | None:
    segment = log.ledger.where(log.ledger.settled)
    if segment is None:
        return None
    for record in records((path / file_name(log.partition, segment.serial)).read_bytes()):
        event = read_record(record)
        if isinstance(event, Outgoing) and record.number >= log.ledger.settled:
            return _occurred_on(event)
    return None


class _Occurred(msgspec.Struct):
    occurred_on: datetime


def _occurred_on(event: Outgoing) -> datetime | None:
    try:
        data = later.unwrap(event.data)[1] if event.type == LATER_INBOX else event.data
        return msgspec.msgpack.decode(decode_envelope(data).data, type=_Occurred).occurred_on
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        return None


def drain(
    root: Path,
    url: str,
    namespace: str,
    partitions: int,
    *,
    patience: float,
    tell: Callable[[ProducerStatistics], None],
) -> ProducerStatistics:
    """Send what dead processes left, each event once and in order, as the next Producer would.

    Gives up when nothing was settled for `patience` seconds; `tell` is called about once a second. What is left stays.
    """
    with Producer(url, namespace=namespace, partitions=partitions, spool=root, flush_timeout=0.0) as bus:
        stuck, before = 0.0, -1
        while not bus.flush(timeout=min(1.0, patience)) and stuck < patience:
            now = bus.statistics()
            if not now.waiting_events and now.recovered:
                break
            tell(now)
            settled = now.stored + now.refused + now.unknown + now.dropped
            stuck = stuck + min(1.0, patience) if settled == before and now.recovered else 0.0
            before = settled
        return bus.statistics()
