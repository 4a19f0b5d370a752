"""canvasbus-worker: run workers as a program.

    canvasbus-worker drift alerts                       # by the names their packages registered
    canvasbus-worker my_workers:worker --processes 4    # or module:attribute
    canvasbus-worker my_workers:worker --reload         # while it is being written

Exit codes: 0 after a drain, 1 when the server refuses the worker or a handler's process keeps dying, 2 for bad usage,
130 after Ctrl-C before it had begun.

With --processes N or --reload this process becomes a supervisor (cli/supervisor.py) of programs like itself.
"""

import argparse
import os
import sys
from typing import Any

from canvasbus import __version__
from canvasbus.cli.arguments import Parser, open_outlets
from canvasbus.errors import CanvasbusError, ConfigError, ContractError, LifespanError
from canvasbus.log import configure, get_logger

WAITING_SAID_EVERY = 60.0
HIGHEST_PORT = 65535
MOST_PROCESSES = 1000


def parser() -> Parser:
    result = Parser(
        prog="canvasbus-worker",
        description="Run workers until SIGTERM, then drain: finish what runs, hand back the rest, leave.",
    )
    result.add_argument("--version", action="version", version=f"canvasbus {__version__}")
    result.add_argument("targets", nargs="+", metavar="TARGET", help="a registered name, or module:attribute")
    result.add_argument("--url", help="the bus (else CANVASBUS_URL, else canvasbus.toml)")
    result.add_argument("--namespace", help="prefix of all keys (default canvasbus)")
    result.add_argument("--partitions", type=int, help="partitions of the namespace (default 1)")
    result.add_argument("--processes", type=int, default=1, metavar="N", help="processes to run (default 1)")
    result.add_argument("--reload", action="store_true", help="drain and start again when a source file changes")
    result.add_argument("--health-port", type=int, metavar="P", help="serve /livez and /readyz; process i uses P+i")
    result.add_argument("--health-host", default="127.0.0.1", metavar="H", help="address for that (default 127.0.0.1)")
    result.add_argument("--grace", type=float, help="seconds for running handlers after SIGTERM (default 25)")
    result.add_argument(
        "--max-block", type=float, metavar="SECONDS", help="how long a handler may block the loop (default 60)"
    )
    result.add_argument("--log-level", help="debug, info, warning, error (default info)")
    result.add_argument("--log-format", help="auto, json or console (default auto)")
    result.add_argument("--supervised-by", type=int, metavar="PID", help=argparse.SUPPRESS)
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    open_outlets()
    try:
        known = parser()
        options, rest = known.parse_known_args(argv)
        if rest:
            known.refuse_unknown(rest)
        if not 1 <= options.processes <= MOST_PROCESSES:
            raise ConfigError(
                f"--processes {options.processes}: use a number, at least 1 and at most {MOST_PROCESSES:,}"
            )
        if options.health_port is not None:
            _check_ports(options.health_port, options.processes)
        if options.processes > 1 or options.reload:
            return _supervise(options)
        if options.supervised_by is not None:
            from canvasbus.cli.supervisor import die_with

            die_with(options.supervised_by)
        return _work(options)
    except KeyboardInterrupt:  # before anything has begun that could be drained
        return 130
    except (ConfigError, ContractError) as error:
        return _fail(error, 2)
    except CanvasbusError as error:
        return _fail(error, 1)


def _check_ports(first: int, processes: int) -> None:
    # The system would take the lower 16 bits of a larger number, and listen where nobody asks.
    last = first + processes - 1
    if first < 1 or last > HIGHEST_PORT:
        needs = f"; {processes} processes need the ports up to {last}" if processes > 1 else ""
        raise ConfigError(f"--health-port {first}: a port lies between 1 and {HIGHEST_PORT}{needs}")


def _fail(error: Exception, exit_code: int) -> int:
    print(f"canvasbus-worker: {error}", file=sys.stderr)
    return exit_code


def _load(options: argparse.Namespace) -> Any:
    from canvasbus import config

    names = ("url", "namespace", "partitions", "grace", "max_block", "log_level", "log_format")
    return config.load({name: getattr(options, name) for name in names})


def _work(options: argparse.Namespace) -> int:
    from canvasbus.operate import plugins

    loaded = _load(options)
    settings = loaded.settings
    url = loaded.require_url("the worker")
    _check_url(url)
    for module in settings.modules:
        plugins.import_module(module, "modules")
    workers = [plugins.load(target) for target in options.targets]
    names = [worker.name for worker in workers]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"the worker {min(twice)!r} is named twice")

    import trio

    _configure_log(settings)
    for table, meant in plugins.misspelt(loaded.workers, names):
        get_logger("canvasbus.worker").warning(
            f"nobody reads [workers.{table}]: did you mean {meant}?", file=str(loaded.file)
        )
    try:
        trio.run(_serve, tuple(workers), url, settings, options)
    except (BaseExceptionGroup, CanvasbusError, KeyboardInterrupt) as error:
        cause = _first_of(error)
        if isinstance(cause, LifespanError) and isinstance(cause.__cause__, BaseException):
            opening = _first_of(cause.__cause__)
            cause = opening if isinstance(opening, ConfigError) else cause  # its settings: no place in the code
        if isinstance(cause, KeyboardInterrupt):
            return 130
        if not isinstance(cause, CanvasbusError):
            raise
        return _fail(cause, 2 if isinstance(cause, ConfigError | ContractError) else 1)
    return 0


def _configure_log(settings: Any) -> None:
    configure(json={"json": True, "console": False}.get(settings.log_format), level=settings.log_level)


def _check_url(url: str) -> None:
    from canvasbus.transport import address

    scheme = address.parse(url).scheme
    if scheme == "memory":
        raise ConfigError(
            "memory:// lives inside one process, where no producer can reach this worker: use EventBus('memory://') "
            "and bus.add(worker) in the program itself, or start a Redis server"
        )
    if scheme == "off":
        raise ConfigError("off:// switches the bus off: there is nothing for a worker to do")


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _serve(workers: tuple[Any, ...], url: str, settings: Any, options: argparse.Namespace) -> None:
    import trio

    from canvasbus.bus import EventBus
    from canvasbus.cli.health import serve_health
    from canvasbus.signals import until_signal
    from canvasbus.worker import end_stuck, tune_collector

    bus = EventBus(
        url,
        source=settings.source,
        namespace=settings.namespace,
        partitions=settings.partitions,
        max_event_bytes=settings.max_event_bytes,
        buffer_bytes=settings.buffer_bytes,
        grace=settings.grace,
        park=settings.park,
        max_block=settings.max_block,
        on_stuck=end_stuck,
        connect_timeout=float("inf"),
    )
    for worker in workers:
        bus.add(worker)
    reaching = _Reaching()
    async with trio.open_nursery() as probes:
        if options.health_port is not None:
            await probes.start(serve_health, bus, options.health_host, options.health_port, lambda: reaching.trouble)
        # Entering the bus waits for the server, too, but neither signals nor this program's log would be served there.
        async with until_signal(supervisor=options.supervised_by) as told:
            await reaching.reach(url, settings.namespace, settings.partitions)
        if not told.is_set():
            async with bus, until_signal(supervisor=options.supervised_by):
                await bus.wait_ready()
                tune_collector()
                await trio.sleep_forever()
        probes.cancel_scope.cancel()


class _Reaching:
    """Waiting for a server that takes what every bus begins with."""

    def __init__(self) -> None:
        self.trouble = ""
        """Why it still waits; empty: it does not."""

    async def reach(self, url: str, namespace: str, partitions: int) -> None:
        """Wait for the server, and say so once a minute. Raises TransportError when it refuses."""
        import trio

        from canvasbus.errors import Unavailable
        from canvasbus.produce.fenced import declare_partitions
        from canvasbus.transport.connect import open_server
        from canvasbus.transport.link import Link

        link = Link(open_server(url))
        said = float("-inf")
        try:
            while True:
                try:
                    await link.run(declare_partitions(namespace, partitions))
                except Unavailable as error:
                    self.trouble = str(error)
                    if trio.current_time() - said >= WAITING_SAID_EVERY:
                        said = trio.current_time()
                        get_logger("canvasbus.worker").warning("starting waits for the server", error=str(error))
                    await trio.sleep(0.2)
                else:
                    self.trouble = ""
                    return
        finally:
            await link.aclose()


def _supervise(options: argparse.Namespace) -> int:
    from canvasbus.cli.reload import Sources, folders_of
    from canvasbus.cli.supervisor import supervise
    from canvasbus.operate import plugins

    loaded = _load(options)
    _check_url(loaded.require_url("the worker"))
    _configure_log(loaded.settings)
    # The URL may hold a password, and every user of the machine can read a command line.
    environ = dict(os.environ) | ({"CANVASBUS_URL": options.url} if options.url else {})
    sources = None
    if options.reload:
        # Compiled files are told apart by whole seconds: one that was edited twice in a second would be loaded stale.
        environ["PYTHONDONTWRITEBYTECODE"] = "1"
        targets = {plugin.name: plugin.target for plugin in plugins.installed()}
        sources = Sources(folders_of([targets.get(t, t).partition(":")[0] for t in options.targets]))
    return supervise([_command(options, index) for index in range(options.processes)], environ, sources)


def _command(options: argparse.Namespace, index: int) -> list[str]:
    command = [sys.executable, "-m", "canvasbus.cli.worker", *options.targets]
    for name in ("url", "namespace", "partitions", "grace", "max_block", "log_level", "log_format", "health_host"):
        value = getattr(options, name)
        if value is not None and name != "url":
            command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--supervised-by", str(os.getpid())]
    if options.health_port is not None:
        command += ["--health-port", str(options.health_port + index)]
    return command


if __name__ == "__main__":
    sys.exit(main())
