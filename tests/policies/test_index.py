"""The policy index by hand: what random clusters do not ask of it."""

from __future__ import annotations

import pytest
import strategies
from strategies import Cluster

from policies.address import Prefix
from policies.entities import LOCAL_MIN
from policies.flatten import flatten
from policies.index import PolicyIndex
from policies.l7 import NamePattern
from policies.model import (
    Action,
    CidrBlock,
    ContainerPort,
    Direction,
    Entity,
    EntityPeer,
    LabelSelector,
    ObjectRef,
    Origin,
    Peer,
    PodSelector,
    Policy,
    RemoteClass,
    Rule,
    RuleRef,
    Subject,
    Tier,
    Verdict,
    Workload,
)
from policies.stale import MANY_CLASSES
from policies.terms import Terms


def policy(name: str = "p", **spec: object) -> Policy:
    metadata = {"name": name, "namespace": "blue"}
    return strategies.parsed(
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
    )


def test_unknown_workloads_are_denied_everything() -> None:
    index = PolicyIndex()
    subject = Subject(300)
    index.add_subject(subject)
    assert index.take_dirty() == {subject: None}
    assert index.compile(subject) == {}


def test_not_isolated_is_an_entry_of_its_own() -> None:
    not_isolated = flatten((), isolated=False)
    index = PolicyIndex()
    index.set_identity(300, Workload("blue", {}))
    for direction in Direction:
        assert index.compile(Subject(300))[direction, None] == not_isolated
    isolating = policy(podSelector={})
    index.set_policy(isolating.ref, isolating)
    assert index.compile(Subject(300)) == {(Direction.EGRESS, None): not_isolated}


def test_everything_open_makes_no_class_rows() -> None:
    pod = strategies.PodSpec("blue", "pod-0", {}, (), ("10.1.0.1", "fd00:1::1"))
    index = strategies.index_of(Cluster({"blue": {}}, (pod,), ()))
    opened = policy(podSelector={}, ingress=[{"from": [{"podSelector": {}}]}, {}])
    index.set_policy(opened.ref, opened)
    assert {remote for _, remote in index.compile(Subject(256))} == {None}


def test_a_salvaged_policy_isolates_and_is_listed() -> None:
    index = PolicyIndex()
    index.set_identity(300, Workload("blue", {}))
    valid = policy(podSelector={}, ingress=[{}], egress=[{}])
    saved = Policy(valid.ref, valid.origin, valid.subject, valid.isolates, (), "spec: broken")
    index.set_policy(saved.ref, saved)
    assert index.compile(Subject(300)) == {}
    assert index.problems() == [saved]


def test_moving_a_policy_in_its_file_changes_nothing() -> None:
    index = PolicyIndex()
    index.set_identity(300, Workload("blue", {}))
    index.add_subject(Subject(300))
    written = policy(podSelector={}, ingress=[{}])
    index.set_policy(written.ref, written)
    assert index.take_dirty() == {Subject(300): None}
    moved = Policy(written.ref, Origin("other", 9), written.subject, written.isolates, written.rules)
    index.set_policy(moved.ref, moved)
    assert index.take_dirty() == {}
    assert index.policy(written.ref) == moved


def test_saying_what_is_known_changes_nothing() -> None:
    index = PolicyIndex()
    written = policy(podSelector={}, ingress=[{"from": [{"podSelector": {}}, {"namespaceSelector": {}}]}])
    for _ in range(2):
        index.set_namespace("blue", {"team": "a"})
        index.set_identity(300, Workload("blue", {"app": "a"}))
        index.set_policy(written.ref, written)
        index.add_class(RemoteClass(300))
        index.add_subject(Subject(300))
        dirty = index.take_dirty()
    assert dirty == {}
    index.drop_class(RemoteClass(301))
    index.drop_subject(Subject(301))
    assert index.take_dirty() == {}


def test_only_what_a_class_touches_is_dirty() -> None:
    index = PolicyIndex()
    index.set_identity(300, Workload("blue", {"app": "web"}))
    index.set_identity(301, Workload("blue", {"app": "db"}))
    for number in (300, 301):
        index.add_subject(Subject(number))
    peers = [{"podSelector": {"matchLabels": {"app": "client"}}}]
    written = policy(podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": peers}])
    index.set_policy(written.ref, written)
    index.take_dirty()
    index.set_identity(302, Workload("blue", {"app": "client"}))
    assert index.take_dirty() == {}
    index.add_class(RemoteClass(302))
    assert index.take_dirty() == {Subject(300): {RemoteClass(302)}}
    index.add_class(RemoteClass(300))
    assert index.take_dirty() == {}
    index.drop_class(RemoteClass(302))
    assert index.take_dirty() == {Subject(300): {RemoteClass(302)}}
    assert index.compile(Subject(300), {RemoteClass(302)}) == {}


HTTP = ContainerPort("http", 6, 8080)
# an egress rule → a class that it tells apart from any remote, and one that it does not
TOLD_APART: list[tuple[dict[str, object], RemoteClass, RemoteClass]] = [
    ({"to": [{"podSelector": {"matchLabels": {"app": "db"}}}]}, RemoteClass(301), RemoteClass(300)),
    ({"to": [{"ipBlock": {"cidr": "::/0"}}]}, RemoteClass(2, frozenset({Prefix.parse("::/0")})), RemoteClass(2)),
    ({"ports": [{"port": "http"}]}, RemoteClass(301, frozenset(), frozenset({HTTP})), RemoteClass(301)),
]


@pytest.mark.parametrize(("rule", "told_apart", "not_told_apart"), TOLD_APART)
def test_classes_that_a_rule_tells_apart_are_dirty(
    rule: dict[str, object], told_apart: RemoteClass, not_told_apart: RemoteClass
) -> None:
    index = PolicyIndex()
    index.set_identity(300, Workload("blue", {"app": "web"}))
    index.set_identity(301, Workload("blue", {"app": "db"}))
    index.add_subject(Subject(300))
    written = policy(podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Egress"], egress=[rule])
    index.set_policy(written.ref, written)
    index.take_dirty()
    for change in (index.add_class, index.drop_class):
        change(not_told_apart)
        assert index.take_dirty() == {}
        change(told_apart)
        assert index.take_dirty() == {Subject(300): {told_apart}}
        present = change == index.add_class
        entries = index.compile(Subject(300))
        assert ((Direction.EGRESS, told_apart) in entries) is present
        assert (Direction.EGRESS, not_told_apart) not in entries


V4, V6 = (frozenset({Prefix.parse(block)}) for block in ("0.0.0.0/0", "::/0"))
A_NAME = NamePattern("a.example")
# a peer of an egress rule → a class that it is, and one that it is not
PEERS: list[tuple[Peer, RemoteClass, RemoteClass]] = [
    (EntityPeer(Entity.HOST), RemoteClass(1), RemoteClass(6)),
    (EntityPeer(Entity.REMOTE_NODE), RemoteClass(6), RemoteClass(1)),
    (EntityPeer(Entity.UNMANAGED), RemoteClass(3), RemoteClass(2)),
    (EntityPeer(Entity.CLUSTER), RemoteClass(1), RemoteClass(9)),
    (EntityPeer(Entity.CLUSTER), RemoteClass(301), RemoteClass(LOCAL_MIN)),
    (EntityPeer(Entity.CLUSTER), RemoteClass(65535), RemoteClass(65536)),
    (EntityPeer(Entity.CLUSTER), RemoteClass(256), RemoteClass(255)),
    (EntityPeer(Entity.WORLD), RemoteClass(2), RemoteClass(1)),
    (EntityPeer(Entity.WORLD), RemoteClass(LOCAL_MIN), RemoteClass(LOCAL_MIN - 1)),
    (EntityPeer(Entity.WORLD), RemoteClass(7, V4), RemoteClass(0)),
    (EntityPeer(Entity.WORLD_IPV4), RemoteClass(9), RemoteClass(10)),
    (EntityPeer(Entity.WORLD_IPV4), RemoteClass(LOCAL_MIN, V4), RemoteClass(LOCAL_MIN, V6)),
    (EntityPeer(Entity.WORLD_IPV6), RemoteClass(10), RemoteClass(9)),
    (EntityPeer(Entity.WORLD_IPV6), RemoteClass(7, V6), RemoteClass(7, V4)),
    (CidrBlock(Prefix.parse("0.0.0.0/0"), inside=False), RemoteClass(9, V4), RemoteClass(9)),
    (A_NAME, RemoteClass(9, marks=frozenset({A_NAME})), RemoteClass(9)),
]


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize(("peer", "match", "other"), PEERS)
def test_classes_that_are_a_peer_are_dirty(peer: Peer, match: RemoteClass, other: RemoteClass, action: Action) -> None:
    index = PolicyIndex()
    index.set_identity(300, Workload("blue", {}))
    index.add_subject(Subject(300))
    ref = ObjectRef("CiliumNetworkPolicy", "blue", "p")
    rule = Rule(RuleRef(ref, Direction.EGRESS, 0), (peer,), None, action)
    subject = PodSelector(LabelSelector(), namespace="blue")
    tier = Tier.ADMIN if action is Action.PASS else Tier.NAMESPACED
    index.set_policy(ref, Policy(ref, Origin("f", 0), subject, frozenset(Direction), (rule,), tier=tier))
    index.take_dirty()
    says = {Action.ALLOW: Verdict.ALLOW, Action.DENY: Verdict.DENY}
    for change in (index.add_class, index.drop_class):
        change(other)
        assert index.take_dirty() == {}
        change(match)
        assert index.take_dirty() == {Subject(300): {match}}
        entries = index.compile(Subject(300))
        present = change == index.add_class and action in says
        assert entries == index.compile(Subject(300), {match, other})
        assert list(entries) == ([(Direction.EGRESS, match)] if present else [])
        assert [cell.verdict for row in entries.values() for cell in row] == ([says[action]] if present else [])


def test_a_block_outside_the_cluster_is_no_pods() -> None:
    index = PolicyIndex()
    index.set_identity(300, Workload("blue", {}))
    ref = ObjectRef("CiliumNetworkPolicy", "blue", "p")
    subject = PodSelector(LabelSelector(), namespace="blue")
    for inside in (True, False):
        rule = Rule(RuleRef(ref, Direction.EGRESS, 0), (CidrBlock(Prefix.parse("0.0.0.0/0"), inside=inside),), None)
        index.set_policy(ref, Policy(ref, Origin("f", 0), subject, frozenset(Direction), (rule,)))
        for number in (1, 3, 6, 300, LOCAL_MIN):
            index.add_class(RemoteClass(number, V4))
        found = {remote.identity for _, remote in index.compile(Subject(300)) if remote is not None}
        assert found == ({1, 3, 6, 300, LOCAL_MIN} if inside else {LOCAL_MIN})


def test_what_a_policy_denies_from_anywhere_is_lifted_for_whom_a_tier_before_allows() -> None:
    """An entry of one class may say less than that of any remote, and nothing at all: it must be there."""
    index = PolicyIndex()
    index.set_identity(300, Workload("blue", {}))
    subject = PodSelector(LabelSelector(), namespaces=LabelSelector())
    index.set_namespace("blue", {})
    ref = ObjectRef("ClusterNetworkPolicy", "", "p")
    host = RemoteClass(1)
    index.add_class(host)
    passed = Rule(RuleRef(ref, Direction.EGRESS, 0), (EntityPeer(Entity.HOST),), None, Action.PASS)
    allowed = Rule(RuleRef(ref, Direction.EGRESS, 1), None, None)
    index.set_policy(ref, Policy(ref, Origin("f", 0), subject, frozenset(), (passed, allowed), tier=Tier.ADMIN))
    isolating = policy(podSelector={}, policyTypes=["Egress"])
    index.set_policy(isolating.ref, isolating)
    entries = index.compile(Subject(300))
    assert entries[Direction.EGRESS, host] == ()
    assert [cell.rule for cell in entries[Direction.EGRESS, None]] == [allowed.ref]


def test_a_rule_that_changes_concerns_its_peers_alone() -> None:
    """Unless it is about any remote, or whether the pod is isolated depends on the policy."""
    index = PolicyIndex()
    for number, app in enumerate(("web", "db", "cache", "log"), 300):
        index.set_identity(number, Workload("blue", {"app": app}))
        index.add_class(RemoteClass(number))
    index.add_subject(Subject(300))

    def changed(name: str, *apps: str, port: int = 80, **spec: object) -> object:
        peers = [{"podSelector": {"matchLabels": {"app": app}}} for app in apps]
        rule = {"ports": [{"port": port}], **({"from": peers} if peers else {})}
        written = policy(name, podSelector={"matchLabels": {"app": "web"}}, ingress=[rule], **spec)
        index.set_policy(written.ref, written)
        return index.take_dirty().get(Subject(300), set())

    db, cache = RemoteClass(301), RemoteClass(302)
    assert changed("one", "db") is None, "it isolates the pod"
    assert changed("one", "db", port=81) == {db}
    assert changed("one", "cache", port=81) == {db, cache}
    assert changed("two", "db") == {db}, "isolated already"
    assert changed("two", "db", policyTypes=["Ingress", "Egress"]) is None, "not in this direction"
    assert changed("two", "db", "cache", policyTypes=["Ingress", "Egress"]) == {db, cache}
    assert changed("two") is None, "from anywhere"
    index.set_policy(ObjectRef("NetworkPolicy", "blue", "two"), None)
    assert index.take_dirty() == {Subject(300): None}
    changed("three", "db")
    index.set_policy(ObjectRef("NetworkPolicy", "blue", "three"), None)
    assert index.take_dirty() == {Subject(300): {db}}


def test_many_dirty_classes_are_the_whole_subject() -> None:
    index = PolicyIndex()
    index.set_identity(300, Workload("blue", {}))
    index.set_identity(301, Workload("blue", {}))
    index.add_subject(Subject(300))
    written = policy(podSelector={}, ingress=[{"from": [{"podSelector": {}}]}])
    index.set_policy(written.ref, written)
    index.take_dirty()
    for number in range(MANY_CLASSES):
        index.add_class(RemoteClass(301, frozenset(), frozenset({ContainerPort("a", 6, number)})))
    assert index.take_dirty() == {Subject(300): None}


def test_changed_terms_are_told_once() -> None:
    index = PolicyIndex()
    outer, inner = Prefix.parse("10.0.0.0/8"), Prefix.parse("10.1.0.0/16")
    block = {"ipBlock": {"cidr": str(outer), "except": [str(inner)]}}
    rule = {"ports": [{"port": "http"}]}
    one = policy("one", podSelector={}, ingress=[{"from": [block], **rule}])
    two = policy("two", podSelector={}, policyTypes=["Egress"], egress=[{"to": [block], **rule}])
    index.set_policy(one.ref, one)
    assert index.take_changed_terms() == Terms(frozenset({outer, inner}), frozenset(), frozenset({(6, "http")}))
    index.set_policy(two.ref, two)
    assert index.take_changed_terms() == Terms(frozenset(), frozenset({(6, "http")}), frozenset())
    index.set_policy(one.ref, None)
    assert index.take_changed_terms() == Terms(frozenset(), frozenset(), frozenset({(6, "http")}))
    index.set_policy(two.ref, None)
    index.set_policy(two.ref, two)
    assert not index.take_changed_terms()
    assert index.prefixes() == {outer, inner}


def test_who_is_selected() -> None:
    index = PolicyIndex()
    index.set_identity(300, Workload("blue", {}))
    index.set_identity(301, Workload("blue", {}))
    index.set_identity(302, Workload("green", {}))
    index.add_subject(Subject(300))
    written = policy(podSelector={})
    index.set_policy(written.ref, written)
    assert index.subjects_of(written.ref) == {Subject(300)}
    assert index.policies_of(Subject(302)) == []
    index.drop_subject(Subject(300))
    assert index.subjects_of(written.ref) == set()
    assert index.take_dirty() == {}


def test_a_selector_used_again_asks_anew_what_it_matches() -> None:
    """While no policy used it, the namespace became unknown: its pods must not be let in as they were."""
    index = PolicyIndex()
    index.set_namespace("blue", {})
    index.set_namespace("green", {})
    index.set_identity(300, Workload("blue", {}))
    index.set_identity(301, Workload("green", {}))
    index.add_subject(Subject(300))
    index.add_class(RemoteClass(301))
    opened = policy(podSelector={}, ingress=[{"from": [{"namespaceSelector": {}}]}])
    index.set_policy(opened.ref, opened)
    assert (Direction.INGRESS, RemoteClass(301)) in index.compile(Subject(300))
    index.set_policy(opened.ref, None)
    index.set_namespace("green", None)
    index.set_policy(opened.ref, opened)
    assert (Direction.INGRESS, RemoteClass(301)) not in index.compile(Subject(300))
