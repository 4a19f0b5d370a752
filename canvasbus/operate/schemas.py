"""The folder `schemas/`: what each version of each event looks like, as data that any language can read.

    <event.type>/v<N>.json            the JSON Schema
    <event.type>/v<N>.example.json    one event of it, a CloudEvents object
    <event.type>/v<N>.wire.hex        the same event as it lies on a stream: the bytes of its envelope, in hexadecimal

Hexadecimal, on one line, because every language reads it, git shows what changed in it, and no editor spoils it.

A folder is a mapping from such paths to bytes here, so that a directory and a revision of a git repository are the same,
and everything that is decided about it is decided without I/O. Versions that the code declares no Struct for any more
stay as they were published: their examples are what keeps the functions that upcast them honest.
"""

import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from canvasbus.contract.changes import Change, changes, problem
from canvasbus.contract.compatibility import Verdict, verdict
from canvasbus.contract.example import example
from canvasbus.contract.registry import EventType, Registry
from canvasbus.contract.schema import Schema, document, formatted
from canvasbus.errors import ConfigError, DecodeError
from canvasbus.wire.cloudevents import to_structured
from canvasbus.wire.codec import Codec

Folder = Mapping[str, bytes]
"""Path below the folder, with slashes → content."""

_PATH = re.compile(r"([a-z][a-z0-9_.]*)/v([1-9][0-9]{0,8})\.(json|example\.json|wire\.hex)")
_ID = UUID("0194226e-79fe-7000-8000-00000000ca5e")
_CAUSE = UUID("0194226e-79fe-7000-8000-00000000cafe")
_ANEW = "restore it, or remove it and export it anew"
_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Move(enum.StrEnum):
    """What to do about a finding."""

    EXPORT = "run `canvasbus schema export` and commit what it writes"
    VERSION = "publish it as a new version with an upcaster"
    VERSION_OR_EXPORT = f"{VERSION}; only while nobody has published this one, {EXPORT}"
    RESTORE = "name the module that declares it (--module), or declare it again: there may be events of it on a stream"
    MEND = "mend the upcaster, or restore the file"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    type: str
    version: int
    problem: str
    move: Move
    verdict: Verdict | None = None
    """Who can no longer read whom; None: not a question of reading."""
    path: str = ""
    """The field."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One change between two folders, whether it is allowed or not."""

    type: str
    version: int
    what: str
    verdict: Verdict
    allowed: bool
    path: str = ""


def files(declared: EventType) -> dict[str, bytes]:
    """What the folder holds of one version. Raises ContractError where that cannot be made."""
    codec = Codec("schemas")
    made = example(declared)
    wire = codec.encode(made, event_id=_ID, causation_id=_CAUSE, traceparent=_TRACE).data
    envelope = codec.open_envelope(wire, stream_type=declared.name, entry_id="0-1")
    stem = f"{declared.name}/v{declared.version}"
    return {
        f"{stem}.json": formatted(document(declared)),
        f"{stem}.example.json": formatted(to_structured(envelope, made)),
        f"{stem}.wire.hex": wire.hex().encode() + b"\n",
    }


def exported(types: Iterable[EventType]) -> dict[str, bytes]:
    """What the folder holds of all of them."""
    return {path: content for declared in types for path, content in files(declared).items()}


def versions(folder: Folder) -> dict[tuple[str, int], Schema]:
    """The schemas of a folder by type and version. Raises ConfigError for one that is no JSON object."""
    found: dict[tuple[str, int], Schema] = {}
    for path in sorted(folder):
        match = _PATH.fullmatch(path)
        if match and match[3] == "json":
            try:
                schema = json.loads(folder[path])
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path} is no JSON ({error}): {_ANEW}") from None
            if not isinstance(schema, dict) or "properties" not in schema:
                raise ConfigError(f"{path} is no JSON Schema of an event: {_ANEW}")
            wrong = problem(schema)
            if wrong is not None:
                raise ConfigError(
                    f"{path} is no JSON Schema of an event as `canvasbus schema export` writes it ({wrong}): {_ANEW}"
                )
            found[match[1], int(match[2])] = schema
    return found


def differences(before: Folder, after: Folder, known: Registry) -> list[Difference]:
    """What changed in the contract from one folder to the other, in the order of types and versions."""
    old, new = versions(before), versions(after)
    found: list[Difference] = []
    for name, version in sorted(old.keys() | new.keys()):
        if (name, version) not in new:
            allowed = _given_up(name, version, known)
            what = "is not read any more (since= says so)" if allowed else "is gone"
            found.append(Difference(name, version, what, Verdict.BREAKING, allowed))
        elif (name, version) not in old:
            previous = max((v for n, v in old if n == name and v < version), default=None)
            said = verdict(old[name, previous], new[name, version]) if previous else Verdict.FULL
            found.append(Difference(name, version, f"is new{f' after v{previous}' if previous else ''}", said, True))
        else:
            found += [
                Difference(name, version, str(change), change.verdict, change.in_place, change.path)
                for change in changes(old[name, version], new[name, version])
            ]
    return found


def _given_up(name: str, version: int, known: Registry) -> bool:
    newest = known.latest(name)
    return newest is not None and version < newest.upcasters.since


def check(folder: Folder, types: Iterable[EventType], known: Registry) -> list[Finding]:
    """Is the folder what the code exports, and does every example in it decode?"""
    declared = {(one.name, one.version): one for one in types}
    found = [finding for one in declared.values() for finding in _up_to_date(folder, one)]
    broken = {(finding.type, finding.version) for finding in found if finding.move is Move.VERSION_OR_EXPORT}
    for name, version in versions(folder):
        newest = known.latest(name)
        if newest is None:
            found.append(Finding(name, version, "no event of this type is declared", Move.RESTORE))
        elif version > newest.version:
            problem = f"the newest version that is declared is v{newest.version}"
            found.append(Finding(name, version, problem, Move.RESTORE))
        elif version >= newest.upcasters.since and not (version == newest.version and (name, version) in broken):
            found += _decodable(folder, name, version, known)
    return sorted(found, key=lambda finding: (finding.type, finding.version))


def _up_to_date(folder: Folder, declared: EventType) -> Iterator[Finding]:
    wanted = files(declared)
    missing = [path for path in wanted if path not in folder]
    name, version = declared.name, declared.version
    if missing:
        yield Finding(name, version, f"{', '.join(missing)} {_is(missing)} not in the folder", Move.EXPORT)
        return
    stale = [path for path, content in wanted.items() if folder[path] != content]
    schema = f"{name}/v{version}.json"
    seen: list[Change] = []
    if schema in stale:
        seen = changes(versions({schema: folder[schema]})[name, version], json.loads(wanted[schema]))
    for change in seen:
        move = Move.EXPORT if change.in_place else Move.VERSION_OR_EXPORT
        yield Finding(name, version, str(change), move, change.verdict, change.path)
    if stale and not seen:
        yield Finding(name, version, f"{', '.join(stale)} {_is(stale)} not what the code exports", Move.EXPORT)


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def against(baseline: Folder, folder: Folder, known: Registry) -> list[Finding]:
    """Does everything that the baseline has published still hold? Nothing but a field with a default may have come to a
    version, its example may have been exported anew, and what was published still decodes."""
    found: list[Finding] = []
    for change in differences(baseline, folder, known):
        if not change.allowed:
            move = Move.RESTORE if change.what == "is gone" else Move.VERSION
            found.append(Finding(change.type, change.version, change.what, move, change.verdict, change.path))
    told = {(finding.type, finding.version) for finding in found}
    for name, version in versions(baseline):
        if (name, version) not in told and not _given_up(name, version, known):
            found += _decodable(baseline, name, version, known)
    return found


def _decodable(folder: Folder, name: str, version: int, known: Registry) -> Iterator[Finding]:
    """Both forms of a version's example are read today, as the same event, the newest Struct."""
    codec, events = Codec(registry=known), []
    for ending in ("example.json", "wire.hex"):
        path = f"{name}/v{version}.{ending}"
        try:
            value = folder[path] if ending == "example.json" else bytes.fromhex(folder[path].decode())
            events.append(codec.decode(value.strip(), stream_type=name, entry_id="0-1"))
        except KeyError:
            yield Finding(name, version, f"{path} is missing", Move.MEND)
        except (DecodeError, ValueError) as error:
            yield Finding(name, version, f"{path} cannot be read: {error}", Move.MEND)
    if len(events) == 2 and events[0][1] != events[1][1]:
        yield Finding(name, version, "the example and the bytes are two different events", Move.MEND)


def read(directory: Path) -> dict[str, bytes]:
    """A folder on disk; empty where there is none. Raises ConfigError for what is no folder, or cannot be read."""
    try:
        if not directory.exists():
            return {}
        if not directory.is_dir():
            raise ConfigError(f"{directory} is no folder")
        return {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for folder in sorted(directory.iterdir())  # glob would take what it may not read for empty
            if folder.is_dir()
            for path in sorted(folder.iterdir())
            if _PATH.fullmatch(path.relative_to(directory).as_posix()) and path.is_file()
        }
    except OSError as error:
        raise ConfigError(f"{error.filename or directory} cannot be read: {error.strerror}") from None


def write(directory: Path, content: Folder) -> list[str]:
    """Write what is not there already; the paths that were. Raises ConfigError where that cannot be done."""
    written = []
    for path, wanted in content.items():
        target = directory / path
        try:
            if not target.is_file() or target.read_bytes() != wanted:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(wanted)
                written.append(path)
        except OSError as error:
            raise ConfigError(f"{target} cannot be written: {error.strerror}") from None
    return written
