"""The node's network namespace found again by what is on record."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import rig

from agent import traces
from agent.endpoints import namespaces


def found(record: traces.Traces) -> int | None:
    """Inode of the namespace that is found."""
    netns = traces.open_namespace(record)
    if netns is None:
        return None
    try:
        return os.fstat(netns).st_ino
    finally:
        os.close(netns)


def test_by_name_by_process_and_not_at_all(root: None, tmp_path: Path) -> None:
    node = rig.Node()
    try:
        record = node.call(traces.here, ("/a",))
        inode = os.fstat(node.fd).st_ino
        assert (record.inode, record.cgroups) == (inode, ("/a",))
        assert node.call(found, record) == inode, "the caller's own"
        assert found(record) == inode, "by its name"
        process = node.popen("sleep", "60")
        namespaces.take_name(node.name)
        assert found(record) == inode, "by a process"
        assert found(msgspec.structs.replace(record, netns=record.netns + 1)) is None, "an inode is used again"
        process.kill()
        process.wait()
        assert found(record) is None
    finally:
        node.close()


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "traces.json"
    assert traces.read(path) is None
    record = traces.Traces(7, 8, ("/a", "/b"))
    traces.write(path, record)
    assert traces.read(path) == record
    path.write_bytes(b'{"netns": 7')
    assert traces.read(path) is None
