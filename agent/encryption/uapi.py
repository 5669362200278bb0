"""The cross-platform userspace interface of WireGuard: text over a UNIX socket (wireguard.com/xplatform). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from agent.encryption.device import DeviceState, Endpoint, PeerChange, PeerState, Settings
from agent.encryption.keys import PrivateKey
from policies.address import V4_MAPPED_BITS, Prefix, parse_address

GET = b"get=1\n\n"


def encode(settings: Settings, changes: Sequence[PeerChange]) -> bytes:
    """A `set` operation. It holds the private key where that is to change: not for any log."""
    lines = ["set=1"]
    if settings.private_key is not None:
        lines.append(f"private_key={settings.private_key.reveal().hex()}")
    if settings.port is not None:
        lines.append(f"listen_port={settings.port}")
    if settings.mark is not None:
        lines.append(f"fwmark={settings.mark}")
    for change in changes:
        lines.append(f"public_key={change.public_key.hex()}")
        if change.remove:
            lines.append("remove=true")
            continue
        if change.update_only:
            lines.append("update_only=true")
        if change.endpoint is not None:
            lines.append(f"endpoint={change.endpoint}")
        if change.keepalive_s is not None:
            lines.append(f"persistent_keepalive_interval={change.keepalive_s}")
        if change.replace:
            lines.append("replace_allowed_ips=true")
        lines += [f"allowed_ip={prefix}" for prefix in change.allowed]
    return "\n".join(lines).encode() + b"\n\n"


def errno_of(answer: bytes) -> int:
    """Of an answer's last line; raises ValueError where there is none."""
    line = answer.rstrip(b"\n").rpartition(b"\n")[2]
    name, _, value = line.partition(b"=")
    if name != b"errno":
        raise ValueError("the answer does not end with errno")
    return abs(int(value))


def decode(answer: bytes) -> DeviceState:
    """Of the answer to GET. Raises ValueError for what is no such answer; lines that are not known are passed over."""
    state, peer, key, seconds = DeviceState(), None, b"", 0
    for line in answer.decode("ascii").splitlines():
        name, _, value = line.partition("=")
        if name == "public_key":
            peer, key = PeerState(), bytes.fromhex(value)
            state.peers[key] = peer
        elif peer is None:
            _read_device(state, name, value)
        elif name == "last_handshake_time_sec":
            seconds = int(value)
        elif name == "last_handshake_time_nsec":
            peer.handshake_ns = seconds * 1_000_000_000 + int(value)
        elif name == "allowed_ip":
            peer.allowed |= {prefix_of(value)}
        else:
            _read_peer(peer, name, value)
    return state


def _read_device(state: DeviceState, name: str, value: str) -> None:
    if name == "private_key":
        state.public_key = PrivateKey(bytes.fromhex(value)).public
    elif name == "listen_port":
        state.port = int(value)
    elif name == "fwmark":
        state.mark = int(value)


def _read_peer(peer: PeerState, name: str, value: str) -> None:
    if name == "endpoint":
        with suppress(ValueError):  # of a family this agent does not speak, or with a zone
            peer.endpoint = endpoint_of(value)
    elif name == "persistent_keepalive_interval":
        peer.keepalive_s = int(value)
    elif name == "rx_bytes":
        peer.received_bytes = int(value)
    elif name == "tx_bytes":
        peer.sent_bytes = int(value)


def endpoint_of(text: str) -> Endpoint:
    """192.0.2.1:51871, [2001:db8::1]:51871. Raises ValueError."""
    host, _, port = text.rpartition(":")
    return Endpoint(parse_address(host.strip("[]").partition("%")[0]), int(port))


def prefix_of(text: str) -> Prefix:
    """10.244.1.0/24, fd00::/64. Raises ValueError. Some ten times as fast as Prefix.parse; host bits are not looked
    for."""
    host, _, bits = text.partition("/")
    return Prefix(parse_address(host), int(bits) + (0 if ":" in host else V4_MAPPED_BITS))
