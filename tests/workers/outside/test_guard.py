"""Which addresses are called: public ones, and what the settings allow."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canvasbus_workers.outside.guard import Allow, flaw, kind_of, refusal

NOTHING = Allow()


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("8.8.8.8", None),
        ("172.15.255.255", None),
        ("172.32.0.0", None),
        ("2606:4700::1111", None),
        ("64:ff9b::8.8.8.8", None),  # a public address by NAT64
        ("::ffff:8.8.8.8", None),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::a00:1", "private"),
        ("fd12:3456::1", "private"),
        ("169.254.169.254", "metadata"),
        ("::ffff:169.254.169.254", "metadata"),
        ("64:ff9b::a9fe:a9fe", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("168.63.129.16", "metadata"),
        ("100.100.100.200", "metadata"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("ff02::1", "multicast"),
        ("0.0.0.0", "reserved"),
        ("0.1.2.3", "reserved"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        ("192.0.0.8", "reserved"),
        ("198.18.0.1", "reserved"),
        ("203.0.113.9", "reserved"),
        ("::", "reserved"),
        ("::127.0.0.1", "reserved"),  # IPv4-compatible, as some stacks still route it
        ("::8.8.8.8", "reserved"),
        ("64:ff9b:1::1", "reserved"),  # NAT64 of a local network
        ("2002:7f00:1::", "reserved"),  # 6to4 of 127.0.0.1
        ("2001::1", "reserved"),  # Teredo
        ("2001:db8::1", "reserved"),
        ("fec0::1", "reserved"),  # site-local
        ("100::1", "reserved"),
    ],
)
def test_only_public_addresses_are_public(address: str, kind: str | None) -> None:
    """Whatever form they come in: an IPv4 address inside an IPv6 one counts."""
    assert kind_of(ip_address(address)) == kind


@given(st.ip_addresses())
def test_nothing_that_python_calls_special_is_public(address: object) -> None:
    """`ipaddress` as an oracle: it calls fewer addresses special, never more, but those that NAT64 makes public."""
    found = ip_address(str(address))
    inside = getattr(found, "ipv4_mapped", None)
    special = not (inside or found).is_global or (inside or found).is_multicast
    if special:
        assert kind_of(found) is not None


@pytest.mark.parametrize(
    ("entries", "host", "address", "allowed"),
    [
        (["10.0.0.0/8"], "am.internal", "10.9.9.9", True),
        (["10.0.0.0/8"], "am.internal", "::ffff:10.9.9.9", True),
        (["10.0.0.0/8"], "am.internal", "192.168.0.1", False),
        (["10.0.0.7"], "am.internal", "10.0.0.7", True),
        (["10.0.0.7"], "am.internal", "10.0.0.8", False),
        (["am.internal"], "AM.Internal.", "10.0.0.8", True),
        (["am.internal"], "am.internal", "127.0.0.1", True),
        (["am.internal"], "other.internal", "10.0.0.8", False),
        (["am.internal"], "am.internal", "169.254.169.254", False),  # who owns the name does not get this far
        (["am.internal"], "am.internal", "0.0.0.0", False),
        (["169.254.169.254"], "meta.internal", "169.254.169.254", True),
        (["fe80::/10"], "fe80::1%eth0", "fe80::1%eth0", True),
        (["fd00::/8"], "am.internal", "fd12::1", True),
    ],
)
def test_settings_allow_names_and_networks(entries: list[str], host: str, address: str, allowed: bool) -> None:
    """A name opens loopback and private addresses, a network whatever is in it."""
    assert (refusal(host, address, Allow.of(entries)) is None) == allowed


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "10.0.0.1/8", "10.0.0.300", "*.internal", "http://am", "a..b", ""])
def test_what_is_neither_is_refused(entry: str) -> None:
    """A typing error in a network does not become the name of a host."""
    with pytest.raises(ValueError, match="is no host name, no address and no network"):
        Allow.of([entry])


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("https://hooks.slack.com/services/T/B/x", None),
        ("https://127.1/", None),  # a name until it is looked up; then its address is judged
        ("http://hooks.slack.com/services", "everybody on the way"),
        ("ftp://host/", "must begin with https://HOST"),
        ("file:///etc/passwd", "must begin with https://HOST"),
        ("hooks.slack.com/x", "must begin with https://HOST"),
        ("https:///x", "must begin with https://HOST"),
        ("https://host/a b", "white space"),
        ("https://host/a\nb", "white space"),
        ("https://[::1", "is not a URL"),
        ("https://host:99999/", "is not a URL"),
        ("https://mia:hidden@host/", "a user or a password"),
        ("https://169.254.169.254/latest", "names 169.254.169.254, a metadata address"),
        ("https://[::ffff:127.0.0.1]/", "a loopback address"),
    ],
)
def test_a_url_is_looked_at_before_it_is_called(url: str, wrong: str | None) -> None:
    """What can be seen without the network is told at start."""
    found = flaw(url, NOTHING, plain_http=False)
    assert found is None if wrong is None else wrong in (found or "")
    assert "hidden" not in (found or "")
