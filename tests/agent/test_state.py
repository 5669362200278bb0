"""state.json: what was saved is read, what cannot be read is put aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.state import VERSION, Damaged, State, StateFile


def test_none_is_a_new_one(tmp_path: Path) -> None:
    assert StateFile(tmp_path / "state.json").load() == State()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    state = State({"identities": {"shop/app=web": 4711}})
    assert StateFile(tmp_path / "state.json").save(state)
    assert StateFile(tmp_path / "state.json").load() == state


def test_unchanged_state_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = StateFile(path)
    file.save(State({"endpoints": {"a/b": 1}}))
    inode = path.stat().st_ino
    assert not file.save(State({"endpoints": {"a/b": 1}}))
    again = StateFile(path)
    assert not again.save(again.load())
    assert path.stat().st_ino == inode


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be used"),
        (b"\0" * 4096, "cannot be used"),
        (b'{"version": 1, "allocations": {"identities": {"a"', "cannot be used"),
        (b'{"version": 1, "allocations": {"identities": {"a": "x"}}}', "cannot be used"),
        (b'{"version": 1, "colour": "red"}', "colour"),
        (b'{"version": %d}' % (VERSION + 1), f"it is of version {VERSION + 1}"),
    ],
)
def test_what_cannot_be_read_is_put_aside(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    file = StateFile(path)
    with pytest.raises(Damaged, match=says):
        file.load()
    assert file.load() == State()
    (aside,) = tmp_path.glob("state.json.unusable-*")
    assert aside.read_bytes() == content


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    file = StateFile(path)
    file.save(State({"endpoints": {"a/b": 1}}))

    def dies(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        file.save(State({"endpoints": {"a/b": 2}}))
    monkeypatch.undo()
    assert StateFile(path).load() == State({"endpoints": {"a/b": 1}})


def test_flush_after_a_save_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    file = StateFile(tmp_path / "state.json")
    file.flush()
    assert not synced
    file.save(State({"endpoints": {"a/b": 1}}))
    file.flush()
    file.flush()
    assert len(synced) == 2  # the file and its folder, once
