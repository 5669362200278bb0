"""What is in force after files change: last good versions, duplicates, order; any history ends like a fresh start."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from agent.objects import Change, Object, PolicySet
from agent.sources import tree as tree_module
from agent.sources.items import VERSIONS
from agent.sources.manifest import parse, unreadable
from agent.sources.tree import ALL_KEPT, ISOLATED, KEPT, Tree
from policies.kinds import KINDS
from policies.model import Direction, ObjectRef, Policy


def ns(name: str, team: str = "x") -> str:
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{team: {team}}}}}\n"


def bad_ns(name: str) -> str:
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{team: yes}}}}\n"


def policy(name: str, port: object = 80, app: str = "web") -> str:
    return (
        f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\n"
        f"spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, ingress: [{{ports: [{{port: {port}}}]}}]}}\n"
    )


def docs(*texts: str) -> str:
    return "---\n".join(texts)


class Driver:
    """A tree, fed with texts."""

    def __init__(self) -> None:
        self.tree = Tree()

    def put(self, **files: str | None) -> list[Change]:
        for name, text in files.items():
            file = name.replace("_", ".")
            if text is None:
                self.tree.remove(file)
            else:
                self.tree.put(parse(text.encode(), file, self.tree.manifests.get(file)))
        return self.tree.settle()

    def teams(self) -> dict[str, str]:
        return {ref.name: getattr(value, "labels", {}).get("team", "") for ref, value in self.tree.in_force.items()}

    def problems(self) -> list[tuple[str, int, str]]:
        return [(p.file, p.line, p.effect) for p in self.tree.problems]


def shown(changes: list[Change]) -> list[str]:
    return [f"{'-' if c.object is None else '+'}{c.ref.kind} {c.ref.name}" for c in changes]


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_a_broken_object_keeps_its_last_good_version(driver: Driver) -> None:
    driver.put(a_yaml=docs(ns("a"), ns("b")))
    assert shown(driver.put(a_yaml=docs(bad_ns("a"), ns("b", "y")))) == ["+Namespace b"]
    assert driver.teams() == {"a": "x", "b": "y"}
    assert driver.problems() == [("a.yaml", 3, KEPT)]
    assert driver.put(a_yaml=docs(ns("a", "z"), ns("b", "y")))
    assert driver.teams() == {"a": "z", "b": "y"}
    assert driver.problems() == []


def test_the_last_good_version_is_forgotten_with_the_object(driver: Driver) -> None:
    driver.put(a_yaml=docs(ns("a"), ns("b")))
    driver.put(a_yaml=docs(bad_ns("a"), ns("b")))
    assert shown(driver.put(a_yaml=ns("b"))) == ["+Namespace b", "-Namespace a"]  # b is at another line now
    assert driver.teams() == {"b": "x"}
    driver.put(a_yaml=docs(bad_ns("a"), ns("b")))
    assert driver.teams() == {"b": "x"}


def test_a_file_that_cannot_be_read_keeps_all_its_objects(driver: Driver) -> None:
    driver.put(a_yaml=docs(ns("a"), ns("b")))
    assert driver.put(a_yaml="{ [\n") == []
    assert driver.teams() == {"a": "x", "b": "x"}
    assert driver.problems() == [("a.yaml", 1, ALL_KEPT)]
    assert driver.put(a_yaml="} still\n") == []
    assert driver.teams() == {"a": "x", "b": "x"}
    assert shown(driver.put(a_yaml=docs("{ [\n", ns("b", "y")))) == ["+Namespace b"]
    assert driver.teams() == {"a": "x", "b": "y"}
    assert shown(driver.put(a_yaml=ns("b", "y"))) == ["+Namespace b", "-Namespace a"]


def test_an_unreadable_file_keeps_all_its_objects(driver: Driver) -> None:
    driver.put(a_yaml=ns("a"))
    driver.tree.put(unreadable("a.yaml", "cannot be read: Permission denied"))
    assert driver.tree.settle() == []
    assert driver.problems() == [("a.yaml", 0, ALL_KEPT)]
    assert shown(driver.put(a_yaml=None)) == ["-Namespace a"]
    assert driver.problems() == []


def test_the_first_of_two_definitions_is_in_force(driver: Driver) -> None:
    driver.put(b_yaml=docs(ns("n", "t2"), ns("n", "t3")))
    assert driver.teams() == {"n": "t2"}
    driver.put(a_yaml=ns("n", "t1"))
    assert driver.teams() == {"n": "t1"}
    assert [(p.file, p.line, p.path) for p in driver.tree.problems] == [
        ("b.yaml", 1, "metadata.name"), ("b.yaml", 5, "metadata.name"),
    ]  # fmt: skip
    assert "a.yaml:1" in driver.tree.problems[0].message
    driver.put(a_yaml=None)
    assert driver.teams() == {"n": "t2"}
    driver.put(b_yaml=ns("n", "t3"))
    assert driver.teams() == {"n": "t3"}
    assert driver.tree.problems == []


def test_the_last_good_version_of_the_first_definition_goes_before_the_second(driver: Driver) -> None:
    driver.put(a_yaml=ns("n", "t1"), b_yaml=ns("n", "t2"))
    driver.put(a_yaml=bad_ns("n"))
    assert driver.teams() == {"n": "t1"}
    driver.put(b_yaml=ns("n", "t3"))
    assert driver.teams() == {"n": "t1"}
    driver.put(a_yaml=None)
    assert driver.teams() == {"n": "t3"}


def test_a_definition_that_never_was_good_does_not_hide_a_good_one(driver: Driver) -> None:
    driver.put(b_yaml=ns("n", "t2"))
    driver.put(a_yaml=bad_ns("n"))
    assert driver.teams() == {"n": "t2"}
    driver.put(b_yaml=ns("n", "t3"))
    assert driver.teams() == {"n": "t3"}


def test_an_object_that_moves_and_breaks_at_once_is_kept(driver: Driver) -> None:
    driver.put(a_yaml=ns("n", "t1"))
    assert driver.put(a_yaml=None, b_yaml=bad_ns("n")) == []
    assert driver.teams() == {"n": "t1"}
    assert driver.tree.kept("b.yaml") == {ObjectRef("Namespace", "", "n"): "a.yaml"}


def in_force(driver: Driver) -> Policy:
    (value,) = driver.tree.in_force.values()
    assert isinstance(value, Policy)
    return value


def test_lesson_15_a_new_policy_that_is_not_valid_isolates_its_pods(driver: Driver) -> None:
    driver.put(p_yaml=policy("p", 99999))
    assert in_force(driver).problem
    assert in_force(driver).rules == ()
    assert driver.problems() == [("p.yaml", 4, ISOLATED)]
    # Another broken version isolates what that one selects, not what the one before did.
    driver.put(p_yaml=policy("p", 99999, "db"))
    assert in_force(driver).subject.pods.matches({"app": "db"})
    # One of which nothing can be told leaves the isolation as it is.
    driver.put(p_yaml=policy("p", 80, "[]"))
    assert in_force(driver).subject.pods.matches({"app": "db"})
    assert driver.problems() == [("p.yaml", 4, ISOLATED)]
    driver.put(p_yaml=policy("p"))
    assert in_force(driver).problem == ""
    assert driver.problems() == []


def test_lesson_15_a_policy_that_breaks_stays_as_it_was(driver: Driver) -> None:
    driver.put(p_yaml=policy("p", 80))
    good = in_force(driver)
    for broken in (
        policy("p", 99999),
        policy("p", "[["),
        "kind: [",
        policy("p").replace("NetworkPolicy", "NetworkPolcy"),
    ):
        assert driver.put(p_yaml=broken) == []
        assert in_force(driver) is good
        assert [p.effect for p in driver.tree.problems] in ([KEPT], [ALL_KEPT])


def test_a_change_of_the_line_alone_is_a_change(driver: Driver) -> None:
    driver.put(a_yaml=ns("a"))
    (before,) = driver.tree.in_force.values()
    (change,) = driver.put(a_yaml="# comment\n" + ns("a"))
    assert change.object is not None
    assert change.object.origin.line == 2
    assert msgspec.structs.replace(change.object, origin=before.origin) == before
    assert driver.put(a_yaml="# COMMENT\n" + ns("a")) == []


def cilium(kind: str, name: str, rule: str = "{}", selector: str = "{}") -> str:
    spec = f"spec: {{endpointSelector: {selector}, ingress: [{rule}]}}"
    return f"apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {{name: {name}}}\n{spec}\n"


def admin(kind: str, version: str, tier: str, name: str = "x") -> str:
    spec = f"spec: {{priority: 1, subject: {{namespaces: {{}}}}, {tier}}}"
    return f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\n{spec}\n"


EVERY_KIND = {
    "Pod": "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: c}]}\n",
    "EndpointSlice": "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\naddressType: IPv4\n",
    "Service": "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 1}]}\n",
    "NetworkPolicy": policy("x"),
    "CiliumNetworkPolicy": cilium("CiliumNetworkPolicy", "x"),
    "CiliumClusterwideNetworkPolicy": cilium("CiliumClusterwideNetworkPolicy", "x"),
    "ClusterNetworkPolicy": admin("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2", "tier: Admin"),
    "AdminNetworkPolicy": admin("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1", "", name="x"),
    "Namespace": ns("x"),
    "Node": "apiVersion: v1\nkind: Node\nmetadata: {name: x}\n",
    "Secret": "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n",
    "NodeEndpoints": "apiVersion: gatehouse.io/v1alpha1\nkind: NodeEndpoints\nmetadata: {name: x}\n",
    "SecurityIdentity": (
        "apiVersion: gatehouse.io/v1alpha1\nkind: SecurityIdentity\nmetadata: {name: '256'}\n"
        "spec: {namespace: n, serviceAccount: x}\n"
    ),
}


def test_order_of_changes(driver: Driver) -> None:
    """Policies before what they are about, and gone after it."""
    policies = [kind for kind in EVERY_KIND if kind in KINDS]
    whole = ["Namespace", "Node", "Secret", "SecurityIdentity"]
    first = [*whole, *policies, "Service", "EndpointSlice", "Pod", "NodeEndpoints"]
    last = ["Pod", "NodeEndpoints", "EndpointSlice", "Service"]
    before = docs(*EVERY_KIND.values())
    after = before.replace("name: x", "name: y").replace("'256'", "'257'")

    def named(sign: str, kinds: list[str], name: str, number: str) -> list[str]:
        return [f"{sign}{kind} {number if kind == 'SecurityIdentity' else name}" for kind in kinds]

    assert shown(driver.put(a_yaml=before)) == named("+", first, "x", "256")
    assert shown(driver.put(a_yaml=after)) == [
        *named("-", last, "x", "256"),
        *named("+", first, "y", "257"),
        *named("-", [*policies, *whole], "x", "256"),
    ]
    kinds = {*EVERY_KIND, "BaselineAdminNetworkPolicy"}  # of which there is but one, called default
    assert set(tree_module._COMING) == set(tree_module._GOING) == kinds == set(VERSIONS)


CNP = ObjectRef("CiliumNetworkPolicy", "default", "x")


def cnp(tree: Tree) -> PolicySet:
    found = tree.in_force[CNP]
    assert isinstance(found, PolicySet)
    return found


@pytest.mark.parametrize(
    "broken",
    [
        cilium("CiliumNetworkPolicy", "x", "{fromGroups: [{}]}"),
        cilium("CiliumNetworkPolicy", "x").replace("cilium.io/v2", "cilium.io/v2alpha9"),
        cilium("CiliumNetworkPolicy", "x") + " - [",
    ],
)
def test_a_broken_cilium_policy(driver: Driver, broken: str) -> None:
    """A new one isolates its pods; one that was good stays as it was, and so it does further down in its file."""
    driver.put(a_yaml=broken)
    assert [(p.isolates >= {Direction.INGRESS}, p.rules, bool(p.problem)) for p in cnp(driver.tree).policies] == [
        (True, (), True)
    ]
    assert [effect for _, _, effect in driver.problems()] == [ISOLATED]
    driver.put(a_yaml=cilium("CiliumNetworkPolicy", "x"))
    good = cnp(driver.tree)
    assert not good.salvaged
    assert not driver.problems()
    driver.put(a_yaml=broken)
    assert cnp(driver.tree) == good
    assert [effect for _, _, effect in driver.problems()] == [KEPT]
    driver.put(a_yaml="\n\n" + cilium("CiliumNetworkPolicy", "x"))
    moved = cnp(driver.tree)
    assert {moved.origin.line, *(p.origin.line for p in moved.policies)} == {3}


def test_a_policy_for_nodes_is_said_not_to_be_enforced(driver: Driver) -> None:
    text = cilium("CiliumClusterwideNetworkPolicy", "x").replace("endpointSelector", "nodeSelector")
    driver.put(a_yaml=text)
    (problem,) = driver.tree.problems
    assert (problem.warning, problem.path, problem.message) == (
        True, "spec.nodeSelector", "policies for nodes are not enforced",
    )  # fmt: skip
    (value,) = driver.tree.in_force.values()
    assert isinstance(value, PolicySet)
    assert [(p.isolates, p.rules) for p in value.policies] == [(frozenset(), ())]


# ---- any history ends like a fresh start

NAMES = st.sampled_from("abc")
VALID = st.one_of(
    st.builds(ns, NAMES, st.sampled_from("xy")),
    st.builds(policy, NAMES, st.sampled_from([80, 81])),
    st.builds(cilium, st.just("CiliumNetworkPolicy"), NAMES, st.sampled_from(["{}", "{fromEntities: [all]}"])),
    st.sampled_from(["", "# nothing\n", "kind: ConfigMap\n"]),
)
BROKEN = st.one_of(
    st.builds(bad_ns, NAMES),
    st.builds(policy, NAMES, st.just(99999)),
    st.builds(cilium, st.just("CiliumNetworkPolicy"), NAMES, st.just("{from: []}")),
    st.sampled_from(["{ [\n", "kind: Namespac\n"]),
)
FILES = st.sampled_from(["a.yaml", "b.yaml", "d/c.yaml"])


def edits(documents: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, str | None]]]:
    text = st.none() | st.lists(documents, max_size=4).map(lambda parts: docs(*parts))
    return st.lists(st.dictionaries(FILES, text, min_size=1, max_size=2), min_size=1, max_size=8)


def run(history: list[dict[str, str | None]]) -> tuple[Tree, dict[ObjectRef, Object]]:
    """The tree after all edits, and what its changes add up to."""
    found, seen = Tree(), dict[ObjectRef, Object]()
    for edit in history:
        for file, text in edit.items():
            if text is None:
                found.remove(file)
            else:
                found.put(parse(text.encode(), file, found.manifests.get(file)))
        for change in found.settle():
            if change.object is None:
                del seen[change.ref]
            else:
                assert seen.get(change.ref) != change.object
                seen[change.ref] = change.object
    return found, seen


def final(history: list[dict[str, str | None]]) -> dict[str, str | None]:
    state: dict[str, str | None] = {}
    for edit in history:
        state.update(edit)
    return {file: text for file, text in state.items() if text is not None}


@given(history=edits(VALID))
def test_valid_edits_end_like_a_fresh_start(history: list[dict[str, str | None]]) -> None:
    after, seen = run(history)
    fresh, _ = run([final(history)])
    note(str(final(history)))
    assert after.in_force == fresh.in_force == seen
    assert after.problems == fresh.problems


@given(history=edits(VALID | BROKEN))
def test_broken_edits_lose_nothing_and_heal(history: list[dict[str, str | None]]) -> None:
    """Whatever was broken on the way: repairing every file is like a fresh start."""
    after, seen = run(history)
    assert after.in_force == seen
    named = [text or "" for text in final(history).values()]
    for ref, value in after.in_force.items():
        # What no document can be about is not in force.
        assert any(f"name: {ref.name}" in text or "[" in text or "Namespac\n" in text for text in named), (ref, value)
    repaired: dict[str, str | None] = dict.fromkeys(final(history), docs(ns("a"), policy("b")))
    healed, _ = run([*history, repaired])
    fresh, _ = run([repaired])
    assert healed.in_force == fresh.in_force
    assert healed.problems == fresh.problems


@given(history=edits(VALID | BROKEN), file=FILES, names=st.lists(NAMES, unique=True))
def test_breaking_a_document_changes_nothing_in_force(history: Any, file: str, names: list[str]) -> None:
    good: dict[str, str | None] = {file: docs(*(policy(name) for name in names))}
    others = [{f: t for f, t in edit.items() if f != file} for edit in history]
    before, _ = run([*others, good])
    broken: dict[str, str | None] = {file: docs(*(policy(name, 99999) for name in names))}
    after, _ = run([*others, good, broken])
    assert after.in_force == before.in_force
