"""Programs compiled by the child, pinned under their source's hash and opened again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_datapath import NETWORK_PROGRAM, PROGRAM, SMALL_SIZES, write_source

from agent.datapath import bpf_programs
from agent.datapath.bytecode import CompileFailed
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins, instance_name
from agent.datapath.programs import (
    NETWORK,
    NETWORK_PROGRAMS,
    PROGRAMS,
    SOCKET,
    Programs,
    ProgramType,
    Unit,
    ensure_loaded,
    load_units,
    source_hash,
    statistics,
)


def ids(programs: Programs) -> dict[str, int]:
    return {name: bpf_programs.program_info(fd).id for name, fd in programs.items()}


def test_loaded_once_and_opened_after(maps: Maps, pins: Pins, tmp_path: Path) -> None:
    source = write_source(tmp_path)
    with ensure_loaded(maps, pins, source) as programs:
        first = ids(programs)
        assert set(programs) == {"from_pod", "to_pod"} == {p.name for p in pins.programs(source_hash(source)).iterdir()}
        assert programs.source_hash == source_hash(source)
        for name, info in statistics(programs):
            assert info.name == name
            assert info.verified_instructions > 0
            assert info.xlated_bytes > 0
            assert maps.ids().issuperset(info.map_ids)
    with ensure_loaded(maps, pins, source) as programs:
        assert ids(programs) == first


def test_a_change_is_loaded_beside_the_old_version(maps: Maps, pins: Pins, tmp_path: Path) -> None:
    source = write_source(tmp_path)
    with ensure_loaded(maps, pins, source) as old:
        source.write_text(PROGRAM.replace("skb->mark + 1", "skb->mark + 2"))
        with ensure_loaded(maps, pins, source) as new:
            assert new.source_hash != old.source_hash
            assert set(ids(new).values()).isdisjoint(ids(old).values())
            kept = (pins.maps, pins.programs(new.source_hash))
            assert pins.remove_others(kept) == [pins.programs(old.source_hash)]
            assert {p.name for p in pins.root.iterdir()} == {p.name for p in kept}


def test_programs_of_maps_that_are_gone_are_loaded_anew(pins: Pins, tmp_path: Path) -> None:
    source = write_source(tmp_path)
    with Maps.open_or_create(pins.maps, SMALL_SIZES) as maps, ensure_loaded(maps, pins, source) as programs:
        first = ids(programs)
    (pins.maps / "drops").unlink()
    with Maps.open_or_create(pins.maps, SMALL_SIZES) as maps, ensure_loaded(maps, pins, source) as programs:
        assert set(ids(programs).values()).isdisjoint(first.values())
        assert maps.ids().issuperset(bpf_programs.program_info(programs["from_pod"]).map_ids)
        assert not list(pins.root.glob("partial-*"))


def test_the_hash_covers_headers_and_their_names(tmp_path: Path) -> None:
    source = tmp_path / "one.c"
    source.write_text("int a;")
    first = source_hash(source)
    (tmp_path / "include").mkdir()
    header = tmp_path / "include" / "a.h"
    header.write_text("x")
    second = source_hash(source)
    header.rename(tmp_path / "include" / "b.h")
    third = source_hash(source)
    (tmp_path / "notes.txt").write_text("no source")
    assert source_hash(source) == third
    (tmp_path / "two.c").write_text("included, perhaps")
    assert len({first, second, third, source_hash(source)}) == 4


@pytest.mark.parametrize(
    ("before", "after", "messages"),
    [
        ("skb->mark + 1", "nonsense", ["small.c did not compile", "error: use of undeclared identifier 'nonsense'"]),
        (
            "skb->mark = skb->mark + 1",
            "skb->mark = *(__u32 *)(long)skb->data",
            ["small.c: the kernel refused to_pod", "invalid access to packet"],
        ),
        ("int to_pod", "int elsewhere", ["small.c has no program to_pod"]),
    ],
)
def test_what_does_not_load_says_why(
    maps: Maps, pins: Pins, tmp_path: Path, before: str, after: str, messages: list[str]
) -> None:
    assert before in PROGRAM
    source = write_source(tmp_path, PROGRAM.replace(before, after))
    with pytest.raises(CompileFailed) as failure:
        ensure_loaded(maps, pins, source)
    for message in messages:
        assert message in str(failure.value)
    assert len(str(failure.value).splitlines()) <= 42
    assert [p.name for p in pins.root.iterdir()] == [pins.maps.name]  # nothing half done


def test_the_agent_itself_never_imports_bcc() -> None:
    modules = ["apply", "bpf", "cgroup", "maps", "mounts", "network", "pins", "programs", "ring", "tc", "testrun"]
    code = f"import sys\nfor m in {modules}: __import__('agent.datapath.' + m)\nsys.exit('bcc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_instance_names(tmp_path: Path) -> None:
    here = instance_name(tmp_path / "a.b c")
    assert here.startswith("a-b-c-")
    assert instance_name(tmp_path / "x" / ".." / "a.b c") == here
    assert instance_name(tmp_path / "other" / "a.b c") != here
    assert instance_name(Path("/")).startswith("root-")
    assert all(len(instance_name(Path(p))) < 60 for p in ("/", "/" + "x" * 200))


def test_pins_are_removed(pins: Pins) -> None:
    Maps.open_or_create(pins.maps, SMALL_SIZES).close()
    assert list(pins.root.iterdir())
    pins.remove()
    assert not pins.root.exists()
    pins.remove()  # again is fine


UNITS = (
    Unit("pods", "small.c", PROGRAMS),
    Unit("network", "network.c", NETWORK_PROGRAMS),
)


def test_units_are_loaded_side_by_side(maps: Maps, pins: Pins, tmp_path: Path) -> None:
    write_source(tmp_path)
    (tmp_path / "network.c").write_text(NETWORK_PROGRAM)
    with load_units(maps, pins, UNITS, tmp_path) as loaded:
        assert loaded.failures == {}
        assert {name: set(programs) for name, programs in loaded.items()} == {
            "pods": {"from_pod", "to_pod"},
            "network": {"from_network", "to_network", "xdp_network"},
        }
        assert len({programs.source_hash for programs in loaded.values()}) == 2
        first = {name: ids(programs) for name, programs in loaded.items()}
    with load_units(maps, pins, UNITS, tmp_path) as loaded:
        assert {name: ids(programs) for name, programs in loaded.items()} == first
        kept = [pins.maps, pins.programs(loaded["pods"].source_hash)]
        assert pins.remove_others(kept) == [pins.programs(loaded["network"].source_hash)]
        assert loaded.of(NETWORK) == loaded["network"]
        assert not loaded.of(SOCKET)


def test_a_unit_that_does_not_load_leaves_the_others(maps: Maps, pins: Pins, tmp_path: Path) -> None:
    write_source(tmp_path)
    (tmp_path / "network.c").write_text(NETWORK_PROGRAM.replace("return XDP_PASS", "return nonsense"))
    with load_units(maps, pins, UNITS, tmp_path) as loaded:
        assert set(loaded) == {"pods"}
        assert "undeclared identifier 'nonsense'" in str(loaded.failures["network"])
        assert sorted(p.name for p in pins.root.iterdir()) == sorted(
            [pins.maps.name, pins.programs(loaded["pods"].source_hash).name]
        )
    without = UNITS[1].without(ProgramType.XDP)
    assert [spec.name for spec in without.programs] == ["from_network", "to_network"]


def test_a_program_more_is_compiled_when_it_is_wanted(maps: Maps, pins: Pins, tmp_path: Path) -> None:
    """As where XDP is turned on: the source is the same, its folder of pins has one more."""
    source = write_source(tmp_path, NETWORK_PROGRAM)
    tc_alone = tuple(spec for spec in NETWORK_PROGRAMS if spec.type is not ProgramType.XDP)
    with ensure_loaded(maps, pins, source, tc_alone) as programs:
        assert set(programs) == {"from_network", "to_network"}
    with ensure_loaded(maps, pins, source, NETWORK_PROGRAMS) as programs:
        assert set(programs) == {"from_network", "to_network", "xdp_network"}
        all_three = ids(programs)
    with ensure_loaded(maps, pins, source, tc_alone) as programs:
        assert ids(programs).items() < all_three.items(), "nothing is compiled to do without one"
