"""canvasbus schema export | check | diff | catalog | asyncapi (for can-publish see `rollout`)"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from canvasbus import __version__
from canvasbus.cli.context import Context
from canvasbus.cli.output import Cell, Column, safe
from canvasbus.contract.compatibility import Verdict
from canvasbus.contract.globs import glob_matches
from canvasbus.contract.node import in_words
from canvasbus.contract.registry import EventType, registry
from canvasbus.contract.schema import document, formatted
from canvasbus.errors import ConfigError
from canvasbus.operate import schemas
from canvasbus.operate.revision import read_revision
from canvasbus.operate.words import versions
from canvasbus.transport.address import Address, parse

OURS = ("canvasbus", "canvasbus_workers")
CATALOG = (Column("TYPE"), Column("READS"), Column("KEY"), Column("FIELDS", right=True), Column("ABOUT", flexible=True))
CHANGES = (Column("TYPE"), Column("VERSION"), Column("VERDICT"), Column("RULE"), Column("CHANGE", flexible=True))
_STYLE = {Verdict.FULL: "green", Verdict.BREAKING: "red"}


def run_export(context: Context, args: argparse.Namespace) -> int:
    """Write what differs; nothing is ever removed."""
    out, folder = context.out, Path(args.folder)
    before = schemas.read(folder)
    content = schemas.exported(_types_for(context, args.folder, before))
    replaced = {path: content[path] for path in before if path in content}
    for change in schemas.differences({path: before[path] for path in replaced}, replaced, registry):
        if not change.allowed:
            out.note(
                f"{change.type} v{change.version}: {safe(change.what)} ({change.verdict}): right only while nobody has "
                f"published v{change.version}; else make it v{change.version + 1}"
            )
    written = schemas.write(folder, content)
    for path in written:
        if out.json:
            out.record({"path": str(folder / path)})
        else:
            out.line(f"wrote {folder / path}")
    others = "" if len(written) == len(content) else ", the others were so already"
    out.note(f"{len(written)} of {len(content)} files written{others}")
    return 0


def run_check(context: Context, args: argparse.Namespace) -> int:
    """1 when something is not as it should be."""
    out, folder = context.out, schemas.read(Path(args.folder))
    types = _types_for(context, args.folder, folder)
    found = schemas.check(folder, types, registry)
    if args.against:
        baseline = read_revision(Path(args.folder), args.against)
        broken = schemas.against(baseline, {**folder, **schemas.exported(types)}, registry)
        told = {(finding.type, finding.version) for finding in broken}
        found = [*broken, *(finding for finding in found if (finding.type, finding.version) not in told)]
    named = [f"--module {name}" for name in context.modules_named]
    export = " ".join(["canvasbus schema export", *named, *([args.folder] if args.folder != "schemas" else [])])
    for finding in found:
        if out.json:
            out.record(finding)
        else:
            said = f" ({finding.verdict})" if finding.verdict else ""
            move = finding.move.replace("canvasbus schema export", export)
            out.line(safe(f"{finding.type} v{finding.version}: {finding.problem}{said}: {move}"))
    since = f", and what {args.against} has published holds" if args.against else ""
    if not found:
        out.note(f"{len(types)} schemas: {args.folder} is what the code exports, every example decodes{since}")
    return 1 if found else 0


def run_diff(context: Context, args: argparse.Namespace) -> int:
    """Information: always 0."""
    out, here = context.out, Path(args.folder)
    folder = schemas.read(here)
    types = _types_for(context, args.folder, folder)
    before = read_revision(here, args.against) if args.against else folder
    rows: list[list[Cell | str]] = []
    for change in schemas.differences(before, {**folder, **schemas.exported(types)}, registry):
        if out.json:
            out.record(change)
            continue
        rule = Cell("allowed", "green") if change.allowed else Cell("new version", "red")
        seen = Cell(change.verdict, _STYLE.get(change.verdict, "yellow"))
        rows.append([change.type, f"v{change.version}", seen, rule, change.what])
    if rows:
        out.table(CHANGES, rows)
    elif not out.json:
        out.note(f"no change of the contract since {args.against or args.folder}")
    return 0


def run_catalog(context: Context, args: argparse.Namespace) -> int:
    """What there is, by type."""
    out = context.out
    newest = [one for one in newest_types(context) if glob_matches(args.glob, one.name)]
    rows: list[list[Cell | str]] = []
    for declared in newest:
        schema, since = document(declared), declared.upcasters.since
        about = str(schema.get("description", ""))
        if out.json:
            out.record(_entry(declared, schema))
            continue
        reads = versions(since, declared.version)
        first = about.strip().partition("\n")[0]
        rows.append([declared.name, reads, schema.get("x-key", "–"), str(len(schema["properties"]) - 2), first])
    if rows:
        out.table(CATALOG, rows)
    elif not newest:
        out.note(f"no type matches {args.glob!r}{'' if context.modules else '; your own are found with --module'}")
    return 0


def run_asyncapi(context: Context, args: argparse.Namespace) -> int:
    """Always 0: what the document cannot say is told on stderr."""
    from canvasbus.operate import asyncapi, plugins

    out, settings = context.out, context.settings
    context.codec  # noqa: B018  the events of --module first: whose import fails is told by that name
    workers = [plugins.load(target) for target in args.workers]
    bus = asyncapi.Bus(
        title=args.title or f"Events of {', '.join([*context.modules, *args.workers]) or 'canvasbus'}",
        release=args.release or __version__,
        namespace=settings.namespace,
        partitions=settings.partitions,
        address=_address(context),
    )
    types = _types(context) if context.modules or not workers else []
    older = schemas.versions(schemas.read(Path(args.folder)))
    found = asyncapi.describe(bus, types, workers, registry, older)
    for name in found.unknown_types:
        out.note(f"{safe(name)} is left out: no module that declares it is imported (--module)")
    for name, version in found.unknown_versions:
        out.note(f"{name} v{version} is left out: {args.folder} has no schema of it (--folder)")
    if args.output is None or args.output == "-":
        if out.json:
            out.record(found.document)
        else:
            out.line(formatted(found.document).decode().rstrip("\n"))
        return 0
    try:
        Path(args.output).write_bytes(formatted(found.document))
    except OSError as error:
        raise ConfigError(f"-o {args.output}: {error.strerror}") from None
    out.note(f"wrote {args.output}")
    return 0


def _address(context: Context) -> Address | None:
    """Where the settings say that the bus is; nobody is asked there."""
    url = context.settings.url
    try:
        return parse(url) if url else None
    except ConfigError as error:
        raise context.loaded.blame("url", error) from None


def _entry(declared: EventType, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": declared.name,
        "version": declared.version,
        "since": declared.upcasters.since,
        "key": schema.get("x-key"),
        "class": f"{declared.cls.__module__}.{declared.cls.__qualname__}",
        "description": schema.get("description", ""),
        "fields": list(_fields(schema)),
    }


def _fields(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, node in schema["properties"].items():
        yield {
            "name": name,
            "type": in_words(schema, node),
            "required": name in schema["required"],
            **({"default": node["default"]} if "default" in node else {}),
            "description": node.get("description", ""),
        }


def newest_types(context: Context) -> list[EventType]:
    """The events that are meant, each in its newest version only."""
    return list({one.name: one for one in _types(context)}.values())


def _types_for(context: Context, name: str, folder: schemas.Folder) -> list[EventType]:
    """The events that are meant with this folder. Raises ConfigError where no module is named, and it has none but the
    user's own."""
    types = _types(context)
    there = {path.partition("/")[0] for path in folder}
    if not context.modules and there and not there & {one.name for one in types}:
        raise ConfigError(
            f"{name} has other events than those that come with canvasbus, like {min(there)}: name the module that declares "
            "them (--module)"
        )
    return types


def _types(context: Context) -> list[EventType]:
    """With modules named: the events that are declared in them, below them, or imported into them; else canvasbus's own.
    Older versions before newer ones."""
    known = list(context.codec.registry)
    modules = context.modules
    if not modules:
        return [one for one in known if one.cls.__module__.startswith("canvasbus.")]
    imported = {value for name in modules for value in vars(sys.modules[name]).values() if isinstance(value, type)}
    found = [
        one
        for one in known
        if one.cls.__module__.partition(".")[0] not in OURS
        and (one.cls in imported or any(f"{one.cls.__module__}.".startswith(f"{name}.") for name in modules))
    ]
    if not found:
        raise ConfigError(f"{', '.join(modules)}: no event is declared there")
    return found
