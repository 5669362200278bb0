"""Key files: made, read, damaged, changed, destroyed; and what of them is seen."""

from __future__ import annotations

import base64
import copy
import os
import pickle
import shutil
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from agent.encryption.keys import CURRENT, NEXT, OLD, KeyFolder, Keys, PrivateKey, shown


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(not shutil.which("wg"), reason="needs wg (Debian: wireguard-tools)")
def test_files_and_public_halves_are_as_the_stock_tool_has_them(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "wireguard").load()
    text = (tmp_path / "wireguard" / CURRENT).read_text()
    public = subprocess.run(["wg", "pubkey"], input=text, capture_output=True, text=True, check=True).stdout
    assert public.strip() == shown(keys.current.public)
    made = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "wireguard" / CURRENT).write_text(made)
    public = subprocess.run(["wg", "pubkey"], input=made, capture_output=True, text=True, check=True).stdout
    assert shown(KeyFolder(tmp_path / "wireguard").load().current.public) == public.strip()


def test_a_key_shows_nothing_of_itself() -> None:
    key = PrivateKey.generate()
    secret = key.reveal()
    seen = f"{key!r} {key} {[key]} {Keys(key, 0.0)!r}"
    for spelling in (base64.b64encode(secret).decode(), secret.hex(), repr(secret)):
        assert spelling not in seen
    assert shown(key.public) in seen
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copied(key)
    with pytest.raises(TypeError):
        msgspec.json.encode(Keys(key, 0.0))


def test_files_are_root_s_alone(tmp_path: Path) -> None:
    folder = tmp_path / "wireguard"
    before = os.umask(0)
    try:
        keys = KeyFolder(folder)
        keys.load()
        keys.make_next()
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    folder.chmod(0o755)
    (folder / CURRENT).chmod(0o644)
    KeyFolder(folder).load()
    assert (mode(folder), mode(folder / CURRENT)) == (0o700, 0o600)


def test_a_key_stays(tmp_path: Path) -> None:
    first = KeyFolder(tmp_path).load()
    os.utime(tmp_path / CURRENT, (1_600_000_000, 1_600_000_000))
    second = KeyFolder(tmp_path).load()
    assert second.current.public == first.current.public
    assert second.made_s == 1_600_000_000
    assert second.told == (first.current.public, b"")


def test_a_rotation(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    old = folder.load().current.public
    begun = folder.make_next()
    assert begun.next
    new = begun.next.public
    assert (begun.current.public, begun.told, begun.public) == (old, (old, new), frozenset((old, new)))
    assert folder.make_next().told == (old, new), "one at a time"
    os.utime(tmp_path / NEXT, (1_600_000_000, 1_600_000_000))
    swapped = folder.swap()
    assert (swapped.current.public, swapped.told, swapped.made_s) == (new, (old, new), 1_600_000_000)
    assert folder.swap().told == folder.make_next().told == (old, new)
    inode_before = (tmp_path / OLD).open("rb")
    done = folder.destroy_old()
    assert (done.current.public, done.told, done.public) == (new, (new, b""), frozenset((new,)))
    assert names(tmp_path) == {CURRENT}
    with inode_before:
        assert not inode_before.read().strip(b"\0"), "what was in the file is overwritten"
    assert folder.notices == []


def test_killed_between_the_two_renames_of_a_swap(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    old = folder.load().current.public
    begun = folder.make_next()
    (tmp_path / CURRENT).rename(tmp_path / OLD)
    after = KeyFolder(tmp_path).load()
    assert begun.next and after.told == (old, begun.next.public)
    assert names(tmp_path) == {CURRENT, OLD}


def test_killed_while_the_old_key_was_overwritten(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.load()
    folder.make_next()
    new = folder.swap().current.public
    (tmp_path / OLD).write_bytes(bytes(45))
    after = KeyFolder(tmp_path)
    assert after.load().told == (new, b"")
    assert (names(tmp_path), after.notices) == ({CURRENT}, [])


def test_killed_while_a_key_was_written(tmp_path: Path) -> None:
    (tmp_path / f".{CURRENT}.new").write_text("half a k")
    keys = KeyFolder(tmp_path)
    keys.load()
    assert (names(tmp_path), keys.notices) == ({CURRENT}, [])


@pytest.mark.parametrize("content", (b"", b"c2hvcnQ=\n", b"\xff\xfe", bytes(45), b"A" * 44))
def test_a_damaged_key_is_put_aside(tmp_path: Path, content: bytes) -> None:
    KeyFolder(tmp_path).load()
    (tmp_path / CURRENT).write_bytes(content)
    folder = KeyFolder(tmp_path)
    made = folder.load()
    assert KeyFolder(tmp_path).load().current.public == made.current.public
    (aside,) = names(tmp_path) - {CURRENT}
    assert aside.startswith("current.key.unusable-")
    assert (mode(tmp_path / aside), (tmp_path / aside).read_bytes()) == (0o600, content)
    (notice,) = folder.notices
    assert aside in notice and (len(content) < 8 or content.decode("latin1").strip() not in notice)


def test_the_key_in_use_is_lost_within_a_rotation(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.load()
    begun = folder.make_next()
    (tmp_path / CURRENT).write_text("?")
    assert begun.next and KeyFolder(tmp_path).load().told == (begun.next.public, b""), "the others know that one"
