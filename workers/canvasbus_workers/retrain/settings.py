"""What the retrain worker can be told: the table [workers.retrain] of canvasbus.toml, and for single models
[workers.retrain.models."PATTERN"], where the first that fits says what is different."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from canvasbus.config import table
from canvasbus_workers.outside import secret
from canvasbus_workers.outside.guard import flaw
from canvasbus_workers.outside.library import need_http
from canvasbus_workers.outside.secret import Secret
from canvasbus_workers.patterns import fits

Seconds = Annotated[float, Meta(ge=0, le=366 * 86400)]
Duration = Annotated[float, Meta(gt=0, le=30 * 86400)]


class Subprocess(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [workers.retrain.subprocess]: a program on the worker's machine."""

    command: tuple[str, ...] = ()
    """The program and its arguments, as they are: there is no shell."""
    cwd: str = ""
    """Where it is started; empty: where the worker was."""
    environment: tuple[str, ...] = ()
    """Patterns: variables of the worker's environment that it gets, besides PATH, HOME, LANG, LC_ALL, TZ and TMPDIR."""
    log_bytes: Annotated[int, Meta(ge=4096, le=2**40)] = 10 * 1024 * 1024
    """Bytes of its output that are kept: the last half of them at least."""
    grace_seconds: Seconds = 10.0
    """Seconds between SIGTERM and SIGKILL when it has to end."""
    when_stopped: Literal["end", "keep"] = "end"
    """What becomes of it when its worker is told to leave. keep: it goes on, and the next worker adopts it."""


class Remote(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every launcher on the network has."""

    url: str = ""
    """Where to send orders."""
    authorization_file: str = ""
    """A file with the whole value of a header Authorization, for example `Bearer …`."""
    authorization_env: str = ""
    """An environment variable with it."""
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    """What is sent along with each order."""
    timeout_seconds: Duration = 15.0
    """Seconds in which an answer has to come."""

    def __post_init__(self) -> None:
        secret.check(self, "authorization")


class Http(Remote, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [workers.retrain.http]: POST to `url`."""

    keyed: bool = True
    """The other side knows an order again by its Idempotency-Key, so that it may be sent again. False: it is sent once, and
    what became of it when the answer was lost is looked up, or the run fails."""
    lookup_url: str = ""
    """Where to ask for an order by its {key} when the answer was lost: 200 with its id, or 404."""
    status_url: str = ""
    """Where to ask how a run stands, by its {id}; empty: nowhere."""
    id_field: str = "id"
    """In answers: the other side's name of a run. Dots lead into objects."""
    state_field: str = "state"
    """In answers of status_url: how it stands."""
    succeeded: tuple[str, ...] = ("succeeded", "success", "completed", "finished")
    """States, in any case, of a run that has ended well."""
    failed: tuple[str, ...] = ("failed", "error", "crashed", "cancelled", "canceled", "timed_out")
    """States of one that has not."""


class Prefect(Remote, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [workers.retrain.prefect]; `url` is the API's, like http://127.0.0.1:4200/api."""

    deployment: str = ""
    """FLOW/DEPLOYMENT"""
    order_parameter: str = ""
    """The flow's parameter that gets the order as an object; empty: none."""


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a model is trained, and how."""

    on: tuple[Literal["quality", "critical_drift"], ...] = ("quality", "critical_drift")
    """What asks for a training by itself: critical breaches of metrics, and drift that is critical when it is detected.
    Input drift alone is neither. Empty: only people and other programs ask, by retrain.requested."""
    metrics: str = "*"
    """A pattern: whose breaches are about quality."""
    debounce_seconds: Seconds = 30.0
    """Seconds after the first signal in which others join it."""
    cooldown_seconds: Seconds = 3600.0
    """Seconds from the end of a run to the start of the next one."""
    daily_runs: Annotated[int, Meta(ge=1, le=1000)] = 4
    """Runs that may start within any 24 hours."""
    min_new_labels: Annotated[int, Meta(ge=0)] = 0
    """Labelled items for training that must have come since the last run began; with fewer, what asked is dropped and has to
    ask again, as a breach does by its reminders."""
    approval: bool = False
    """A person is asked before each run."""
    promote: bool = True
    """A run that succeeded is put into service: model.promoted."""
    timeout_seconds: Duration = 6 * 3600.0
    """Seconds after which a run has failed."""
    poll_seconds: Duration = 10.0
    """Seconds between two questions where a run stands that is trained elsewhere."""
    launcher: Literal["bus", "subprocess", "http", "prefect"] = "bus"
    """Who trains. bus: whoever reads retrain.started, another worker for example."""
    answer: Literal["", "file", "state", "bus"] = ""
    """What says that a run has succeeded. file: its result file (subprocess). state: that it ended well. bus: itself, by
    retrain.succeeded. Empty: file for a subprocess, else bus."""
    folder: str = "retrain-runs"
    """Where runs leave results, logs and records of what was sent. Workers that share the work need to see the same one."""
    keep_runs: Annotated[int, Meta(ge=1)] = 20
    """Of a model's runs so many are kept there, the newest; older ones are removed as soon as they cannot be asked for
    any more."""
    subprocess: Subprocess = Subprocess()
    http: Http = Http()
    prefect: Prefect = Prefect()

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.launcher == "subprocess" and not self.subprocess.command:
            raise ValueError('subprocess.command: say what trains, like ["python", "train.py"]')
        if self.launcher == "http" and not self.http.url:
            raise ValueError("http.url: say where to send orders, like https://trainer.internal/runs")
        if self.launcher == "prefect" and not (self.prefect.url and self.prefect.deployment.count("/") == 1):
            raise ValueError("prefect.url and prefect.deployment: give the API and FLOW/DEPLOYMENT")
        if self.answer == "file" and self.launcher != "subprocess":
            raise ValueError("answer: only a subprocess writes a result file")
        if self.answer == "state" and (
            self.launcher == "bus" or (self.launcher == "http" and not self.http.status_url)
        ):
            raise ValueError("answer: how a run stands can be asked of a subprocess, of prefect, or at http.status_url")
        for name, url in self.urls.items():
            if url and (wrong := flaw(url)):
                raise ValueError(f"{name}: it {wrong}")

    @property
    def urls(self) -> dict[str, str]:
        """All that may be called; empty ones are not."""
        http = {f"http.{name}": getattr(self.http, name) for name in ("url", "status_url", "lookup_url")}
        return http | {"prefect.url": self.prefect.url}

    @property
    def remote(self) -> Remote | None:
        """What its launcher, where that is on the network, is told."""
        return self.http if self.launcher == "http" else self.prefect if self.launcher == "prefect" else None

    @property
    def says(self) -> Literal["file", "state", "bus"]:
        """What says that a run has succeeded."""
        if self.answer:
            return self.answer
        return "file" if self.launcher == "subprocess" else "bus"


class Settings(Policy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [workers.retrain]."""

    models: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    """Pattern → what is different for these models."""

    def __post_init__(self) -> None:
        self._check()
        for pattern, given in self.models.items():
            self._merged(_place(pattern), given)

    @property
    def policies(self) -> dict[str, Policy]:
        """All that may hold for a model, by its place in the file."""
        tables = {PLACE: {}, **{_place(pattern): given for pattern, given in self.models.items()}}
        return {place: self._merged(place, given) for place, given in tables.items()}

    def place(self, model: str) -> str:
        """Whose policy holds for a model."""
        return next((_place(pattern) for pattern in self.models if fits(pattern, model)), PLACE)

    def policy(self, model: str) -> Policy:
        """What holds for a model."""
        return self.policies[self.place(model)]

    def _merged(self, place: str, given: Mapping[str, Any]) -> Policy:
        own = msgspec.to_builtins(self)
        del own["models"]
        for key, value in given.items():
            inner = own.get(key)
            own[key] = inner | value if isinstance(value, dict) and isinstance(inner, dict) else value
        return table(place, own, Policy)


PLACE = "[workers.retrain]"


def _place(pattern: str) -> str:
    return f'[workers.retrain.models."{pattern}"]'


def authorization(place: str, policy: Policy) -> Secret | None:
    """What its launcher sends as Authorization. Raises ConfigError, one line, when that is not there or is none, or when
    httpx2 is needed and not installed."""
    remote = policy.remote
    if remote is None:
        return None
    need_http(f"{place}: launcher = {policy.launcher!r}", "retrain")
    return secret.authorization(f"{place}: {policy.launcher}", remote)


def check(settings: Settings) -> str:
    """What the doctor says about them. Raises ConfigError for a secret, a library, a program or a folder that is missing."""
    from canvasbus_workers.retrain.edge import check_machine

    check_machine(settings.policies)
    for place, policy in settings.policies.items():
        authorization(place, policy)
    return f"launcher {settings.launcher}"
