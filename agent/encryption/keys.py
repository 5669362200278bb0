"""A node's WireGuard keys: X25519 (RFC 7748), made here, on disk for this node's root alone, told to nobody.

The files say where a rotation is, so that it goes on after a crash at any point:

    current                the key in use
    current, next          `next` is told to the others, who expect it
    old, next              between the two renames of a swap: `load` does the second
    old, current           `current` was `next`: the device has it, the others move to it
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_BYTES = 32
CURRENT, NEXT, OLD = "current.key", "next.key", "old.key"


class PrivateKey:
    """`public`: 32 bytes. What is secret is in no representation of it, and it cannot be pickled or copied."""

    __slots__ = ("_secret", "public")

    def __init__(self, secret: bytes) -> None:
        """Raises ValueError for what is not 32 bytes."""
        self.public = _x25519().from_private_bytes(secret).public_key().public_bytes_raw()
        self._secret = secret

    @classmethod
    def generate(cls) -> PrivateKey:
        return cls(_x25519().generate().private_bytes_raw())

    def reveal(self) -> bytes:
        """The secret itself: for the device and the key's file, and nothing else."""
        return self._secret

    def __repr__(self) -> str:
        return f"PrivateKey(public={shown(self.public)})"

    def __reduce__(self) -> str:
        raise TypeError("a private key goes nowhere")


def _x25519() -> type[X25519PrivateKey]:
    from cryptography.hazmat.primitives.asymmetric import x25519  # noqa: PLC0415  # 6 MB that only those need who encrypt

    return x25519.X25519PrivateKey


def shown(key: bytes) -> str:
    """A public key as people know it."""
    return base64.b64encode(key).decode()


class Keys(msgspec.Struct, frozen=True):
    """What a node has: `made_s`: when `current` was made; `next_made_s` likewise; seconds since 1970."""

    current: PrivateKey
    made_s: float
    next: PrivateKey | None = None
    next_made_s: float = 0.0
    old: PrivateKey | None = None

    @property
    def told(self) -> tuple[bytes, bytes]:
        """Public keys for the others: the one they know, and the one that will follow it (empty: none)."""
        if self.old:
            return self.old.public, self.current.public
        return self.current.public, self.next.public if self.next else b""

    @property
    def public(self) -> frozenset[bytes]:
        """All of this node's."""
        return frozenset(key.public for key in (self.current, self.next, self.old) if key)


class KeyFolder:
    """The folder of a node's keys, 0700; each file 0600. `notices`: what `load` found that was not as it should be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.notices: list[str] = []

    def load(self) -> Keys:
        """What there is; a first key is made where there is none. A file that cannot be used is put aside, and said so
        in `notices`: with the key in use lost, another is made, and others talk to this node once they are told."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        for leftover in self._folder.glob(".*.new"):
            self._erase(leftover.name)
        current, following, old = self._read(CURRENT), self._read(NEXT), self._read(OLD)
        if current is None and following is not None:  # within a swap, or the one in use was lost: it is known already
            self._rename(NEXT, CURRENT)
            current, following = following, None
        if old is not None and (current is None or following is not None):
            # A swap was made, and what it led to is lost; or (never by itself) a second one was begun within the first.
            self._erase(OLD)
            old = None
        if current is None:
            current = PrivateKey.generate()
            self._write(CURRENT, current)
        return Keys(current, self._made_s(CURRENT), following, self._made_s(NEXT), old)

    def make_next(self) -> Keys:
        """Begin a rotation. Does nothing within one."""
        keys = self.load()
        if keys.next is None and keys.old is None:
            self._write(NEXT, PrivateKey.generate())
        return self.load()

    def swap(self) -> Keys:
        """The next key is the one in use from now on."""
        if self.load().next is not None:
            self._rename(CURRENT, OLD)
            self._rename(NEXT, CURRENT)
        return self.load()

    def destroy_old(self) -> Keys:
        """End a rotation."""
        self._erase(OLD)
        return self.load()

    # ---- files

    def _read(self, name: str) -> PrivateKey | None:
        path = self._folder / name
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        if name == OLD and not text.strip(b"\0"):  # overwritten already, when the agent was killed
            self._erase(name)
            return None
        try:
            key = PrivateKey(base64.b64decode(text.strip(), validate=True))
        except (binascii.Error, ValueError):  # what is in it is not shown: it may be most of a key
            aside = path.with_name(f"{name}.unusable-{time.time_ns()}")
            path.rename(aside)
            aside.chmod(0o600)
            self.notices.append(f"{path} holds no WireGuard key: it was put aside as {aside.name}")
            return None
        path.chmod(0o600)
        return key

    def _write(self, name: str, key: PrivateKey) -> None:
        """Whole or not at all, and on the disk before anybody is told."""
        fresh = self._folder / f".{name}.new"
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, base64.b64encode(key.reveal()) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._rename(fresh.name, name)

    def _rename(self, old: str, new: str) -> None:
        (self._folder / old).rename(self._folder / new)
        self._sync()

    def _erase(self, name: str) -> None:
        """Overwritten first. (What a journal or a flash disk keeps of it is beyond a process's reach.)"""
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            os.write(descriptor, bytes(os.fstat(descriptor).st_size))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.unlink()
        self._sync()

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _made_s(self, name: str) -> float:
        """A key's file is written once; renaming it does not change its time."""
        try:
            return (self._folder / name).stat().st_mtime
        except FileNotFoundError:
            return 0.0
