"""The record of attachments: one file each in STATE_DIR/attachments, written before anything is built.

A file is written, and written over, in one piece, so a killed agent leaves each as it was or as it is to be; one that
is empty is of an attachment of which nothing was built yet. What a damaged one says of others is nothing. No write
waits for the disk: what a crash of the machine could take from the record (namespaces, links, the containers
themselves) is gone with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.cni.protocol import Key
from agent.objects import Interface
from policies.model import ObjectRef

VERSION = 1
PAGE_BYTES = 4096
"""What is written within a page at once is there as a whole or not at all for who is killed meanwhile."""


class Attachment(msgspec.Struct, frozen=True):
    """A pod's network as a runtime asked for it. Addresses are 16 bytes each.

    `interface` None: its ADD has not come to its end, and whoever finds it so after a restart is to undo it.
    """

    key: Key
    pod: ObjectRef
    uid: str  # of the pod; "" where the runtime did not tell
    netns: str  # path
    network: str  # name of the CNI configuration
    addresses: tuple[bytes, ...]
    made_ns: int  # CLOCK_REALTIME
    chained: bool = False  # another plugin made the link, and removes it
    interface: Interface | None = None
    recovered: bool = False  # the record was lost, and this was read from the kernel: the container's id is not known
    version: int = VERSION


class Attachments:
    """What is attached, by key; a change is on file when `put` or `remove` returns. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_key: dict[Key, Attachment] = {}

    def load(self) -> list[str]:
        """Read what an earlier agent left. Files that cannot be used are put aside, and told of, for people."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        notices = []
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith(".") or not path.stat().st_size:
                path.unlink()  # half written, or not at all
            elif path.suffix == ".json":
                try:
                    found = _read(path)
                    self._by_key[found.key] = found
                except (ValueError, msgspec.MsgspecError) as error:
                    aside = path.with_name(f"{path.name}.unusable-{time.time_ns()}")
                    path.rename(aside)
                    notices.append(f"{path} cannot be used and was put aside as {aside.name}: {error}")
        return notices

    def __iter__(self) -> Iterator[Attachment]:
        return iter(list(self._by_key.values()))

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: Key) -> Attachment | None:
        return self._by_key.get(key)

    def of(self, pod: ObjectRef) -> Attachment | None:
        """The newest that the pod has; while a runtime replaces a pod's sandbox there may be two."""
        found = [one for one in self._by_key.values() if one.pod == pod]
        return max(found, key=lambda one: one.made_ns, default=None)

    def put(self, attachment: Attachment) -> None:
        self.write(attachment)
        self.note(attachment)

    def note(self, attachment: Attachment) -> None:
        """It is about to be: not on file until `write` has been called."""
        self._by_key[attachment.key] = attachment

    def write(self, attachment: Attachment) -> None:
        """The file's part of `put`, in any thread. Written over where there is one: to replace a file costs the file
        system milliseconds where pods come by the dozen, as it passes over the inodes that were given up lately."""
        path, content = self._path(attachment.key), msgspec.json.encode(attachment)
        if (attachment.interface is None and _write_new(path, content)) or _write_over(path, content):
            return
        fresh = path.with_name(f".{path.name}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(content)
        fresh.rename(path)

    def remove(self, key: Key) -> None:
        self._path(key).unlink(missing_ok=True)
        self._by_key.pop(key, None)

    def _path(self, key: Key) -> Path:
        return self._folder / f"{key.container_id}@{key.ifname}.json"  # an id has no @


def _read(path: Path) -> Attachment:
    found = msgspec.json.decode(path.read_bytes(), type=Attachment)
    if found.version != VERSION:
        raise ValueError(f"it is of version {found.version}, this agent writes version {VERSION}")
    return found


def _write_new(path: Path, content: bytes) -> bool:
    """Make the file, with this in it in one piece; False where that cannot be."""
    if len(content) > PAGE_BYTES:
        return False
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    try:
        return os.write(descriptor, content) == len(content)
    finally:
        os.close(descriptor)


def _write_over(path: Path, content: bytes) -> bool:
    """Put this in place of what the file holds, in one piece; False where that cannot be."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        whole = content.ljust(os.fstat(descriptor).st_size)  # JSON may end in blanks
        return len(whole) <= PAGE_BYTES and os.write(descriptor, whole) == len(whole)
    finally:
        os.close(descriptor)
