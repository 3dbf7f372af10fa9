"""Which addresses may be downloaded: those of the public Internet, as far as a look before the download can tell.

A list is a stranger's, and a program in a cluster can reach what the stranger cannot: the metadata of the cloud
(169.254.169.254, which gives out credentials), the API of Kubernetes, databases. So each address whose server is, or
has a name that leads to, a private one is rejected. What this cannot see is a server that redirects to another one, and
a name that leads elsewhere a moment later: in a cluster, let a NetworkPolicy deny the pod everything but the Internet.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from functools import lru_cache
from urllib.parse import urlsplit

from components.errors import ImageRejected, without_credentials

BAD_ADDRESS, PRIVATE = "address-broken", "address-private"
_LONGEST = 4000  # characters
_PRIVATE_NAMES = ("localhost", ".localhost", ".local", ".internal", ".svc", ".lan", ".home.arpa")


def check_address(address: str, *, allow_private: bool) -> str:
    """Return an address that may be downloaded, without blanks around it.

    Raises:
        ImageRejected: ``address-broken`` or ``address-private``.
    """
    address = address.strip()
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "").rstrip(".")
        _ = parts.port  # raises if it is no number
    except ValueError as error:
        raise ImageRejected(BAD_ADDRESS, f"{address[:200]!a} is no address ({error})") from None
    if (
        parts.scheme not in ("http", "https")
        or not host
        or len(address) > _LONGEST
        or re.search(r"[\x00-\x20]", address)
    ):
        raise ImageRejected(BAD_ADDRESS, f"{address[:200]!a} is no address such as https://example.org/a.jpg")
    if parts.username is not None or parts.password is not None:
        raise ImageRejected(
            BAD_ADDRESS, f"{without_credentials(address)[:200]!a} holds credentials, which are not sent"
        )
    if not allow_private and (problem := _private(host)) is not None:
        raise ImageRejected(
            PRIVATE, f"{address[:200]!a} leads to {problem}, no server of the public Internet (addresses.allow_private)"
        )
    return address


@lru_cache(65_536)
def _private(host: str) -> str | None:
    """Return what is private about a host: its name, or an address that its name leads to; None if it is public."""
    lower = f".{host.lower()}"
    if lower.endswith(tuple(f".{name.lstrip('.')}" for name in _PRIVATE_NAMES)):
        return host
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)}
    except (OSError, UnicodeError):
        return None  # the download says so
    return next((one for one in sorted(found) if not _is_public(one)), None)


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    # An IPv4 address within one of IPv6: mapped, 6to4, or NAT64's.
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if address.version == 6 and address in ipaddress.ip_network("64:ff9b::/96"):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.is_global and not address.is_multicast and (inner is None or (inner.is_global))
