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
from agent.endpoints.netlink import RouteSocket
from agent.endpoints.sandbox import write_sysctls
from policies.address import is_v4

# Keys are paths under /proc/sys. `all` goes together with the interface's own: of rp_filter the greater counts, of
# send_redirects either.
_WANTED = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
}
# Raised, never lowered. They count for the machine as a whole, so only its first namespace has them.
_AT_LEAST = {
    f"net/{family}/neigh/default/gc_thresh{step}": entries
    for family in ("ipv4", "ipv6")
    for step, entries in ((1, 1024), (2, 4096), (3, 8192))
}
_SYSCTL = Path("/proc/sys")


class NodeRefused(RuntimeError):
    """Sysctls of the machine itself would have to change and that was not allowed; the message says what to do."""


class _Saved(msgspec.Struct, forbid_unknown_fields=True):
    """`netns`: inode of the namespace the values belong to."""

    netns: int
    before: dict[str, str]


def prepare(saved: Path, allow_initial: bool, fallback: Sequence[bytes] = ()) -> tuple[bytes, ...]:
    """Turn on forwarding, turn off the reverse-path filter, bring lo up. Returns the node's addresses (16 bytes each).

    `saved`: file for the values from before. `allow_initial`: whether sysctls of the machine's first namespace may be
    changed; if they must and may not, NodeRefused. `fallback`: addresses for `lo`, each used where the node has none of
    its family, as it could not send to pods then.
    """
    changes = _changes()
    if changes and not allow_initial and namespaces.is_initial():
        listed = " ".join(f"{key.replace('/', '.')}={value}" for key, value in changes.items())
        raise NodeRefused(
            "This agent runs in the machine's own network namespace, whose settings it was not allowed to change: "
            "allow it (--node-sysctls), run the agent in a namespace of its own, or set them yourself "
            f"(sysctl -w {listed})."
        )
    _save(saved, changes)
    write_sysctls(changes)
    with RouteSocket() as route:
        loopback = links.read_link(route.request(links.get_link("lo"))[0])
        missing = [a for a in fallback if not any(is_v4(a) == is_v4(own) for own in _addresses(route))]
        route.request(links.set_up(loopback.ifindex), *(links.add_address(loopback.ifindex, a) for a in missing))
        return _addresses(route)


def restore(saved: Path) -> None:
    """Put back what `prepare` changed, where it is still as `prepare` left it. Does nothing in another namespace."""
    try:
        record = msgspec.json.decode(saved.read_bytes(), type=_Saved)
    except (FileNotFoundError, msgspec.MsgspecError):
        return
    if record.netns == _inode():
        # In reverse, as they were changed; forwarding itself resets others.
        for key, value in reversed(record.before.items()):
            with contextlib.suppress(FileNotFoundError):  # the interface is gone
                write_sysctls({key: value})
    saved.unlink()


def addresses() -> tuple[bytes, ...]:
    """Global addresses of the namespace's interfaces, 16 bytes each."""
    with RouteSocket() as route:
        return _addresses(route)


def _addresses(route: RouteSocket) -> tuple[bytes, ...]:
    bound = [links.read_address(reply) for reply in route.request(links.list_addresses())]
    return tuple(dict.fromkeys(b.address for b in bound if b.is_global))


def _changes() -> dict[str, str]:
    """What has to be written, in order.

    An interface that takes its IPv6 default route from router advertisements goes on doing so although it forwards
    (accept_ra 2): otherwise turning on forwarding would cut the node off.
    """
    advertised = [path for path in (_SYSCTL / "net/ipv6/conf").glob("*/accept_ra") if _read(path) == "1"]
    forwards = _read(_SYSCTL / "net/ipv6/conf/all/forwarding") == "1"
    wanted = {} if forwards else {str(path.relative_to(_SYSCTL)): "2" for path in advertised}
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


def _save(saved: Path, changes: Mapping[str, str]) -> None:
    """Values saved earlier win: they are from before the first agent."""
    if not changes:
        return
    before = {key: _read(_SYSCTL / key) or "" for key in changes}
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
        earlier = msgspec.json.decode(saved.read_bytes(), type=_Saved)
        if earlier.netns == _inode():
            before = before | earlier.before
    saved.parent.mkdir(parents=True, exist_ok=True)
    aside = saved.with_suffix(".new")
    aside.write_bytes(msgspec.json.encode(_Saved(_inode(), before)))
    aside.replace(saved)


def _inode() -> int:
    return Path(namespaces.CURRENT).stat().st_ino
