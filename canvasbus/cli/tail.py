"""canvasbus tail: events as they come, or those that are there."""

import argparse
import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

from canvasbus.cli.context import Context
from canvasbus.cli.output import Output, moment, safe, short
from canvasbus.cli.times import start_of
from canvasbus.contract.globs import glob_matches
from canvasbus.contract.registry import registry
from canvasbus.errors import ConfigError, Unavailable
from canvasbus.operate.entry import Entry, View, view
from canvasbus.operate.tail import Tail
from canvasbus.transport.resp import Operation, Pause
from canvasbus.wire.cloudevents import Attributes

VALUE_WIDTH = 60
"""Characters of one value in a line for people; --json has all of it."""

NOT_KNOWN_HERE = {"unknown_type": "type not imported", "newer_version": "newer version"}
"""Reasons that are no fault of the event, which is shown as plain data: `--module` makes its type known."""

RETRY_SECONDS = 0.5
_ATTRIBUTES = frozenset(Attributes.__struct_fields__)

Wanted = Callable[[Mapping[str, Any]], bool]


def run(context: Context, args: argparse.Namespace) -> int:
    """1 when a topic cannot be read; undecodable entries are shown as such and are no failure of `tail`."""
    since = None if args.since is None else start_of(args.since)
    wanted = condition(args.where)
    link, codec, out = context.link, context.codec, context.out
    _warn_about_fields(args.where, args.types, out)

    def reads(topic: str) -> bool:
        return not args.types or any(glob_matches(glob, topic) for glob in args.types)

    def seen(entry: Entry) -> View | None:
        found = view(entry, codec)
        return found if wanted(found.cloudevent) else None

    last = since is None and args.count is not None
    tail = Tail(context.partitions, reads, start=since or "0", backwards=last, blocks=link.server.blocks)
    link.run(tail.begin())
    for topic, problem in tail.problems.items():
        out.note(f"canvasbus: topic {topic} cannot be read: {problem}")
    left = args.count
    follows = args.follow or (since is None and args.count is None)
    if since is not None or last:
        kept: list[tuple[Entry, View]] = []
        while left is None or left > 0:
            page = link.run(tail.page())
            for entry in page:
                found = seen(entry)
                if found is None or left == 0:
                    continue
                left = None if left is None else left - 1
                if last:
                    kept.append((entry, found))
                else:
                    show(out, entry, found)
            if not page:
                break
        for entry, found in reversed(kept):
            show(out, entry, found)
        out.flush()
        if last:
            left = None
    if not tail.topics and not args.types:
        out.note(f"no topics in {context.where}{' yet: waiting for the first' if follows else ''}")
    there = [*tail.topics, *tail.problems]  # of what cannot be read that has been told
    for glob in args.types:
        if not any(glob_matches(glob, topic) for topic in there):
            out.note(_missing(glob, link.run(_names(context)), follows))
    if follows and left != 0:
        _follow(context, tail, seen, left)
    return 1 if tail.problems else 0


def _follow(context: Context, tail: Tail, seen: Callable[[Entry], View | None], left: int | None) -> None:
    out, link = context.out, context.link
    away = False
    while True:
        try:
            entries = link.run(tail.follow())
        except Unavailable as error:
            if not away:
                out.note(f"canvasbus: {error}; waiting for it")
            away = True
            link.run(_pause())
            continue
        if away:
            out.note("canvasbus: the server is back")
            away = False
        for entry in entries:
            found = seen(entry)
            if found is not None:
                show(out, entry, found)
                left = None if left is None else left - 1
                if left == 0:
                    return
        if entries:
            out.flush()


def _missing(glob: str, topics: list[str], follows: bool) -> str:
    """What is said of a topic that is not there, and at once: a slip would wait for ever without a word."""
    declared = {one.name for one in registry}
    near = [] if glob in declared else difflib.get_close_matches(glob, sorted({*topics, *declared}), n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"canvasbus: no topic matches {glob}{' yet' if follows else ''}{hint}{' (waiting for it)' if follows else ''}"
    )


def _pause() -> Operation[None]:
    yield Pause(RETRY_SECONDS)


def _names(context: Context) -> Operation[list[str]]:
    from canvasbus.operate.topics import topic_keys

    return [key.name for key in (yield from topic_keys(context.partitions))]


def condition(pairs: list[str]) -> Wanted:
    """All of `--where field=value` as one question to a CloudEvents object. Raises ConfigError."""
    wanted = []
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals or not path:
            raise ConfigError(f"--where {pair}: write field=value, like model_name=StyleGAN-Canvas-v3")
        wanted.append((path, value))
    return lambda event: all(_equals(_look_up(event, path), value) for path, value in wanted)


def _look_up(event: Mapping[str, Any], path: str) -> Any:
    """A field of the data, by its path (`window.size`), else an attribute of the event."""
    found: Any = event.get("data")
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return event.get(path, _MISSING)
        found = found[part]
    return found


_MISSING = object()


def _equals(actual: Any, text: str) -> bool:
    if isinstance(actual, list | tuple):
        return any(_equals(item, text) for item in actual)
    if isinstance(actual, bool) or actual is None:
        return json.dumps(actual) == text.lower()
    if isinstance(actual, int | float):
        try:
            return float(text) == actual
        except ValueError:
            return False
    return bool(actual == text)


def _warn_about_fields(pairs: list[str], globs: list[str], out: Output) -> None:
    types = [t for t in registry if not globs or any(glob_matches(glob, t.name) for glob in globs)]
    if not types:
        return
    fields = {name for declared in types for name in declared.cls.__struct_encode_fields__} | _ATTRIBUTES
    for pair in pairs:
        name = pair.partition("=")[0].partition(".")[0]
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            out.note(f"canvasbus: --where {pair}: no event type known here has a field {name!r}{hint}")


def show(out: Output, entry: Entry, found: View) -> None:
    """One event on one line."""
    event = found.cloudevent
    if out.json:
        out.record(event)
        return
    head = f"{out.paint(moment(entry.time), 'dim')}  {out.paint(safe(entry.topic), 'bold cyan')}"
    if found.reason in NOT_KNOWN_HERE:
        head += "  " + out.paint(f"({NOT_KNOWN_HERE[found.reason]})", "yellow")
    elif found.reason is not None:
        head += "  " + out.paint(f"{found.reason}: {safe(short(str(event['problem']), 200))}", "red")
    out.line("  ".join(filter(None, (head, *_body(out, event)))))


def _body(out: Output, event: Mapping[str, Any]) -> list[str]:
    parts = []
    if "subject" in event:
        parts.append(out.paint(safe(short(str(event["subject"]), VALUE_WIDTH)), "bold"))
    data = event.get("data")
    if isinstance(data, Mapping):
        declared = registry.latest(str(event["type"]))
        cls = declared.cls if declared else None
        names = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True)) if cls else {}
        key = names.get(declared.key) if declared and declared.key else None
        empty: tuple[Any, ...] = (None, "", [], {})  # optional fields that nobody filled in; --json has them
        shown = {name: value for name, value in data.items() if name != key and value not in empty}
        if declared is None:  # which field is the key is not known then; its value has been shown
            shown = {name: value for name, value in shown.items() if value != event.get("subject")}
        fields = [f"{safe(name)}={_value(value)}" for name, value in shown.items()]
        parts.append(" ".join(fields))
    elif "data_base64" in event:
        parts.append(short(str(event["data_base64"]), VALUE_WIDTH))
    correlation = event.get("correlationid")
    if correlation:
        parts.append(out.paint(f"~{safe(str(correlation))[-8:]}", "dim"))
    return parts


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str) and (" " in text or not text):
        text = json.dumps(text, ensure_ascii=False)
    return safe(short(text, VALUE_WIDTH))
