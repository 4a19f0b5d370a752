"""canvasbus: publish, watch and look into a bus from the command line.

Exit codes: 0; 1 when it found something wrong (a line that is no event, a server that is away, no such dead letter);
2 for bad usage or configuration; 130 after Ctrl-C. Every error is one line on stderr.

Imports are late: a command loads what it needs when it runs, `--help` loads none of it.
"""

import argparse
import errno
import importlib
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

from canvasbus import __version__
from canvasbus.cli.arguments import Parser, close_outlet, near, number, open_outlets, seed
from canvasbus.errors import CanvasbusError, ConfigError, ContractError

_SETTINGS = ("url", "namespace", "partitions")
GROUP_VERBS = ["list", "pause", "resume", "reset", "forget"]


def parser() -> Parser:
    """All commands and their options."""
    result = Parser(prog="canvasbus", description="Publish, watch and look into an event bus.")
    result.add_argument("--version", action="version", version=f"canvasbus {__version__}")
    _common(result, default=None)
    shared = Parser(add_help=False)
    _common(shared, default=argparse.SUPPRESS)
    typed = Parser(add_help=False)
    typed.add_argument(
        "--module", action="append", default=[], metavar="M", help="import M, so that the events it declares are known"
    )
    commands = result.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(to: Any, name: str, run: str, text: str, *parents: Parser, more: str = "") -> Parser:
        made: Parser = to.add_parser(name, help=text, description=f"{text} {more}", parents=[shared, *parents])
        made.set_defaults(run=f"canvasbus.cli.{run}", parser=made)
        return made

    sub = add(commands, "publish", "publish:run", "Publish one event, or every line of a file.", typed)
    sub.add_argument("type", nargs="?", metavar="TYPE", help="the event type, when JSON is the bare data")
    sub.add_argument("data", nargs="?", metavar="JSON", help="the data, or a whole CloudEvents object; - reads stdin")
    sub.add_argument("--from", dest="source_file", metavar="FILE", help="one JSON object a line; - reads stdin")
    sub.add_argument("--expires-in", metavar="TIME", help="consumers skip what they get later than that: 90s, 30m, 2h")
    sub.add_argument("--correlation", metavar="UUID", help="the correlation id of events that have none of their own")
    sub.add_argument("--dedupe", action="store_true", help="store what has an id once, however often it is published")
    sub.add_argument("--dedupe-key", metavar="KEY", help="the same for one event, by this key: run-7:epoch-3")
    sub.add_argument("--dedupe-window", metavar="TIME", help="for how long it is remembered (default 1d)")
    sub.add_argument("--dry-run", action="store_true", help="check everything, send nothing")

    sub = add(commands, "tail", "tail:run", "Show events as they come, or those that are there.", typed)
    sub.add_argument(
        "--type", dest="types", action="append", default=[], metavar="GLOB", help="only these types, like 'drift.*'"
    )
    sub.add_argument(
        "--from",
        dest="since",
        metavar="WHEN",
        help="begin at an entry id, a time, 10m (ago) or 0, and end with the last",
    )
    sub.add_argument(
        "--follow", "-f", action="store_true", help="go on with new events (the default without --from, -n)"
    )
    sub.add_argument("--where", action="append", default=[], metavar="FIELD=VALUE", help="only events with this value")
    sub.add_argument("-n", dest="count", type=number, metavar="N", help="the last N events; with --from the first N")

    sub = add(commands, "topics", "topics:run", "What lies on the bus: entries, age, size, readers.")
    sub.add_argument("glob", nargs="?", metavar="GLOB", help="only these topics, like 'drift.*'")

    _groups(commands, add)

    _alerts(commands, add)

    sub = add(commands, "timers", "timers:run", "Events that come later: when, and who set them.")
    sub.add_argument("-n", dest="count", type=number, default=50, metavar="N", help="the next N (default 50)")

    retention = commands.add_parser("retention", help="How much of the past is kept.").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    add(retention, "list", "retention:run_list", "What is kept of which types, and what is full now.")
    sub = add(retention, "set", "retention:run_set", "Change what is kept of a type, for the whole namespace.")
    sub.add_argument("type", metavar="TYPE|GLOB", help="a type or a glob like 'drift.*'")
    sub.add_argument("--max-age", metavar="TIME", help="like 36h or 7d; or any")
    sub.add_argument("--max-length", metavar="N", help="entries; or any")
    sub.add_argument("--max-bytes", metavar="SIZE", help="memory on the server, like 512Mi; or any")
    sub.add_argument("--cap", metavar="N", help="entries, handled or not, that there may be; or none")
    sub.add_argument("--when-full", choices=("block", "reject", "drop_with_loss_event"), help="what happens at the cap")
    _risky(sub)
    sub = add(retention, "clear", "retention:run_clear", "Forget what was set for a type or glob.")
    sub.add_argument("type", metavar="TYPE|GLOB")
    add(retention, "trim", "retention:run_trim", "Trim once, where no bus runs that does it.")

    dlq = commands.add_parser("dlq", help="Dead letters: what was given up, and why.").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    sub = add(dlq, "list", "dlq:run_list", "The newest dead letters.")
    sub.add_argument("--group", metavar="GROUP", help="only this group's")
    sub.add_argument("--type", metavar="GLOB", help="only events of these types")
    sub.add_argument("--reason", metavar="WORD", help="only these: exhausted, rejected, undecodable, unknown_type, …")
    sub.add_argument("--since", metavar="WHEN", help="given up since: a time, 10m (ago) or an id")
    sub.add_argument("--until", metavar="WHEN", help="given up before")
    sub.add_argument("-n", dest="count", type=number, default=50, metavar="N", help="at most N (default 50)")
    sub = add(dlq, "show", "dlq:run_show", "One dead letter: error, traceback, and the event.", typed)
    sub.add_argument("id", metavar="ID", help="its id in `dlq list`, or the id of the event")
    sub.add_argument("--group", metavar="GROUP", help="when several groups gave the event up")
    for name, run, text in (
        ("redrive", "redrive:run_redrive", "Put dead letters back to work, for the group that gave them up."),
        ("purge", "redrive:run_purge", "Remove dead letters for good."),
    ):
        sub = add(dlq, name, run, text, typed)
        sub.add_argument(
            "bare", nargs="?", metavar="ID", help="one letter: its id in `dlq list`, or the id of the event"
        )
        sub.add_argument("--id", metavar="ID", help="the same")
        sub.add_argument("--group", metavar="GROUP", help="only this group's")
        sub.add_argument("--type", metavar="GLOB", help="only events of these types")
        sub.add_argument("--reason", metavar="WORD", help="only these: exhausted, rejected, undecodable, …")
        sub.add_argument("--since", metavar="WHEN", help="given up since: a time, 10m (ago) or an id")
        sub.add_argument("--until", metavar="WHEN", help="given up before")
        sub.add_argument("-n", dest="count", type=number, metavar="N", help="the oldest N at most")
        sub.add_argument("--dry-run", action="store_true", help="show what is meant, change nothing")
        sub.add_argument("--yes", action="store_true", help="do not ask")
        if name == "redrive":
            sub.add_argument("--rate", type=float, metavar="N", help="at most N letters a second")

    spool = commands.add_parser("spool", help="What a Producer's spool on disk holds.").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    for name, text in (
        ("list", "Whose files lie in a spool, and what they hold."),
        ("verify", "Read every byte of a spool, and say what is damaged."),
        ("drain", "Send what dead processes left in a spool; those of the living are left alone."),
    ):
        sub = add(spool, name, f"spool:run_{name}", text)
        sub.add_argument("path", metavar="PATH", help="the folder that Producer(spool=PATH) names")

    retrain = commands.add_parser("retrain", help="Trainings: which wait for an answer, which run.").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    sub = add(retrain, "list", "retrain:run_list", "What waits for an answer and what runs.")
    sub.add_argument("--all", action="store_true", help="also what has ended, as far back as events are kept")
    for name, text in (("approve", "Let a proposed training start."), ("reject", "Refuse a proposed training.")):
        sub = add(retrain, name, f"retrain:run_{name}", text)
        sub.add_argument("id", metavar="ID", help="its id in `retrain list`, or the model when only one of it waits")
        sub.add_argument("--reason", metavar="TEXT", help="why, for those who ask later")

    sub = add(commands, "doctor", "doctor:run", "Is all well here? What is wrong, and what to do about it.")
    sub.add_argument(
        "--acl",
        choices=("producer", "worker", "operator"),
        metavar="ROLE",
        help="only print the ACL line of a user that may be a producer, a worker or an operator, and no more",
    )

    _schema(commands, add, typed)

    config = commands.add_parser("config", help="The settings in force.").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    add(config, "show", "config:run_show", "Every setting and where it came from.")

    sub = add(
        commands, "demo", "main:run_demo", "Drift, alert, retrain and recovery on handwritten digits, in a minute."
    )
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--seed", type=seed, default=1, metavar="N", help="of everything random (default 1)")
    which.add_argument("--all-seeds", action="store_true", help="ten stories as fast as they go, and a table of them")
    sub.add_argument("--speed", type=float, metavar="X", help="how fast the story runs (default 1)")

    sub = commands.add_parser("completion", help="Print the completion script of a shell.")
    sub.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    sub.set_defaults(run="canvasbus.cli.main:print_completion", parser=sub)
    return result


def _schema(commands: Any, add: Callable[..., Parser], typed: Parser) -> None:
    schema = commands.add_parser("schema", help="What events look like, and whether a change breaks somebody.")
    schema = schema.add_subparsers(title="commands", metavar="COMMAND", required=True)
    which = "Your own events with --module; without, those that come with canvasbus."
    folder = Parser(add_help=False)
    folder.add_argument("folder", nargs="?", default="schemas", metavar="FOLDER", help="default: schemas")
    revision = Parser(add_help=False)
    text = "compare with the folder as it is in a git revision, like main or v1.2"
    revision.add_argument("--against", metavar="REV", help=text)
    add(
        schema,
        "export",
        "schema:run_export",
        "Write JSON Schemas, examples and golden bytes.",
        typed,
        folder,
        more=which,
    )
    text = "Is the folder what the code exports, do all its examples still decode, and, --against, is what was published kept?"
    add(schema, "check", "schema:run_check", text, typed, folder, revision, more=which)
    text = "What changed since the folder was written, or --against a revision, and who can read whom."
    add(schema, "diff", "schema:run_diff", text, typed, folder, revision, more=which)
    sub = add(
        schema, "catalog", "schema:run_catalog", "Every event type: versions, key, fields, meaning.", typed, more=which
    )
    sub.add_argument("glob", nargs="?", default="*", metavar="GLOB", help="only these types, like 'drift.*'")
    sub = add(
        schema,
        "can-publish",
        "rollout:run",
        "Does every group that runs take this version? Which workers do, which would park it?",
        typed,
        more="Exit code 0: in each group that reads the type and has living workers somebody takes it, and nobody would make "
        "a dead letter of it.",
    )
    text = "like drift.detected@3; without a version the newest declared here, without any all that --module declares"
    sub.add_argument("what", nargs="*", metavar="TYPE[@VERSION]", help=text)
    sub = add(
        schema,
        "asyncapi",
        "schema:run_asyncapi",
        "Write an AsyncAPI 3.0 document of topics and workers.",
        typed,
        more=f"{which} With workers named, what they receive and return, too.",
    )
    sub.add_argument("workers", nargs="*", metavar="WORKER", help="an installed worker's name or module:worker")
    sub.add_argument("-o", dest="output", metavar="FILE", help="write it there (else to stdout)")
    sub.add_argument("--title", metavar="TEXT", help="the document's title (else the names of modules and workers)")
    sub.add_argument("--release", metavar="TEXT", help="the version of what is described (else canvasbus's)")
    sub.add_argument("--folder", default="schemas", help="has the schemas of older versions (default: schemas)")


def _groups(commands: Any, add: Callable[..., Parser]) -> None:
    text = "Consumer groups: lag, pending, living workers, dead letters; and how to steer them."
    groups = commands.add_parser("groups", help=text, description=f"{text} Without a command: list.").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    sub = add(groups, "list", "groups:run", "Lag, pending, living workers and dead letters of each group.")
    sub.add_argument("group", nargs="?", metavar="GROUP", help="only this group")

    sub = add(
        groups,
        "pause",
        "steering:run_pause",
        "Let the workers of a group stop reading.",
        more="That takes a second or two. They finish what they hold, stay alive, and go on when the group is resumed; "
        "workers that start meanwhile are paused too.",
    )
    sub.add_argument("group", metavar="GROUP")
    sub.add_argument("--for", dest="seconds", metavar="TIME", help="resume by itself after 90s, 30m, 2h, ...")

    sub = add(groups, "resume", "steering:run_resume", "Let a paused group go on.")
    sub.add_argument("group", metavar="GROUP")

    sub = add(
        groups,
        "reset",
        "steering:run_reset",
        "Set a group back or forward.",
        more="Moved back, it handles events again, on purpose: what its handlers call outside is called again, with the "
        "same event ids; events that they return are published again, under the same ids as the first time. Pause the "
        "group first, or stop its workers and let nothing be pending.",
    )
    sub.add_argument("group", metavar="GROUP")
    sub.add_argument(
        "--to",
        required=True,
        metavar="WHERE",
        help="earliest, latest, or the first event to handle: a time, 10m (ago) or an entry id",
    )
    sub.add_argument("--type", dest="types", action="append", default=[], metavar="GLOB", help="only on these topics")
    _risky(sub)

    sub = add(
        groups,
        "forget",
        "steering:run_forget",
        "Remove a group that nobody runs any more.",
        more="Its place in the streams, its dead letters and its handlers' state are lost; the events themselves stay.",
    )
    sub.add_argument("group", metavar="GROUP")
    _risky(sub)


def _alerts(commands: Any, add: Callable[..., Parser]) -> None:
    alerts = commands.add_parser("alerts", help="What people are told, and what not.").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    add(alerts, "status", "alerts:run_status", "Open incidents, who was told, and what was held back for which reason.")
    add(
        alerts,
        "test",
        "alerts:run_test",
        "Send one sample to each destination in canvasbus.toml.",
        more="Without a server: what is tested is the way from here to the destinations. Exit code 1: one of them failed.",
    )
    silence = commands.add_parser("silence", help="What nobody wants to be told for a while.").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    sub = add(
        silence,
        "add",
        "silence:run_add",
        "Let nobody be told about incidents that match.",
        more="They are opened and resolved all the same, and told when the silence ends and they are still open. In patterns "
        "* stands for any characters and | separates alternatives; all that are given must match.",
    )
    sub.add_argument("--model", metavar="PATTERN", help="models, like 'StyleGAN-*'")
    sub.add_argument("--severity", metavar="PATTERN", help="info, warning or critical, like 'info|warning'")
    sub.add_argument(
        "--signal", metavar="PATTERN", help="drift, metric:NAME, quality, retrain, approval, handler, loss"
    )
    sub.add_argument("--for", dest="seconds", required=True, metavar="TIME", help="it ends after 90s, 30m, 2h, ...")
    sub.add_argument("--comment", required=True, metavar="TEXT", help="why")
    sub.add_argument("--author", metavar="NAME", help="who wants it (default: you)")
    add(silence, "list", "silence:run_list", "The silences in force.")
    sub = add(silence, "expire", "silence:run_expire", "End silences before their time.")
    sub.add_argument("id", nargs="+", metavar="ID", help="as `silence list` names it")


def _risky(to: Parser) -> None:
    to.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
    to.add_argument("--yes", action="store_true", help="do not ask")


def _with_verb(argv: list[str]) -> list[str]:
    """`groups` and `groups GROUP` mean `groups list`: argparse knows no command with and without a further one."""
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        at += 1 if "=" in argv[at] or argv[at] == "--json" else 2
    rest = argv[at + 1 :]
    if argv[at : at + 1] != ["groups"] or rest[:1] in [["-h"], ["--help"]]:
        return argv
    if rest[:1] and rest[0] in GROUP_VERBS:
        return argv
    if len(rest) > 1 and not rest[0].startswith("-") and not rest[1].startswith("-") and near(rest[0], GROUP_VERBS):
        return argv  # a mistyped verb; argparse says what was meant
    return [*argv[: at + 1], "list", *rest]


def _common(to: Parser, *, default: Any) -> None:
    """Options that may stand before the command or after it; there, SUPPRESS keeps the default from undoing the first."""
    to.add_argument("--url", default=default, help="the bus (else CANVASBUS_URL, else url in canvasbus.toml)")
    to.add_argument("--namespace", default=default, metavar="NAME", help="prefix of all keys (default canvasbus)")
    to.add_argument("--partitions", type=int, default=default, metavar="N", help=argparse.SUPPRESS)
    to.add_argument("--json", action="store_true", default=default or False, help="one JSON object a line")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    open_outlets()
    code = 0
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        close_outlet(sys.stdout)  # whoever read our output has seen enough
        return code
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        close_outlet(sys.stdout)
        return _fail(CanvasbusError(f"the output cannot be written: {error.strerror}"), 1)
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:  # argparse: --help, --version, bad usage
        return int(error.code or 0)
    except (ConfigError, ContractError) as error:
        return _fail(error, 2)
    except CanvasbusError as error:
        return _fail(error, 1)


_CANNOT_WRITE = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT)


def _run(argv: list[str] | None) -> int:
    if hasattr(sys.stdout, "reconfigure"):  # an event in Japanese must not end `tail` in a terminal that knows ASCII
        sys.stdout.reconfigure(errors="backslashreplace")
    args, rest = parser().parse_known_args(_with_verb(sys.argv[1:] if argv is None else argv))
    if getattr(args, "data", "") is None and len(rest) == 1 and (rest[0] == "-" or rest[0][0] != "-"):
        args.data = rest.pop()  # argparse gives up on `TYPE --json JSON`, where an option parts two optional arguments
    if getattr(args, "bare", "") is None and len(rest) == 1 and rest[0][0] != "-":
        args.bare = rest.pop()  # and on `dlq redrive --group GROUP ID`
    if rest:
        args.parser.refuse_unknown(rest)
    module, _, function = args.run.partition(":")
    run: Callable[..., int] = (
        globals()[function] if module == __name__ else getattr(importlib.import_module(module), function)
    )
    if run is print_completion:
        return print_completion(args)
    from canvasbus import config
    from canvasbus.cli.context import Context
    from canvasbus.cli.output import Output

    loaded = config.load({name: getattr(args, name) for name in _SETTINGS})
    command = args.parser.prog.removeprefix("canvasbus ")
    with closing(Context(command, loaded, Output(json=args.json), getattr(args, "module", ()))) as context:
        return run(context, args)


def run_demo(context: Any, args: argparse.Namespace) -> int:
    """The demo, which defaults to memory://."""
    if args.speed is not None and not 0 < args.speed <= 1000:
        raise ConfigError(f"--speed {args.speed:g}: a number above 0, up to 1000")
    if args.all_seeds:
        seeds = importlib.import_module("canvasbus.cli.seeds")
        found: int = seeds.run(context.out, url=context.settings.url, speed=args.speed or 1000.0)
        return found
    demo = importlib.import_module("canvasbus.cli.demo")
    code: int = demo.run(url=context.settings.url, seed=args.seed, speed=args.speed or 1.0, json=args.json)
    return code


def print_completion(args: argparse.Namespace) -> int:
    """`canvasbus completion bash > /etc/bash_completion.d/canvasbus`."""
    try:
        import shtab  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ConfigError("completion needs shtab: pip install 'canvasbus[cli]'") from None
    sys.stdout.write(shtab.complete(parser(), shell=args.shell) + "\n")
    return 0


def _fail(error: Exception, code: int) -> int:
    from canvasbus.cli.output import safe

    print(f"canvasbus: {safe(' '.join(str(error).split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
