"""What was compiled once is kept, and kept things are used only as far as the kernel takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_datapath import PROGRAM, write_source

from agent.datapath import bytecode as kept
from agent.datapath.bytecode import PLACE, CompileFailed, relocated
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import ensure_loaded, source_hash


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this test alone."""
    monkeypatch.setattr(kept, "KEPT", tmp_path / "kept")
    return tmp_path / "kept"


def load(maps: Maps, pins: Pins, source: Path) -> None:
    pins.remove_others([pins.maps])
    ensure_loaded(maps, pins, source).close()


def test_it_is_compiled_once(
    maps: Maps, pins: Pins, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path)
    load(maps, pins, source)
    (file,) = folder.iterdir()
    assert file.name.startswith(source_hash(source))
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr("sys.executable", "/bin/false")  # the child would fail
    load(maps, pins, source)
    source.write_text(PROGRAM + "\n")
    with pytest.raises(CompileFailed, match="the compile child ended with 1"):
        load(maps, pins, source)


def test_it_can_be_forgotten(maps: Maps, pins: Pins, tmp_path: Path, folder: Path) -> None:
    source = write_source(tmp_path)
    load(maps, pins, source)
    kept.forget()
    assert not folder.exists()
    kept.forget()
    load(maps, pins, source)


@pytest.mark.parametrize("damage", ["text", "empty", "refused"])
def test_what_is_damaged_is_compiled_anew(maps: Maps, pins: Pins, tmp_path: Path, folder: Path, damage: str) -> None:
    source = write_source(tmp_path)
    load(maps, pins, source)
    (file,) = folder.iterdir()
    good = file.read_bytes()
    file.write_bytes({"text": b"nonsense", "empty": b"", "refused": good.replace(b"\x95", b"\xff")}[damage])
    load(maps, pins, source)
    assert file.read_bytes() == good


def test_maps_are_put_in_their_places() -> None:
    names = ["interfaces", "endpoints"]
    fds = {name: 70 + number for number, name in enumerate(names)}
    first, second = (bytes((0x18, 0x11, 0, 0)) + (PLACE + n).to_bytes(4, "little") for n in range(2))
    number = bytes((0x18, 0x01, 0, 0)) + PLACE.to_bytes(4, "little")  # a constant, not a map
    rest, leave = bytes(8), bytes((0x95, 0, 0, 0, 0, 0, 0, 0))
    code = first + rest + second + rest + number + rest + leave
    expected = first[:4] + (70).to_bytes(4, "little") + rest + second[:4] + (71).to_bytes(4, "little") + rest
    assert relocated(code, fds) == expected + number + rest + leave
