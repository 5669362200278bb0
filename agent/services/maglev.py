"""Maglev tables: which backend a flow goes to, on every node the same. Pure.

After Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: each
backend walks the table's slots in an order of its own and takes those it finds free, in turns, so that all get the
same share and one that goes leaves the slots of the others as they are. There, a turn lasts until a slot is found; so
whoever finds one that a vanished backend left is a slot ahead of its walk, and others meanwhile take what was its. Here
slots found taken use up a turn, too, which halves such moves; shares are held to within 1 % by bounds of their own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from math import ceil, floor

from agent.services.model import Backend

LANES = 4
LANE_BITS = 16
BACKENDS_MAX = 1 << LANE_BITS
SLOTS_PER_BACKEND = 10
"""With fewer slots shares would differ by more than 10 %."""

FREE = -1
TURN, FOUND_TAKEN = 2, 1
"""What a walk may spend each time it is its turn, all of it for one slot; and what a slot costs that is taken."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_WORDS = struct.Struct("=QQ")


def is_prime(number: int) -> bool:
    """Whether a table may have this size: only then does each backend's walk meet every slot."""
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def most_backends(size: int) -> int:
    """Among how many backends a table of this size shares flows evenly."""
    return min(size // SLOTS_PER_BACKEND, BACKENDS_MAX)


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
    walks = [[*_walk(backends[index], size, seed), 0, 0, index] for index in _in_order(backends)]
    most, least = shares(len(backends), size)
    slots = [FREE] * size
    left, owed = size, least * len(backends)
    while True:
        for walk in walks:
            at, step, credit, held, index = walk
            if held >= least and left <= owed:
                continue
            credit += TURN
            while credit > 0:
                if slots[at] < 0:
                    slots[at] = index
                    left -= 1
                    if not left:
                        return slots
                    owed -= held < least
                    held += 1
                    credit -= TURN
                    if held >= most or (held >= least and left <= owed):
                        break
                else:
                    credit -= FOUND_TAKEN
                at += step
                if at >= size:
                    at -= size
            walk[0], walk[2], walk[3] = at, credit, held
        bound = most if left > owed else least
        walks = [walk for walk in walks if walk[3] < bound]


def shares(backends: int, size: int) -> tuple[int, int]:
    """The most and the least slots a backend may have: within 1 % of the mean, where that is a number of slots."""
    mean = size / backends
    return max(ceil(mean), floor(mean * 1.01)), min(floor(mean), ceil(mean * 0.99))


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
