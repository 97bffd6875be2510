"""Who asked: the forwarding headers that trusted proxies wrote, and those that the origin is given.

Pure functions of bytes. X-Forwarded-* is the habit, Forwarded (RFC 7239) the standard; both are understood
and written.
"""

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

from waitingroom.heads import Head, is_host

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PAIR = re.compile(rb'[ \t]*(for|host|proto)=(?:"([^"\\,;]*)"|([^",; \t]*))[ \t]*', re.IGNORECASE)


class Client(NamedTuple):
    """Who asked, as far as it can be trusted: address, "http" or "https", and the authority they named."""

    address: str
    scheme: str
    host: bytes


@lru_cache(maxsize=4096)
def is_trusted(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether `address` lies in one of the networks; what is not an address lies in none."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def client_of(head: Head, peer: str, trusted: tuple[Network, ...], scheme: str = "http") -> Client:
    """Who sent the request. Forwarding headers count only where a trusted peer wrote them.

    The chain of addresses is walked from the right, past every trusted one; what stands left of the first
    stranger is hearsay. `scheme` is that of the socket.
    """
    if not trusted or not is_trusted(peer, trusted):
        return Client(peer, scheme, head.host)
    chain, protos, hosts = _noted(head)
    address = peer
    for hop in reversed(chain):
        if not hop or not is_trusted(address, trusted):
            break
        address = hop
    if protos and protos[-1] in {b"http", b"https"}:
        scheme = protos[-1].decode()
    host = hosts[-1] if hosts and is_host(hosts[-1]) else head.host
    return Client(address, scheme, host)


@lru_cache(maxsize=4096)
def forwarding_lines(client: Client, peer: str) -> bytes:
    """The header lines that tell the origin who asked; `peer` is the socket's, which may be a proxy's."""
    chain = client.address if peer == client.address else f"{client.address}, {peer}"
    node = f'"[{client.address}]"' if ":" in client.address else client.address or "unknown"
    lines = f"X-Forwarded-For: {chain}\r\nX-Forwarded-Proto: {client.scheme}\r\n".encode()
    forwarded = f"Forwarded: for={node};proto={client.scheme}".encode()
    if not client.host:
        return lines + forwarded + b"\r\n"
    return b'%bX-Forwarded-Host: %b\r\n%b;host="%b"\r\n' % (lines, client.host, forwarded, client.host)


def _noted(head: Head) -> tuple[list[str], list[bytes], list[bytes]]:
    """Addresses, schemes and hosts that proxies noted; X-Forwarded-* wins where both are there."""
    found: dict[bytes, list[bytes]] = {b"for": [], b"proto": [], b"host": []}
    for element in head.fields.get_all(b"forwarded"):
        for pair in re.split(rb"[,;]", element):
            match = _PAIR.fullmatch(pair)
            if match:
                found[match[1].lower()].append(match[2] if match[2] is not None else match[3])
    chain = head.fields.listed(b"x-forwarded-for") or found[b"for"]
    protos = head.fields.listed(b"x-forwarded-proto") or [proto.lower() for proto in found[b"proto"]]
    hosts = head.fields.listed(b"x-forwarded-host") or found[b"host"]
    return [_address(hop) for hop in chain], protos, hosts


def _address(hop: bytes) -> str:
    """The bare address in `hop`, which may carry brackets, a port and a zone; "" if it is none."""
    text = hop.decode("latin-1").strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        # A zone may be any text, quotes among it, and means something on that machine only.
        return str(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return ""
