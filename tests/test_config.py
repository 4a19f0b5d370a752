"""Settings: flag > environment > file > default, each with its origin, nothing unknown, no password shown."""

from pathlib import Path

import pytest

from canvasbus.config import KEYS, Loaded, Settings, default_source, load, redacted
from canvasbus.consume.leaving import GRACE_SECONDS
from canvasbus.consume.liveness import MAX_BLOCK_SECONDS
from canvasbus.consume.parking import PATIENCE_SECONDS
from canvasbus.errors import ConfigError
from canvasbus.produce.buffer import BUFFER_BYTES
from canvasbus.wire.codec import MAX_EVENT_BYTES


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where no canvasbus.toml of somebody else lies."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, text: str, name: str = "canvasbus.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold() -> None:
    """Every setting has the documented default; the source says which program on which host."""
    loaded = load(environ={})
    assert loaded.settings == Settings(source=default_source())
    assert set(loaded.origins) == set(KEYS) and set(loaded.origins.values()) == {"default"}
    assert loaded.file is None and loaded.workers == {}


def test_the_defaults_are_those_of_the_doors() -> None:
    """A program that sets nothing behaves as a bus that is told nothing; settings lie below the doors and repeat them."""
    default = Settings()
    assert (default.grace, default.park, default.max_block) == (GRACE_SECONDS, PATIENCE_SECONDS, MAX_BLOCK_SECONDS)
    assert (default.buffer_bytes, default.max_event_bytes) == (BUFFER_BYTES, MAX_EVENT_BYTES)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/srv/train.py"], "train"),
        (["/srv/shop/__main__.py"], "shop"),
        (["/srv/caf\udce9.py"], "caf\\udce9"),
        ([""], "python"),
        (["-c"], "-c"),
        ([], "python"),
    ],
)
def test_the_default_source_names_the_program(monkeypatch: pytest.MonkeyPatch, argv: list[str], name: str) -> None:
    """Script, package of `python -m`, or python itself."""
    monkeypatch.setattr("sys.argv", argv)
    assert default_source().partition("/")[2] == name


def test_a_flag_beats_the_environment_beats_the_file(empty_folder: Path) -> None:
    """Layer by layer, and every value remembers its layer."""
    path = written(empty_folder, 'namespace = "file"\ngrace = 3\nlog_level = "debug"\n')
    environ = {"CANVASBUS_NAMESPACE": "env", "CANVASBUS_LOG_LEVEL": "WARNING"}
    loaded = load({"namespace": "flag", "url": None}, environ=environ)
    assert (loaded.settings.namespace, loaded.settings.log_level, loaded.settings.grace) == ("flag", "warning", 3.0)
    assert {key: loaded.origins[key] for key in ("namespace", "log_level", "grace", "url")} == {
        "namespace": "--namespace",
        "log_level": "CANVASBUS_LOG_LEVEL",
        "grace": str(path),
        "url": "default",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("partitons = 4", "unknown key 'partitons'; did you mean partitions"),
        ("zzz = 4", "unknown key 'zzz'; known are url"),
        ("partitions = 0", r"partitions=0 from .*canvasbus\.toml"),
        ('partitions = "4"', "partitions='4' from"),
        ("partitions = true", "partitions=True from"),
        ('namespace = "a b"', "namespace='a b' from .*letters, digits"),
        ('log_level = "loud"', "debug, info"),
        ("grace = -1", "grace=-1"),
        ("modules = 'a'", "modules='a'"),
        ("workers = 3", "one table for each worker"),
        ("workers.drift = 3", "one table for each worker"),
        ("url = [", "is not TOML"),
        ("a\x00b", "is not TOML"),
    ],
)
def test_mistakes_in_the_file_name_the_file(empty_folder: Path, text: str, says: str) -> None:
    """Unknown keys, wrong types and no TOML: one line that names the path and what was meant."""
    written(empty_folder, text)
    with pytest.raises(ConfigError, match=says) as caught:
        load(environ={})
    assert "canvasbus.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_an_error(empty_folder: Path) -> None:
    """Bytes that are no UTF-8 are named, not dumped."""
    (empty_folder / "canvasbus.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(environ={})


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        (
            {"CANVASBUS_PARTITONS": "4"},
            "unknown environment variable CANVASBUS_PARTITONS; did you mean CANVASBUS_PARTITIONS",
        ),
        ({"CANVASBUS_PARTITIONS": "four"}, "partitions='four' from CANVASBUS_PARTITIONS"),
        ({"CANVASBUS_PARTITIONS": "4097"}, "partitions='4097' from CANVASBUS_PARTITIONS: expected int <= 4096"),
        ({"CANVASBUS_NAMESPACE_FILE": "x"}, "unknown environment variable"),
        ({"CANVASBUS_URL_FILE": "/nowhere/secret"}, "CANVASBUS_URL_FILE names /nowhere/secret, which cannot be read"),
        ({"CANVASBUS_URL_FILE": "x", "CANVASBUS_URL": "redis://y"}, "both set"),
        ({"CANVASBUS_CONFIG": "/nowhere.toml"}, "CANVASBUS_CONFIG names /nowhere"),
    ],
)
def test_mistakes_in_the_environment_name_the_variable(environ: dict[str, str], says: str) -> None:
    """A variable that nobody knows, or whose value is none, is never ignored."""
    with pytest.raises(ConfigError, match=says):
        load(environ=environ)


def test_variables_of_others_pass() -> None:
    """What Kubernetes sets for a Service called canvasbus, what tests set, and empty variables are let through."""
    names = [
        *("CANVASBUS_SERVICE_HOST", "CANVASBUS_PORT", "CANVASBUS_PORT_6379_TCP_ADDR", "CANVASBUS_SERVICE_PORT_REDIS"),
        *("CANVASBUS_REDIS_SERVICE_HOST", "CANVASBUS_TEST_REDIS_URL", "CANVASBUS_REQUIRE_SERVERS", "PATH"),
    ]
    environ = dict.fromkeys(names, "tcp://10.0.0.1:6379") | {"CANVASBUS_NAMESPACE": "  ", "CANVASBUS_URL": ""}
    assert set(load(environ=environ).origins.values()) == {"default"}


def test_the_url_may_lie_in_a_secret_file(empty_folder: Path) -> None:
    """CANVASBUS_URL_FILE, without the newline at its end; an empty file is an error."""
    path = written(empty_folder, "redis://:secret@host:6379\n", "secret")
    loaded = load(environ={"CANVASBUS_URL_FILE": str(path)})
    assert loaded.settings.url == "redis://:secret@host:6379"
    assert loaded.origins["url"] == "CANVASBUS_URL_FILE"
    path.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        load(environ={"CANVASBUS_URL_FILE": str(path)})


def test_canvasbus_config_points_elsewhere(empty_folder: Path) -> None:
    """The named file wins over the one in the working directory."""
    written(empty_folder, 'namespace = "here"')
    other = written(empty_folder, 'namespace = "there"\n[workers.drift]\nwindow = 5\n', "other.toml")
    loaded = load(environ={"CANVASBUS_CONFIG": str(other)})
    assert (loaded.settings.namespace, loaded.file) == ("there", other)
    assert loaded.workers == {"drift": {"window": 5}}


def test_modules_are_a_list_or_words_with_commas(empty_folder: Path) -> None:
    """A TOML array in the file, a comma-separated variable."""
    written(empty_folder, 'modules = ["a.b", "c"]')
    assert load(environ={}).settings.modules == ("a.b", "c")
    assert load(environ={"CANVASBUS_MODULES": "x, y.z ,"}).settings.modules == ("x", "y.z")


def test_a_flag_that_is_zero_or_empty_was_given() -> None:
    """Only None means that the command line said nothing."""
    with pytest.raises(ConfigError, match="partitions=0 from --partitions"):
        load({"partitions": 0}, environ={})
    assert load({"grace": 0}, environ={"CANVASBUS_GRACE": "5"}).settings.grace == 0.0
    assert load({"url": ""}, environ={"CANVASBUS_URL": "redis://x"}).origins["url"] == "--url"


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can look for a file there, and somebody has to be told."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="the working directory is gone: change to one that exists"):
        load(environ={})
    monkeypatch.chdir(tmp_path)


def test_a_missing_url_names_the_three_ways_to_set_one() -> None:
    """Flag, variable, file."""
    loaded = load(environ={})
    with pytest.raises(ConfigError, match=r"tail needs .*--url .*CANVASBUS_URL.*canvasbus\.toml"):
        loaded.require_url("tail")
    assert load({"url": "redis://x"}, environ={}).require_url("tail") == "redis://x"
    blamed = load({"url": "redis://x"}, environ={}).blame("url", ConfigError("no"))
    assert isinstance(loaded, Loaded) and str(blamed) == "no (url from --url)"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/2", "redis://host:6379/2"),
        ("redis://:secret@host", "redis://:***@host"),
        ("rediss://user:secret@host:1/0?ssl_cert_reqs=none", "rediss://user:***@host:1/0?ssl_cert_reqs=none"),
        ("redis://user:se@cr@et@host", "redis://user:***@host"),
        ("redis://user:secr/et@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://host?password=secret&db=1", "redis://host?password=***&db=1"),
        ("unix://:secret@/run/redis.sock", "unix://:***@/run/redis.sock"),
        ("user:secret@host", "user:***@host"),
        ("memory://", "memory://"),
        ("", ""),
    ],
)
def test_passwords_are_never_shown(url: str, shown: str) -> None:
    """Also where the URL is none that anything can parse."""
    assert redacted(url) == shown
    assert "secret" not in repr(Settings(url=url))


def test_a_wrong_url_value_is_not_repeated(empty_folder: Path) -> None:
    """The error names the setting and its origin, not what may be a password."""
    written(empty_folder, "url = 12345")
    with pytest.raises(ConfigError, match=r"url from .*canvasbus\.toml") as caught:
        load(environ={})
    assert "12345" not in str(caught.value)


def test_a_folder_without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as another user from somebody's home: whose move it is."""

    def forbidden(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", forbidden)
    with pytest.raises(
        ConfigError, match=r"may not look into the working directory for canvasbus\.toml: change to another"
    ):
        load(environ={})
