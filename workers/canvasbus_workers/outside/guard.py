"""Which addresses may be called by a URL that somebody else may have chosen. Pure: addresses in, a word of refusal out.

Such a URL (of a destination of alerts) makes a worker, which stands inside, call whatever the URL names: with `http://169.254.169.254/`
the cloud's own credentials. So every address is refused that is not public, unless the destination's settings allow it.
The rule is applied to the address that is about to be connected to (`dial.py`), not to the name: what a name resolves to
may change between two questions, and `127.1`, `0x7f000001` and `2130706433` are names for loopback.

The tables are IANA's special-purpose registries, not `ipaddress.is_global`: what that says changed within Python 3.11
(CVE-2024-4032), takes multicast for global, and knows no NAT64 with a private address inside.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal
from urllib.parse import urlsplit

Word = Literal["metadata", "loopback", "private", "link-local", "multicast", "reserved"]

_BY_NAME: tuple[Word, ...] = ("loopback", "private")
"""What a *name* in `allow` opens. The others need a network: who owns a name decides what it resolves to."""

_ROWS: tuple[tuple[Word, str], ...] = (
    # AWS, GCP, Azure and most others · Azure's wire server · Alibaba · Oracle
    ("metadata", "169.254.169.254/32 169.254.170.2/32 168.63.129.16/32 100.100.100.200/32 192.0.0.192/32"),
    ("metadata", "fd00:ec2::/32 fd20:ce::254/128"),
    ("loopback", "127.0.0.0/8 ::1/128"),
    ("private", "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fc00::/7"),
    ("link-local", "169.254.0.0/16 fe80::/10"),
    ("multicast", "224.0.0.0/4 ff00::/8"),
    ("reserved", "0.0.0.0/8 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15 198.51.100.0/24"),
    ("reserved", "203.0.113.0/24 240.0.0.0/4"),
    # Protocol assignments with Teredo · documentation · 6to4: two tunnels to an IPv4 address inside.
    ("reserved", "2001::/23 2001:db8::/32 2002::/16 3fff::/20"),
)
_SPECIAL = tuple((word, ip_network(network)) for word, networks in _ROWS for network in networks.split())
"""The first that matches counts."""
_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Allow:
    """What the settings allow besides public addresses."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> "Allow":
        """From host names, addresses and networks. Raises ValueError, which names the entry that is none of them."""
        hosts, networks = set(), []
        for entry in entries:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                labels = _plain(entry).split(".")
                numeric = labels[-1].isdigit()  # 10.0.0.300, or 127.1
                if "/" in entry or ":" in entry or "*" in entry or numeric or not all(labels):
                    raise ValueError(f"{entry!r} is no host name, no address and no network") from None
                hosts.add(_plain(entry))
        return cls(frozenset(hosts), tuple(networks))


def kind_of(address: IPv4Address | IPv6Address) -> Word | None:
    """What makes an address none for a destination. None: it is public."""
    inner = _inner(address)
    for word, network in _SPECIAL:
        if inner in network:
            return word
    return None if isinstance(inner, IPv4Address) or inner in _UNICAST else "reserved"


def refusal(host: str, address: str, allow: Allow) -> Word | None:
    """What makes `address`, to which `host` resolves, none to connect to. None: it may be connected to."""
    found = ip_address(address)
    kind = kind_of(found)
    if kind is None or (kind in _BY_NAME and _plain(host) in allow.hosts):
        return None
    if any(one in network for one in {found, _inner(found)} for network in allow.networks):
        return None
    return kind


def flaw(url: str, guard: Allow | None = None, *, plain_http: bool = True) -> str | None:
    """What is wrong with a URL, in words that do not repeat it: many are secrets. None: nothing. `guard`: judge its address,
    too, where it is one; names are not resolved: that is done, and judged, when it is connected to."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if any(character <= " " or character == "\x7f" for character in url):
        return "has white space or control characters in it"
    if parts.scheme not in ("http", "https") or not host:
        return "must begin with https://HOST" if not plain_http else "must begin with https://HOST or http://HOST"
    if parts.scheme == "http" and not plain_http:
        return "begins with http://, by which everybody on the way can read it: use https, or say plain_http = true"
    if "@" in parts.netloc:
        return "has a user or a password in it: give them as authorization_file or authorization_env"
    if guard is None:
        return None
    try:
        kind = refusal(host, host, guard)
    except ValueError:
        return None  # a name
    return kind and f"names {host}, a {kind} address: if that is meant, add it to allow"


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that is reached in the end, where an IPv6 address has one inside."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return IPv6Address(int(address))  # without its scope, which `in` would not see through
    return address


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")
