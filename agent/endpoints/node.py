"""The node's own network namespace, made ready to route for pods; and put back.

What was there before is kept in a file, so that another agent (or `gatehouse cleanup`) can put it back after a crash.
All of this is about the calling thread's namespace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from agent.endpoints import links, namespaces
from agent.endpoints.netlink import NetlinkError, RouteSocket
from agent.endpoints.wiring import write_sysctls
from policies.address import is_v4

# Keys are paths under /proc/sys. `all` goes together with the interface's own: of rp_filter the greater counts, of
# send_redirects either.
_WANTED = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
}
_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
# Raised, never lowered. They count for the machine as a whole, so only its first namespace has them.
_AT_LEAST = {
    f"net/{family}/neigh/default/gc_thresh{step}": entries
    for family in ("ipv4", "ipv6")
    for step, entries in ((1, 1024), (2, 4096), (3, 8192))
}
_RESERVED_PORTS = "net/ipv4/ip_local_reserved_ports"
_LOCAL_PORTS = "net/ipv4/ip_local_port_range"
_SYSCTL = Path("/proc/sys")

Ports = tuple[int, int]
"""First and last."""


class NodeRefused(RuntimeError):
    """Sysctls of the machine itself would have to change and that was not allowed; the message says what to do."""


class _Saved(msgspec.Struct, forbid_unknown_fields=True):
    """`netns`: inode of the namespace the values belong to. `addresses`: what `lo` was given."""

    netns: int
    before: dict[str, str]
    addresses: tuple[bytes, ...] = ()


def prepare(
    saved: Path,
    allow_initial: bool,
    fallback: Sequence[bytes] = (),
    reserved: Sequence[Ports] = (),
    given_out: Ports | None = None,
) -> tuple[bytes, ...]:
    """Turn on forwarding, turn off the reverse-path filter, bring lo up. Returns the node's addresses (16 bytes each).

    `saved`: file for the values from before. `allow_initial`: whether sysctls of the machine's first namespace may be
    changed; if they must and may not, NodeRefused. `fallback`: addresses for `lo`, each used where the node has none of
    its family, as it could not send to pods then. `reserved`: ports that no socket is to get unless it asks for them.
    `given_out`: ports the datapath gives out, reserved as well where sockets could get one of them.
    """
    changes = wanted(reserved, given_out)
    if changes and not allow_initial and namespaces.is_initial():
        listed = " ".join(f"{key.replace('/', '.')}={value}" for key, value in changes.items())
        raise NodeRefused(
            "This agent runs in the machine's own network namespace, whose settings it was not allowed to change: "
            "allow it (--node-sysctls), run the agent in a namespace of its own, or set them yourself "
            f"(sysctl -w {listed})."
        )
    with RouteSocket() as route:
        loopback = links.read_link(route.request(links.get_link("lo"))[0])
        missing = [a for a in fallback if not any(is_v4(a) == is_v4(own) for own in _addresses(route))]
        _save(saved, changes, missing)
        write_sysctls(changes)
        route.request(links.set_up(loopback.ifindex), *(links.add_address(loopback.ifindex, a) for a in missing))
        return _addresses(route)


def wanted(reserved: Sequence[Ports] = (), given_out: Ports | None = None) -> dict[str, str]:
    """Sysctls that `prepare` would change, by their paths under /proc/sys, and what to. Changes nothing."""
    return _changes([*reserved, *([given_out] if given_out and _overlaps_local(given_out) else [])])


def restore(saved: Path, forwards: bool = False) -> None:
    """Put back what `prepare` changed. Does nothing in another namespace.

    `forwards`: pods of others are there, which need forwarding and found it on when they came: it stays.
    """
    try:
        record = msgspec.json.decode(saved.read_bytes(), type=_Saved)
    except (FileNotFoundError, msgspec.MsgspecError):
        return
    if record.netns == _inode():
        # In reverse, as they were changed; forwarding itself resets others.
        for key, value in reversed(record.before.items()):
            if forwards and (key in _FORWARDING or key.endswith("/accept_ra")):
                continue
            with contextlib.suppress(FileNotFoundError):  # the interface is gone
                write_sysctls({key: value or "\n"})  # a write of nothing at all is none
        _take_addresses(record.addresses)
    saved.unlink()


def addresses() -> tuple[bytes, ...]:
    """Global addresses of the namespace's interfaces, 16 bytes each."""
    with RouteSocket() as route:
        return _addresses(route)


def _addresses(route: RouteSocket) -> tuple[bytes, ...]:
    bound = [links.read_address(reply) for reply in route.request(links.list_addresses())]
    return tuple(dict.fromkeys(b.address for b in bound if b.is_global))


def _take_addresses(addresses: Sequence[bytes]) -> None:
    with RouteSocket() as route:
        loopback = links.read_link(route.request(links.get_link("lo"))[0])
        for address in addresses:
            with contextlib.suppress(NetlinkError):  # it is gone
                route.request(links.remove_address(loopback.ifindex, address))


def merged_ports(current: str, wanted: Sequence[Ports]) -> str:
    """A list of ports such as "8080,30000-32767" with ranges added, written as the kernel writes it."""
    ranges = [
        (int(first), int(last or first)) for first, _, last in (p.partition("-") for p in current.split(",") if p)
    ]
    merged: list[Ports] = []
    for first, last in sorted([*ranges, *wanted]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in merged)


def _overlaps_local(ports: Ports) -> bool:
    """Whether the kernel could give one of these ports to a socket that asked for any."""
    first, last = map(int, (_read(_SYSCTL / _LOCAL_PORTS) or "1 65535").split())
    return ports[0] <= last and first <= ports[1]


def _changes(reserved: Sequence[Ports]) -> dict[str, str]:
    """What has to be written, in order.

    An interface that takes its IPv6 default route from router advertisements goes on doing so although it forwards
    (accept_ra 2): otherwise turning on forwarding would cut the node off.
    """
    advertised = [path for path in (_SYSCTL / "net/ipv6/conf").glob("*/accept_ra") if _read(path) == "1"]
    forwards = _read(_SYSCTL / "net/ipv6/conf/all/forwarding") == "1"
    wanted = {} if forwards else {str(path.relative_to(_SYSCTL)): "2" for path in advertised}
    if reserved:
        wanted[_RESERVED_PORTS] = merged_ports(_read(_SYSCTL / _RESERVED_PORTS) or "", reserved)
    return {
        key: value for key, value in (wanted | _WANTED | _raised()).items() if _read(_SYSCTL / key) not in (value, None)
    }


def _raised() -> dict[str, str]:
    current = {key: _read(_SYSCTL / key) for key in _AT_LEAST}
    return {key: str(entries) for key, entries in _AT_LEAST.items() if int(current[key] or entries) < entries}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None


def _save(saved: Path, changes: Mapping[str, str], addresses: Sequence[bytes]) -> None:
    """Values saved earlier win: they are from before the first agent."""
    if not changes and not addresses:
        return
    before = {key: _read(_SYSCTL / key) or "" for key in changes}
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
        earlier = msgspec.json.decode(saved.read_bytes(), type=_Saved)
        if earlier.netns == _inode():
            before = before | earlier.before
            addresses = [*earlier.addresses, *addresses]
    saved.parent.mkdir(parents=True, exist_ok=True)
    aside = saved.with_suffix(".new")
    aside.write_bytes(msgspec.json.encode(_Saved(_inode(), before, tuple(addresses))))
    aside.replace(saved)


def _inode() -> int:
    return Path(namespaces.CURRENT).stat().st_ino
