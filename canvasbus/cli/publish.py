"""canvasbus publish: one event from the command line, or a file of them.

A line that is no valid event is reported by its number and skipped; the others go on. A server that goes away ends the
command, and the message says which lines are stored; with --dedupe the whole file can simply be published again.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from canvasbus.cli.context import Context
from canvasbus.cli.output import safe
from canvasbus.cli.times import seconds_of
from canvasbus.contract.event import correlation
from canvasbus.contract.registry import registry
from canvasbus.errors import CanvasbusError, ConfigError, DecodeError, EncodeError, Unavailable
from canvasbus.ids import keyed, uuid7
from canvasbus.operate.given import from_json
from canvasbus.produce.fenced import declare_partitions
from canvasbus.produce.once import Dedupe, PartitionSender
from canvasbus.wire.codec import Codec, expiry
from canvasbus.wire.keys import partition_of
from canvasbus.wire.marks import WINDOW_SECONDS, window_ms
from canvasbus.wire.outgoing import Outgoing

BATCH_EVENTS = 500
BATCH_BYTES = 1024 * 1024
PATIENCE = 10.0
"""Seconds for which a server that goes away in the middle is waited for."""


@dataclass(frozen=True, slots=True)
class _Item:
    line: int
    event: Outgoing


def run(context: Context, args: argparse.Namespace) -> int:
    """1 when a line was no event or was refused."""
    context.out.acts = not args.dry_run
    type_name, data = args.type, args.data
    if args.source_file is None and data is None:
        if type_name is None or not (type_name == "-" or type_name.lstrip().startswith("{")):
            raise ConfigError("publish: give TYPE and JSON, or a CloudEvents object, or --from FILE (- reads stdin)")
        type_name, data = None, type_name
    if args.source_file is not None and data is not None:
        raise ConfigError("publish: give either JSON or --from FILE")
    expires_in = None if args.expires_in is None else seconds_of(args.expires_in, "--expires-in")
    if args.dedupe_key is not None and (args.dedupe or args.source_file is not None):
        raise ConfigError("publish: --dedupe-key names one event; a file of them has --dedupe, which goes by their ids")
    if args.dedupe_key == "":
        raise ConfigError("publish: --dedupe-key is empty")
    if args.dedupe_window is not None and not (args.dedupe or args.dedupe_key):
        raise ConfigError(
            "publish: --dedupe-window says how long --dedupe or --dedupe-key is remembered: add one of them"
        )
    window = WINDOW_SECONDS if args.dedupe_window is None else seconds_of(args.dedupe_window, "--dedupe-window")
    window_ms(window, "--dedupe-window")
    belongs_to = None if args.correlation is None else _uuid(args.correlation)
    publishing = _Publishing(
        context,
        dry_run=args.dry_run,
        expires_in=expires_in,
        dedupe=Dedupe(args.dedupe or args.dedupe_key is not None, window),
        dedupe_key=args.dedupe_key,
    )
    with correlation(belongs_to) if belongs_to else contextlib.nullcontext():
        if args.source_file is None:
            text = _read_stdin() if data == "-" else data.encode(errors="surrogateescape")
            publishing.one(text, type_name)
        else:
            with _opened(args.source_file) as (file, total), _progress(context, total) as advance:
                publishing.many(file, args.source_file, type_name, advance)
    publishing.finish()
    return 1 if publishing.failed else 0


def _lines(numbers: Iterable[int]) -> str:
    """lines 1-4, 7"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return "lines " + ", ".join("-".join(map(str, run)) for run in runs)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ConfigError(f"--correlation {safe(text)}: not a UUID, like {uuid7()}") from None


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON value; leave the field out")


def _finite(text: str) -> float:
    value = float(text)
    return value if isfinite(value) else _refuse(text)


class _Publishing:
    """What becomes of the lines of one command."""

    def __init__(
        self, context: Context, *, dry_run: bool, expires_in: float | None, dedupe: Dedupe, dedupe_key: str | None
    ) -> None:
        self.failed = 0
        self._context = context
        self._out = context.out
        self._dry = dry_run
        self._expires_in = expires_in
        self._dedupe = dedupe
        self._dedupe_key = dedupe_key
        self._off = not dry_run and context.loaded.require_url("publish").startswith("off:")
        self._stored = 0
        self._last: tuple[Outgoing, str] | None = None
        self._codecs: dict[str, Codec] = {}
        self._waiting: list[_Item] = []
        self._bytes = 0
        self._on_its_way: list[_Item] = []
        """Of the batch that is being sent, what goes to the partition in turn."""
        self._senders: list[PartitionSender] = []
        context.codec  # noqa: B018  the event types are imported before anything is read
        if not dry_run and not self._off:
            context.link.run(declare_partitions(context.settings.namespace, len(context.partitions)))
            self._senders = [PartitionSender(keys, dedupe=dedupe) for keys in context.partitions]

    def one(self, text: bytes, type_name: str | None) -> None:
        """The event of the command line. Raises EncodeError when it is none."""
        self._add(0, self._encoded(text, type_name))
        self._send()

    def many(self, file: BinaryIO, name: str, type_name: str | None, advance: Callable[[int], None]) -> None:
        """Every line of a file. Raises ConfigError where it cannot be read any further, after those before that. After Ctrl-C
        it says how far it came."""
        try:
            self._many(file, name, type_name, advance)
        except KeyboardInterrupt:
            if not (self._dry or self._off):
                self._out.note(f"canvasbus: interrupted; {self._how_far()}")
            raise

    def _many(self, file: BinaryIO, name: str, type_name: str | None, advance: Callable[[int], None]) -> None:
        unreadable: OSError | None = None

        def lines() -> Iterator[bytes]:
            nonlocal unreadable
            try:
                yield from file
            except OSError as error:  # caught here: one of the output is another matter
                unreadable = error

        number = 0
        for number, line in enumerate(lines(), 1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if text:
                try:
                    self._add(number, self._encoded(text, type_name))
                except (EncodeError, DecodeError) as error:
                    self._failed(number, error)
            advance(len(line))
        self._send()
        if unreadable is not None:
            where = f" behind line {number}; the lines up to there are done" if number else ""
            raise ConfigError(f"--from {name}: it cannot be read ({unreadable.strerror}){where}")

    def finish(self) -> None:
        """Say how it went."""
        out = self._out
        if out.json:
            return
        events = f"{self._stored:,} event{'s' if self._stored != 1 else ''}"
        if self._dry:
            out.line(f"{events} valid; nothing was sent")
        elif self._off:
            out.line(f"the bus is switched off (off://): {events} not sent")
        elif self._stored == 1 and self._last:
            event, entry_id = self._last
            out.line(f"published {event.type} {event.id} as {entry_id}")
        else:
            out.line(f"published {events}")
        known = sum(sender.statistics.duplicates for sender in self._senders)
        if known:
            out.line(f"{'it was' if known == self._stored == 1 else f'{known:,} of them were'} there already")
        if self.failed:
            lines = f"{self.failed:,} line{'s' if self.failed != 1 else ''}"
            advice = "; publish only what was mended, the others are stored" if self._stored and not self._dry else ""
            out.note(f"canvasbus: {lines} not published{advice}")

    def _encoded(self, text: bytes, type_name: str | None) -> Outgoing:
        try:
            outer = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise EncodeError(f"not JSON: {error}") from error
        if not isinstance(outer, dict):
            raise EncodeError("an event is a JSON object; in a file, one on each line")
        event, around = from_json(text, type_name=type_name)
        event_id = around.event_id
        if self._dedupe_key is not None:
            event_id = keyed(registry.of(type(event)).name, self._dedupe_key)
        elif self._dedupe.always and event_id is None:
            raise EncodeError("it has no `id`, by which --dedupe would know it again")
        source = around.source or self._context.settings.source
        codec = self._codecs.get(source)
        if codec is None:
            codec = self._codecs[source] = Codec(source, limit=self._context.settings.max_event_bytes)
        return codec.encode(
            event,
            event_id=event_id,
            causation_id=around.cause,
            traceparent=around.traceparent,
            expires_on=around.expires_on if self._expires_in is None else expiry(self._expires_in),
        )

    def _add(self, line: int, event: Outgoing) -> None:
        self._waiting.append(_Item(line, event))
        self._bytes += len(event.data)
        if len(self._waiting) >= BATCH_EVENTS or self._bytes >= BATCH_BYTES:
            self._send()

    def _send(self) -> None:
        items = self._waiting
        if self._dry or self._off:
            for item in items:
                self._done(item, None)
            self._waiting, self._bytes = [], 0
            return
        for partition, sender in enumerate(self._senders):
            batch = [item for item in items if partition_of(item.event.key, len(self._senders)) == partition]
            if not batch:
                continue
            if len(self._senders) > 1:  # they share a connection: another's EXEC has ended this one's WATCH
                sender.forget_connection()
            self._on_its_way = batch
            results = self._context.link.run(sender.send([item.event for item in batch], patience=PATIENCE))
            for at, (item, result) in enumerate(zip(batch, results, strict=True)):
                if isinstance(result, bytes):
                    self._done(item, result.decode())
                elif isinstance(result, Unavailable):
                    self._on_its_way = batch[at:]
                    raise self._gone(item, result)
                else:
                    self._failed(item.line, result)
        self._waiting, self._bytes, self._on_its_way = [], 0, []

    def _gone(self, first: _Item, error: Unavailable) -> CanvasbusError:
        """The server left in the middle: say how far we came."""
        if not first.line:
            return error
        return Unavailable(f"{error}; {self._how_far(unsure=error.ambiguous)}")

    def _how_far(self, *, unsure: bool = True) -> str:
        """Which lines are stored, where not all are; `unsure`: of those on their way nobody knows. With partitions that is no one
        line of the file."""
        items, batch = self._waiting, self._on_its_way
        if not items:
            fate = "nothing behind them is"
        elif not batch:
            fate = f"nothing from line {items[0].line} on is"
        elif len(self._senders) > 1:
            tried = partition_of(batch[0].event.key, len(self._senders))
            later = [item for item in items if partition_of(item.event.key, len(self._senders)) > tried]
            unsent = sorted(item.line for item in (later if unsure else later + batch))
            parts = [f"whether {_lines(item.line for item in batch)} are cannot be known"] if unsure else []
            parts += [f"{_lines(unsent)} are not"] if unsent else []
            fate = f"{', '.join(parts)}, nothing behind line {items[-1].line} is"
        elif unsure:
            fate = (
                f"whether the {len(batch):,} from line {batch[0].line} on are cannot be known, later ones were not sent"
            )
        else:
            fate = f"nothing from line {batch[0].line} on is"
        return f"{self._stored:,} events are stored, {fate}"

    def _done(self, item: _Item, entry_id: str | None) -> None:
        self._stored += 1
        self._last = (item.event, entry_id or "")
        if self._out.json:
            record: dict[str, Any] = {"type": item.event.type, "id": str(item.event.id), "entry_id": entry_id}
            self._out.record({"line": item.line, **record} if item.line else record)

    def _failed(self, line: int, error: Exception) -> None:
        if not line:
            raise error
        self.failed += 1
        text = safe(" ".join(str(error).split()))
        self._out.note(f"canvasbus: line {line}: {text}")
        if self._out.json:
            self._out.record({"line": line, "error": text})


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise ConfigError("publish: - reads stdin, which is closed")
    return sys.stdin.buffer


def _read_stdin() -> bytes:
    try:
        return _stdin().read()
    except OSError as error:
        raise ConfigError(f"publish: - reads stdin, which cannot be read ({error.strerror})") from None


@contextlib.contextmanager
def _opened(name: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """The file and its size; None: it has none."""
    if name == "-":
        yield _stdin(), None
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise ConfigError(f"--from {name}: {error.strerror}") from None
        yield file, Path(name).stat().st_size or None


@contextlib.contextmanager
def _progress(context: Context, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; nothing elsewhere, and nothing without rich."""
    try:
        if not context.out.stderr.isatty() or context.out.json:
            raise ImportError
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
    except ImportError:
        yield lambda _: None
        return
    columns = ("publishing", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=context.out.stderr), transient=True) as progress:
        task = progress.add_task("publish", total=total)
        plain, context.out.stderr = context.out.stderr, sys.stderr  # rich's, which puts notes above the bar
        try:
            yield lambda done: progress.advance(task, done)
        finally:
            context.out.stderr = plain
