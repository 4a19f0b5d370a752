"""Tables of destinations: what is read, and what is refused with one line that says what to do."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from canvasbus.errors import ConfigError
from canvasbus_workers.alerts.destinations import Destinations, read
from canvasbus_workers.alerts.destinations.settings import KINDS, Alertmanager, Slack, Webhook

URL = "https://hooks.example/services/sesame"
PLACE = "[workers.alerts.destinations.ops]"


def test_each_kind_is_a_type() -> None:
    """The table of the documentation, read as TOML."""
    table = msgspec.toml.decode("""
        [studio]
        kind = "slack"
        url_file = "/run/secrets/slack"
        [pager]
        kind = "webhook"
        url = "https://pager.example/in"
        body = "alertmanager"
        secret_file = "/run/secrets/pager"
        timeout_seconds = 3
        [am]
        kind = "alertmanager"
        url = "http://alertmanager:9093"
        plain_http = true
        allow = ["alertmanager", "10.0.0.0/8"]
    """)
    found = read(table)
    assert {name: type(one) for name, one in found.items()} == {"studio": Slack, "pager": Webhook, "am": Alertmanager}
    pager = found["pager"]
    assert isinstance(pager, Webhook)
    assert (pager.timeout_seconds, pager.body) == (3.0, "alertmanager")
    assert read({}) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "slak", "url": URL}, "kind must be one of log, slack, webhook, alertmanager"),
        ({"url": URL}, "kind must be one of log, slack, webhook, alertmanager"),
        ({"kind": ["slack"], "url": URL}, "kind must be one of"),
        ("https://x", "this is to be a table"),
        ({"kind": "slack"}, "give one of url, url_file, url_env"),
        ({"kind": "slack", "url": URL, "url_env": "X"}, "url and url_env are both set: keep one"),
        ({"kind": "slack", "url": ""}, "url: expected a text"),
        ({"kind": "slack", "url": 7}, "url: expected a text"),
        ({"kind": "slack", "ulr": URL}, "unknown key 'ulr'; did you mean url?"),
        ({"kind": "slack", "url": URL, "secret_file": "x"}, "unknown key 'secret_file'; "),
        ({"kind": "webhook", "url": URL, "body": "xml"}, "body: invalid enum value 'xml'"),
        ({"kind": "webhook", "url": URL, "timeout_seconds": 0}, "timeout_seconds: expected float > 0.0"),
        ({"kind": "webhook", "url": URL, "timeout_seconds": "ten"}, "timeout_seconds: expected float, got str"),
        ({"kind": "webhook", "url": URL, "allow": ["10.0.0.0/33"]}, "allow: '10.0.0.0/33' is no host name"),
        ({"kind": "webhook", "url": URL, "allow": "ops"}, "allow: expected array, got str"),
        ({"kind": "webhook", "url": "http://ops/sesame"}, "the URL begins with http://, by which everybody"),
        ({"kind": "webhook", "url": "https://10.0.0.1/sesame"}, "names 10.0.0.1, a private address: if that is meant"),
        ({"kind": "webhook", "url": "https://u:sesame@ops/"}, "has a user or a password in it"),
        (
            {"kind": "webhook", "url": URL, "authorization_file": "a", "authorization_env": "b"},
            "authorization_file and authorization_env are both set: keep one",
        ),
        ({"kind": "alertmanager", "url": URL, "hold_seconds": -1}, "hold_seconds: expected float > 0.0"),
    ],
)
def test_a_mistake_is_one_line(given: Any, said: str) -> None:
    """It names the table and the key, and no value that may be a secret."""
    with pytest.raises(ConfigError) as caught:
        read({"ops": given})
    text = str(caught.value)
    assert text.startswith(f"{PLACE}: ")
    assert said in text
    assert "sesame" not in text and "\n" not in text


def test_a_name_is_a_name() -> None:
    """It stands in states and statistics."""
    with pytest.raises(ConfigError, match="the name needs 1 to 100 letters"):
        read({"a b": {"kind": "slack", "url": URL}})


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_come_from_files_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Without the newline that editors and `echo` put at the end."""
    (tmp_path / "url").write_text(f"{URL}\r\n")
    monkeypatch.setenv("OPS_URL", f"{URL}\n")
    for way in ({"url_file": str(tmp_path / "url")}, {"url_env": "OPS_URL"}, {"url": URL}):
        settings = read({"ops": {"kind": kind, **way}})
        assert list(Destinations(settings)) == ["ops"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"url_file": "gone"}, "url_file names gone, which cannot be read: No such file or directory"),
        ({"url_file": "."}, "url_file names ., which cannot be read: Is a directory"),
        ({"url_file": "empty"}, "url_file names empty, which is empty"),
        ({"url_file": "binary"}, "url_file names binary, which cannot be read: it is not text"),
        ({"url_file": "plain"}, "the URL begins with http://"),
        ({"url_file": "two"}, "the URL has white space or control characters in it"),
        ({"url_env": "NOT_SET"}, "url_env names the environment variable NOT_SET, which is not set"),
        ({"url": URL, "secret_file": "gone"}, "secret_file names gone, which cannot be read"),
        ({"url": URL, "secret_file": "two"}, "the secret is not whsec_ and base64"),
        ({"url": URL, "secret_env": "NOT_SET"}, "secret_env names the environment variable NOT_SET"),
        ({"url": URL, "authorization_file": "two"}, "the authorization does not fit into a header"),
        ({"url": URL, "proxy": "socks5://proxy"}, "the URL of the proxy is not one of http:// or https://"),
        ({"url": URL, "ca_file": "gone"}, "ca_file names gone, which cannot be used: No such file or directory"),
        ({"url": URL, "ca_file": "two"}, "ca_file names two, which cannot be used: it holds no certificates"),
    ],
)
def test_what_is_missing_is_told_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], said: str
) -> None:
    """One line, before anything is to be told to anybody."""
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    Path("binary").write_bytes(b"\xff\xfe\xff")
    Path("plain").write_text("http://ops/sesame")
    Path("two").write_text("https://sesame\nhttps://sesame")
    with pytest.raises(ConfigError) as caught:
        Destinations(read({"ops": {"kind": "webhook", **more}}))
    assert str(caught.value).startswith(f"{PLACE}: {said}")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://am.example/?x=1", "https://am.example/#/alerts"])
def test_the_url_of_an_alertmanager_is_its_front_page(url: str) -> None:
    """As copied from a browser it would lead nowhere."""
    with pytest.raises(ConfigError, match="that of Alertmanager's front page, without"):
        Destinations(read({"am": {"kind": "alertmanager", "url": url}}))


def test_without_httpx2_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is needed by those alone who have destinations."""
    monkeypatch.setitem(sys.modules, "httpx2", None)
    assert list(Destinations({})) == []
    with pytest.raises(ConfigError, match=r"needs httpx2, which is not installed: pip install 'canvasbus\[alerts\]'$"):
        Destinations(read({"ops": {"kind": "slack", "url": URL}}))
