"""Which versions of objects win, in whatever order they are told of."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from agent.kube.replica import BURIED, Replica, Update
from agent.kube.resources import Resource
from agent.kube.text import Head, head, older

PODS = Resource("Pod", "pods")


class Told:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.replica = Replica(PODS, self._emit)

    def _emit(self, update: Update) -> None:
        name = "+" * update.anew + update.file.removeprefix("api:pods/shop/")
        urgent = "!" if update.urgent else ""
        self.said.append(f"{name}@{update.seen.version}{urgent}" if update.seen else f"-{name}{urgent}")


def at(name: str, version: str, uid: str = "") -> Head:
    metadata = {"namespace": "shop", "name": name, "resourceVersion": version, "uid": uid}
    return head(json.dumps({"metadata": metadata}).encode())


Step = Callable[[Replica], None]


def put(name: str, version: str, uid: str = "") -> Step:
    return lambda r: r.put(at(name, version, uid), b"")


def remove(name: str, version: str) -> Step:
    return lambda r: r.remove(at(name, version))


def observe(name: str, version: str) -> Step:
    return lambda r: r.observe(at(name, version), b"")


def item(name: str, version: str, uid: str = "") -> Step:
    return lambda r: r.item(at(name, version, uid), b"")


def begin(r: Replica) -> None:
    r.begin()


def retell(r: Replica) -> None:
    r.begin(retell=True)


def end(version: str) -> Step:
    return lambda r: r.end(version)


def abandon(r: Replica) -> None:
    r.abandon()


def listed(version: str, **items: str) -> list[Step]:
    return [begin, *(item(name, v) for name, v in items.items()), end(version)]


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        # events
        ([put("a", "1"), put("a", "2"), remove("a", "3")], ["a@1!", "a@2!", "-a!"]),
        ([put("a", "2"), put("a", "2")], ["a@2!"]),
        ([put("a", "2"), put("a", "1")], ["a@2!"]),
        ([put("a", "9"), put("a", "10")], ["a@9!", "a@10!"]),
        ([put("a", "5"), remove("a", "4")], ["a@5!"]),  # deleted, made again: told the wrong way round
        ([put("a", "1"), remove("a", "3"), put("a", "2")], ["a@1!", "-a!"]),  # a late change does not bring it back
        ([remove("a", "3"), put("a", "2"), put("a", "4")], ["a@4!"]),
        ([remove("a", "3")], []),
        # its own writes
        ([observe("a", "5"), put("a", "4"), put("a", "5"), put("a", "6")], ["a@5!", "a@6!"]),
        ([put("a", "3"), remove("a", "4"), observe("a", "2")], ["a@3!", "-a!"]),
        # versions that are no numbers: equal or not is all there is
        ([put("a", "x"), put("a", "x"), put("a", "w")], ["a@x!", "a@w!"]),
        # lists
        (listed("9", a="1", b="2"), ["a@1", "b@2"]),
        ([*listed("9", a="1", b="2"), *listed("12", b="2", c="11")], ["a@1", "b@2", "c@11", "-a"]),
        ([*listed("9", a="1"), *listed("9", a="1")], ["a@1"]),
        ([*listed("9", a="7"), *listed("6", a="3")], ["a@7", "a@3"]),  # restored from a backup
        ([*listed("9", a="1", b="2"), begin, item("b", "2"), abandon], ["a@1", "b@2"]),
        ([*listed("9", a="1"), begin, abandon, *listed("10")], ["a@1", "-a"]),
        ([*listed("9", a="1"), retell, item("a", "1"), end("9")], ["a@1", "a@1"]),
        ([*listed("9", a="1"), put("a", "10"), *listed("12", a="10")], ["a@1", "a@10!"]),
        ([*listed("9", a="1"), *listed("20"), put("a", "15"), put("a", "21")], ["a@1", "-a", "a@21!"]),
        # another object of the same name, even of the same version (in another cluster)
        ([put("a", "1", "u"), put("a", "3", "v"), put("a", "4", "v")], ["a@1!", "+a@3!", "a@4!"]),
        ([*listed("9", a="1"), begin, item("a", "1", "v"), end("9")], ["a@1", "+a@1"]),
        # its own writes while a list is read
        ([begin, observe("n", "15"), end("12")], ["n@15!"]),
        ([begin, observe("n", "11"), end("12")], ["n@11!", "-n"]),  # gone again before the list
        ([begin, observe("n", "15"), item("n", "11"), end("12")], ["n@15!"]),
        ([*listed("9", n="5"), begin, observe("n", "15"), item("n", "5"), end("12")], ["n@5", "n@15!"]),
        ([begin, observe("n", "15"), end("12"), *listed("20")], ["n@15!", "-n"]),
        ([begin, observe("n", "15"), abandon, *listed("20")], ["n@15!", "-n"]),
    ],
)  # fmt: skip
def test_what_is_told(steps: list[Step], said: list[str]) -> None:
    told = Told()
    for step in steps:
        step(told.replica)
    assert told.said == said


def test_the_dead_are_remembered_up_to_a_number() -> None:
    told = Told()
    for i in range(BURIED + 10):
        put(f"p{i}", "1")(told.replica)
        remove(f"p{i}", "3")(told.replica)
    assert len(told.replica._buried) == BURIED
    told.said.clear()
    put(f"p{BURIED}", "2")(told.replica)
    assert told.said == []


@pytest.mark.parametrize(
    ("one", "other", "is_older"),
    [("1", "2", True), ("2", "1", False), ("9", "10", True), ("10", "9", False), ("7", "7", False), ("", "7", False),
     ("a", "b", False), ("1", "b", False), ("184467440737095516150", "184467440737095516151", True)],
)  # fmt: skip
def test_older(one: str, other: str, is_older: bool) -> None:
    assert older(one, other) is is_older
