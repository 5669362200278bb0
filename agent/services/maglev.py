"""Maglev tables: which backend a flow goes to, on every node the same. Pure.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: each backend
has a permutation of the table's slots, and they take turns to take the next one that is free. So each has the same
share, but for one slot, and a backend that goes leaves nearly all slots of the others as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

from agent.services.model import Backend

LANES = 4
LANE_BITS = 16
BACKENDS_MAX = 1 << LANE_BITS
SLOTS_PER_BACKEND = 10
"""With fewer slots shares would differ by more than 10 %."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_WORDS = struct.Struct("=QQ")
_FREE = -1


def is_prime(number: int) -> bool:
    """Whether a table may have this size: only then does each backend's walk meet every slot."""
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def fits(backends: int, size: int) -> bool:
    """Whether a table of this size shares flows evenly among so many backends."""
    return backends * SLOTS_PER_BACKEND <= size and backends <= BACKENDS_MAX


def table(backends: Sequence[Backend], size: int, seed: int) -> bytes:
    """A table as the datapath has it: the size, then four slots a word (bpf/abi.h, MAGLEV_LANES), each the index of a
    backend. Who gets which slot depends on addresses and ports, not on their order. Raises ValueError for a size that
    is not prime, or too few slots."""
    slots = assign(backends, size, seed)
    padded = slots + [0] * (-size % LANES)
    return struct.pack(f"=Q{len(padded)}H", size, *padded)


def assign(backends: Sequence[Backend], size: int, seed: int) -> list[int]:
    """Slot → index of its backend."""
    if not is_prime(size):
        raise ValueError(f"a Maglev table of {size} slots: the size must be prime")
    if not 0 < len(backends) <= size:
        raise ValueError(f"a Maglev table of {size} slots has no room for {len(backends)} backends")
    slots = [_FREE] * size
    turns = [(*_walk(backends[index], size, seed), index) for index in _in_order(backends)]
    left = size
    while True:
        for turn, (at, step, index) in enumerate(turns):
            while slots[at] >= 0:
                at += step  # noqa: PLW2901  # the walk goes on from here at its next turn
                if at >= size:
                    at -= size  # noqa: PLW2901
            slots[at] = index
            left -= 1
            if not left:
                return slots
            turns[turn] = (at, step, index)


def mix(hash_: int, word: int) -> int:
    """bpf/backend.h has the same."""
    mixed = (hash_ ^ word) * _GOLDEN & _MASK
    return mixed ^ (mixed >> 32)


def flow_hash(
    source: bytes, source_port: int, destination: bytes, destination_port: int, protocol: int, seed: int
) -> int:
    """What a table is asked with for a flow to a frontend (maglev_hash)."""
    hash_ = _mix_address(_mix_address(seed, source), destination)
    ports = _swapped(source_port) << 32 | _swapped(destination_port) << 16 | protocol
    return mix(hash_, ports) & 0xFFFFFFFF


def client_hash(source: bytes, seed: int) -> int:
    """What it is asked with where clients keep their backend (maglev_hash)."""
    return _mix_address(seed, source) & 0xFFFFFFFF


def lookup(data: bytes, hash_: int) -> int:
    """The index of the backend for a hash: slot_of of bpf/backend.h."""
    (size,) = struct.unpack_from("=Q", data)
    (slot,) = struct.unpack_from("=H", data, 8 + 2 * (hash_ % size))
    return int(slot)


def _walk(backend: Backend, size: int, seed: int) -> tuple[int, int]:
    """Where a backend's permutation begins, and its step."""
    address, port = backend
    key = address + port.to_bytes(2, "big")
    digest = blake2b(key, digest_size=16, key=seed.to_bytes(8, "big"), person=b"maglev").digest()
    first, second = struct.unpack(">QQ", digest)
    return first % size, 1 + second % (size - 1)


def _in_order(backends: Sequence[Backend]) -> list[int]:
    return sorted(range(len(backends)), key=backends.__getitem__)


def _mix_address(hash_: int, address: bytes) -> int:
    first, second = _WORDS.unpack(address)
    return mix(mix(hash_, first), second)


def _swapped(port: int) -> int:
    """As a `…_be` member reads on this machine."""
    return int.from_bytes(port.to_bytes(2, "big"), "little")
