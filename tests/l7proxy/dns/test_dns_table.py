"""Names and their addresses: how long, how many, and over a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from l7proxy.dns.store import Store, read
from l7proxy.dns.table import Limits, Table
from policies.address import parse_address


def address(number: int) -> bytes:
    return parse_address(f"198.51.{number // 256}.{number % 256}")


A, B, C = address(1), address(2), address(3)


def test_an_address_lives_for_its_ttl_and_the_floor() -> None:
    table = Table(Limits(min_ttl_s=60))
    assert table.end(5, 1000) == 1060
    assert table.end(300, 1000) == 1300
    learned = table.learn("a.b", [A, B], 1060)
    assert (learned.new, learned.gone, learned.refused) == ([("a.b", A), ("a.b", B)], [], 0)
    assert table.due(1059) == []
    assert table.learn("a.b", [A], 1100).new == []
    assert table.learn("a.b", [A], 1070).new == []  # an end never moves back
    assert table.due(1099) == [("a.b", B)]
    assert set(table.due(1100)) == {("a.b", A), ("a.b", B)}
    table.forget(("a.b", B))
    assert ("a.b", B) not in table
    assert table.learn("a.b", [B], 1200).new == [("a.b", B)]
    assert len(table) == 2


def test_beyond_what_a_name_may_have_the_oldest_are_due() -> None:
    table = Table(Limits(max_addresses=3))
    table.learn("n", [address(i) for i in range(3)], 10_000)
    table.learn("n", [address(0)], 10_000)  # is the newest again
    learned = table.learn("n", [address(3), address(4)], 10_000)
    assert learned.gone == []
    assert {pair[1] for pair in table.due(0)} == {address(1), address(2)}
    table.learn("n", [address(1)], 10_000)  # comes again: not beyond any more, another is
    assert {pair[1] for pair in table.due(0)} == {address(2), address(0)}
    gone = table.learn("n", [address(i) for i in range(10, 13)], 10_000).gone  # kept ones do not pile up
    assert gone == [("n", address(2)), ("n", address(0))]
    assert len(table) == 6


def test_a_full_table_learns_nothing() -> None:
    table = Table(Limits(max_pairs=8))
    assert table.learn("x", map(address, range(9)), 100, owner=b"1", needed=False).refused == 7  # a pod's quarter
    assert table.learn("y", map(address, range(9)), 100, owner=b"2", needed=False).refused == 7
    assert table.learn("z", map(address, range(2)), 100, owner=b"3", needed=False).refused == 2  # half, if unneeded
    assert table.learn("z", map(address, range(2)), 100, owner=b"3").refused == 0
    assert table.learn("v", map(address, range(2)), 100, owner=b"4").refused == 0
    assert table.learn("w", map(address, range(2)), 100, owner=b"5").refused == 2
    table.forget(("z", address(0)))
    assert table.learn("w", map(address, range(2)), 100, owner=b"5").refused == 1
    assert len(table) == 8


Open = Callable[..., tuple[Table, Store]]


@pytest.fixture
def filled() -> Iterator[Open]:
    """A table filled from files, and what keeps it."""
    with ExitStack() as stack:

        def opened(path: Path, *, now_s: float = 0.0, problem: str = "") -> tuple[Table, Store]:
            table, store = Table(), Store(path)
            stack.callback(store.close)
            found = store.load(table, now_s)
            assert problem in found and bool(problem) is bool(found)
            return table, store

        yield opened


def test_names_outlive_the_process(tmp_path: Path, filled: Open) -> None:
    path = tmp_path / "names.json"
    table, store = filled(path)
    table.learn("a.b", [A], 5000)
    store.note({"a.b": {A: 5000}, "c.d": {B: 6000, C: 6000}}, [])
    store.note({}, [("c.d", C)])
    assert read(path) == {"a.b": {A: 5000}, "c.d": {B: 6000}}
    again, other = filled(path)
    assert {(n, a): e for n, held in again.items() for a, e in held.items()} == {("a.b", A): 5000, ("c.d", B): 6000}
    other.save(again)
    assert read(path) == {"a.b": {A: 5000}, "c.d": {B: 6000}}
    late, _ = filled(path, now_s=9000.0)
    assert dict(late.addresses("a.b")) == {A: 9060.0}  # its last end may not have been written


def test_a_torn_line_never_took_effect(tmp_path: Path, filled: Open) -> None:
    path = tmp_path / "names.json"
    _, store = filled(path)
    store.note({"a.b": {A: 5000}}, [])
    with (tmp_path / "names.json.journal").open("ab") as journal:
        journal.write(b'{"ends": {"c.d": {"198.5')
    assert read(path) == {"a.b": {A: 5000}}
    assert filled(path)[0].addresses("a.b")


@pytest.mark.parametrize(
    "content", [b"", b"junk", b'{"version":9,"names":{}}', b'{"version":1,"names":{"a":{"not an address":1}}}', b"[]"]
)
def test_a_file_that_cannot_be_read_is_put_aside(tmp_path: Path, filled: Open, content: bytes) -> None:
    path = tmp_path / "names.json"
    path.write_bytes(content)
    table, _ = filled(path, problem="put aside")
    assert len(table) == 0
    assert [p.read_bytes() for p in tmp_path.glob("names.json.unusable-*")] == [content]
    assert filled(path)


def test_a_journal_that_cannot_be_read_is_put_aside(tmp_path: Path, filled: Open) -> None:
    path = tmp_path / "names.json"
    table, store = filled(path)
    table.learn("a.b", [A], 5000)
    store.save(table)
    (tmp_path / "names.json.journal").write_bytes(b"junk\n")
    again, _ = filled(path, problem="put aside")
    assert again.addresses("a.b")
