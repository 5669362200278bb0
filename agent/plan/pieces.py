"""Changes cut into the smallest pieces that can go into the kernel one without the other. Pure.

For when a map has no room for all of them. Without its rows a subject is denied, so no piece opens what another closes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agent.plan.blocks import ROWS
from agent.plan.pools import pointed_at
from agent.plan.state import (
    ENDPOINT,
    ENDPOINTS,
    INTERFACES,
    IPCACHE,
    IPCACHE_KEY,
    NAMESPACES,
    NETNS,
    NO_ADDRESS,
    SERVICES,
    Changes,
    State,
)


def difference(kernel: State, wanted: State) -> Changes:
    """What of the maps is otherwise than it is to be."""
    changes = Changes()
    for name, entries in changes.tables.items():
        held, planned = kernel.tables[name], wanted.tables[name]
        entries.update({key: value for key, value in planned.items() if held.get(key) != value})
        entries.update(dict.fromkeys(held.keys() - planned.keys()))
    for side in kernel.policy.keys() | wanted.policy.keys():
        known, rows = kernel.policy.get(side, {}), wanted.policy.get(side, {})
        differing: dict[int, int | None] = {remote: row for remote, row in rows.items() if known.get(remote) != row}
        differing.update(dict.fromkeys(known.keys() - rows.keys()))
        if differing:
            changes.policy[side] = differing
    for name, blocks in changes.blocks.items():
        blocks.update(
            {n: block for n, block in wanted.blocks[name].items() if not block.same(kernel.blocks[name].get(n))}
        )
    return changes


def pieces(kernel: State, wanted: State) -> Iterator[Changes]:
    """All that differs. First what takes no room, as it may make some; then pods, policies, addresses, services.

    Each has all the blocks it points at, as an earlier piece may have removed one that is there now.
    """
    changes = difference(kernel, wanted)
    found = [
        *_pods(kernel, changes),
        *_policies(changes, wanted),
        *_addresses(kernel, changes),
        *_services(changes, wanted),
    ]
    yield from sorted(found, key=_takes_room)


def _pods(old: State, changes: Changes) -> Iterator[Changes]:
    """Everything of one pod: its interface, its addresses, and what they are to others."""
    by_interface: dict[int, Changes] = {}
    for name in (INTERFACES, ENDPOINTS):
        for key, value in changes.tables[name].items():
            here = value if value is not None else old.tables[name][key]
            number = ENDPOINT.unpack(here).ifindex
            by_interface.setdefault(number, Changes()).tables[name][key] = value
    for key, value in changes.tables[NAMESPACES].items():
        here = value if value is not None else old.tables[NAMESPACES][key]
        by_interface.setdefault(NETNS.unpack(here).ifindex, Changes()).tables[NAMESPACES][key] = value
    owners = _address_owners(old, changes)
    for key, value in changes.tables[IPCACHE].items():
        if (owner := owners.get(IPCACHE_KEY.unpack_values(key)[1])) in by_interface:
            by_interface[owner].tables[IPCACHE][key] = value
    yield from by_interface.values()


def _addresses(old: State, changes: Changes) -> Iterator[Changes]:
    owners = _address_owners(old, changes)
    for key, value in changes.tables[IPCACHE].items():
        if IPCACHE_KEY.unpack_values(key)[1] not in owners:
            piece = Changes()
            piece.tables[IPCACHE][key] = value
            yield piece


def _policies(changes: Changes, wanted: State) -> Iterator[Changes]:
    for side, rows in changes.policy.items():
        piece = Changes(policy={side: rows})
        _take_blocks(piece, wanted, ROWS, {row for row in rows.values() if row is not None})
        yield piece


def _services(changes: Changes, wanted: State) -> Iterator[Changes]:
    for key, value in changes.tables[SERVICES].items():
        piece = Changes()
        piece.tables[SERVICES][key] = value
        if value is not None:
            for name, number in pointed_at(value):
                _take_blocks(piece, wanted, name, {number})
        yield piece


def _take_blocks(piece: Changes, wanted: State, name: str, numbers: set[int]) -> None:
    piece.blocks[name].update({number: wanted.blocks[name][number] for number in numbers & wanted.blocks[name].keys()})


def _address_owners(old: State, changes: Changes) -> Mapping[bytes, int]:
    """Address → interface of the pods that change."""
    owners: dict[bytes, int] = {}
    for name in (INTERFACES, ENDPOINTS):
        for key, value in changes.tables[name].items():
            endpoint = ENDPOINT.unpack(value if value is not None else old.tables[name][key])
            owners.update({a: endpoint.ifindex for a in (endpoint.ipv4, endpoint.ipv6) if a != NO_ADDRESS})
    return owners


def _takes_room(piece: Changes) -> bool:
    entries = [value for table in piece.tables.values() for value in table.values()]
    rows = [row for side in piece.policy.values() for row in side.values()]
    return any(value is not None for value in (*entries, *rows))
