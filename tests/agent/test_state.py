"""state.json and its journal: what was saved is read, what cannot be read is put aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.state import VERSION, Damaged, State, StateFile


def test_none_is_a_new_one(tmp_path: Path) -> None:
    assert StateFile(tmp_path / "state.json").load() == State()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    state = State({"identities": {"shop/app=web": 4711}})
    StateFile(tmp_path / "state.json").save(state)
    assert StateFile(tmp_path / "state.json").load() == state


def test_changes_are_loaded_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = StateFile(path)
    file.save(State({"endpoints": {"a/b": 1, "a/c": 2}}))
    inode = path.stat().st_ino
    for changes in ({"endpoints": {"a/b": None}}, {}, {"endpoints": {"a/d": 1}, "pods": {"a/d": 7}}):
        assert file.append(changes)
    assert path.stat().st_ino == inode, "the file is not replaced for a change"
    expected = State({"endpoints": {"a/c": 2, "a/d": 1}, "pods": {"a/d": 7}})
    assert StateFile(path).load() == expected
    again = StateFile(path)
    again.load()
    assert again.append({"pods": {"a/d": None}})
    assert StateFile(path).load().allocations["pods"] == {}


def test_changes_without_a_file(tmp_path: Path) -> None:
    StateFile(tmp_path / "state.json").append({"endpoints": {"a/b": 1}})
    assert StateFile(tmp_path / "state.json").load() == State({"endpoints": {"a/b": 1}})


def test_a_saved_state_holds_what_the_journal_said(tmp_path: Path) -> None:
    """A crash may come between the new file and the end of the old journal: applied again, it changes nothing."""
    path = tmp_path / "state.json"
    file = StateFile(path)
    file.append({"endpoints": {"a/b": 1, "a/c": None}})
    journal = path.with_name("state.json.journal").read_bytes()
    file.save(State({"endpoints": {"a/b": 1}}))
    assert not path.with_name("state.json.journal").exists()
    path.with_name("state.json.journal").write_bytes(journal)
    assert StateFile(path).load() == State({"endpoints": {"a/b": 1}})


def test_a_long_journal_asks_to_be_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.state.JOURNAL_BYTES", 100)
    file = StateFile(tmp_path / "state.json")
    answers = [file.append({"endpoints": {f"a/{number}": number}}) for number in range(5)]
    assert answers[0]
    assert not answers[-1]
    file.save(State())
    assert file.append({"endpoints": {"a/b": 1}})


def test_a_line_that_was_not_finished_never_took_effect(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = StateFile(path)
    file.append({"endpoints": {"a/b": 1}})
    with path.with_name("state.json.journal").open("ab") as journal:
        journal.write(b'{"endpoints": {"a/c"')
    again = StateFile(path)
    assert again.load() == State({"endpoints": {"a/b": 1}})
    again.append({"endpoints": {"a/d": 2}})
    assert StateFile(path).load() == State({"endpoints": {"a/b": 1, "a/d": 2}})


def test_a_journal_that_cannot_be_read_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    StateFile(path).save(State({"endpoints": {"a/b": 1}}))
    path.with_name("state.json.journal").write_bytes(b"\0\0\n")
    file = StateFile(path)
    with pytest.raises(Damaged, match="cannot be used"):
        file.load()
    assert file.load() == State({"endpoints": {"a/b": 1}})
    assert list(tmp_path.glob("state.json.journal.unusable-*"))


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
    StateFile(path).append({"endpoints": {"a/b": 1}})
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
    file.append({"endpoints": {"a/c": 2}})
    file.flush()
    assert len(synced) == 5
