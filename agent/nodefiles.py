"""What this node tells the others where there is no API server: a NodeEndpoints object in a file of a shared folder.

The folder lies inside the manifests that all agents read, so the others learn of it as of any manifest.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from agent import log as logs
from agent.kube.bodies import NodeFacts, json_of, node_endpoints

NOTE = "node-file"
"""Of the state directory: where the file is."""
LOOK_S = 10.0
"""How often it is looked whether the file is still there, and as it was written."""

log = logs.get("nodefile")


class NodeFile:
    """`folder`: "" for no file at all. `note`: a file of the state directory that says where it is.

    `wanted`: whether there is to be one. `problem`: why it is not as it should be, a sentence; empty where it is.
    """

    def __init__(self, folder: str, name: str, note: Path) -> None:
        self.problem = ""
        self.wanted = bool(folder)
        self._path = Path(folder, f"{name}.json") if folder else None
        self._name = name
        self._note = note
        self._text: bytes | None = None
        self._changed = asyncio.Event()

    def write(self, facts: NodeFacts) -> None:
        """The node is thus now: `run` writes it, or `sync`, where it differs."""
        if not self.wanted:
            return
        text = text_of(self._name, facts)
        if text != self._text:
            self._text = text
            self._changed.set()

    def tells(self, facts: NodeFacts) -> bool:
        """Whether the file is there, with these."""
        try:
            return self._path is not None and self._path.read_bytes() == text_of(self._name, facts)
        except OSError:
            return False

    async def run(self) -> None:
        """Keep the file so."""
        while self.wanted:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            self._changed.clear()
            await asyncio.to_thread(self.sync)

    def sync(self) -> None:
        """Look what there is, and make it as it should be. Blocks. A file of earlier settings goes."""
        earlier = noted(self._note)
        if earlier is not None and earlier != self._path:
            remove(self._note)
        if self._path is None or self._text is None:
            return
        problem = ""
        try:
            _put(self._path, self._text, self._note)
        except OSError as error:
            problem = f"other nodes are not told of this one: {self._path}: {error.strerror or error}"
        if problem and problem != self.problem:
            log.warning("not as the settings say", problem=problem)
        self.problem = problem


def text_of(name: str, facts: NodeFacts) -> bytes:
    """The file of a node. The same for equal facts. Other nodes know its pods by their manifests."""
    return msgspec.json.format(json_of(node_endpoints(name, facts, ())), indent=2) + b"\n"


def noted(note: Path) -> Path | None:
    """Where the file is that was written last; None where none was."""
    try:
        return Path(note.read_text())
    except FileNotFoundError:
        return None


def remove(note: Path) -> bool:
    """Take the file away: to the others the node is gone. Whether there was one."""
    path = noted(note)
    if path is None:
        return False
    there = path.exists()
    path.unlink(missing_ok=True)
    note.unlink()
    return there


def _put(path: Path, text: bytes, note: Path) -> None:
    """Whole or not at all: others read it at any time."""
    with suppress(FileNotFoundError):
        if path.read_bytes() == text:
            _note(note, path)
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    _note(note, path)
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    log.info("other nodes are told of this one", file=str(path))


def _note(note: Path, path: Path) -> None:
    if noted(note) != path:
        note.write_text(str(path))
