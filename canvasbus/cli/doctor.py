"""canvasbus doctor"""

import argparse
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from canvasbus.cli.context import Context
from canvasbus.cli.output import Output, safe
from canvasbus.config import DEFAULT
from canvasbus.errors import ConfigError
from canvasbus.operate import plugins
from canvasbus.operate.doctor.finding import LEVELS, Finding, Level, wrong
from canvasbus.transport import address as addresses
from canvasbus.transport.rights import acl, user

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}
_INDENT = len("warning  ")


def run(context: Context, args: argparse.Namespace) -> int:
    """1 when something is wrong: a warning or an error."""
    if args.acl is not None:
        return print_acl(context, args.acl)
    counts: Counter[Level] = Counter()
    for finding in _findings(context):
        counts[finding.level] += 1
        show(context.out, finding)
    if not context.out.json:
        context.out.flush()
        context.out.note(", ".join(_counted(counts[level], level) for level in reversed(LEVELS) if counts[level]))
    return 1 if any(wrong(level) for level in counts) else 0


def _findings(context: Context) -> Iterator[Finding]:
    from canvasbus.operate.doctor.examine import examine, without_server
    from canvasbus.operate.doctor.judge_workers import judge_modules, judge_workers

    url = context.loaded.require_url(context.command)
    try:
        address = addresses.parse(url)
    except ConfigError as error:
        raise context.loaded.blame("url", error) from None
    yield from judge_modules(context.loaded)
    yield from judge_workers(context.loaded)
    alone = without_server(address)
    if alone is not None:
        yield alone
        return
    if context.out.terminal and not context.out.json:
        context.out.line(context.out.paint(f"{address.shown}, namespace {context.settings.namespace!r}", "bold"))
    try:
        loaded = context.loaded
        wanted = loaded.settings.partitions if loaded.origins["partitions"] != DEFAULT else None
        installed = {plugin.name for plugin in plugins.installed()}
        tables = [name for name in loaded.workers if name in installed]
        yield from examine(address, context.link, loaded.settings.namespace, wanted, tables)
    finally:
        context.link.close()


def _counted(count: int, level: Level) -> str:
    return f"{count} {level}{'s' if count > 1 and level != 'ok' else ''}"


def show(out: Output, finding: Finding) -> None:
    """One JSON object; piped one line; on a terminal a block that fits."""
    if out.json:
        out.record(asdict(finding))
        return
    found = safe(finding.found) + (" (estimate)" if finding.estimate else "")
    advice = safe(finding.advice)
    level = out.paint(f"{finding.level:7}", _STYLES[finding.level])
    if not out.terminal:
        out.line(f"{level}  {finding.check}: {found}" + (f" → {advice}" if advice else ""))
        return
    head = out.paint(finding.check, "bold")
    width = max(30, shutil.get_terminal_size().columns)
    first, *rest = _wrapped(f"{finding.check}: {found}", width)
    out.line(f"{level}  {first.replace(finding.check, head, 1)}")
    for line in rest:
        out.line(" " * _INDENT + line)
    for line in _wrapped(f"→ {advice}", width) if advice else ():
        out.line(" " * _INDENT + out.paint(line, "dim"))


def _wrapped(text: str, width: int) -> Iterable[str]:
    return textwrap.wrap(text, width - _INDENT, break_long_words=False, break_on_hyphens=False)


def print_acl(context: Context, role: str) -> int:
    """The line for redis-cli, alone on stdout so that it can be piped there."""
    out, namespace = context.out, context.settings.namespace
    line, name = acl(role, namespace), user(role, namespace)
    if out.json:
        out.record({"role": role, "user": name, "command": line})
        return 0
    out.line(line)
    out.flush()
    out.note(f"a new {name} has no password and cannot log in yet: ACL SETUSER {name} '>PASSWORD'")
    return 0
