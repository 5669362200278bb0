"""Sides: each class is in one row at most, the one it gets when asked alone; names of ports are those of a protocol."""

from __future__ import annotations

import drawn_policies
import pytest
import strategies
from hypothesis import given, settings

import policies.compile as compiler
from policies.classes import ClassIndex
from policies.compile import Side, resolve
from policies.model import (
    CidrBlock,
    ContainerPort,
    Direction,
    NamedPort,
    ObjectRef,
    PodSelector,
    PortRange,
    RemoteClass,
    Rule,
    RuleRef,
    Subject,
)
from policies.selectors import SelectorIndex

HTTP, DNS, DNS_TCP = ContainerPort("http", 6, 80), ContainerPort("dns", 17, 53), ContainerPort("dns", 6, 54)

# a rule's ports, what the pod declares → numbers
RESOLVED = [
    (None, {HTTP}, None),
    ((PortRange(6, 1, 9),), set(), [PortRange(6, 1, 9)]),
    ((NamedPort(6, "http"),), {HTTP, DNS}, [PortRange(6, 80, 80)]),
    ((NamedPort(6, "http"),), {DNS}, []),
    ((NamedPort(17, "http"),), {HTTP}, []),
    ((NamedPort(6, "dns"),), {DNS, DNS_TCP}, [PortRange(6, 54, 54)]),
    ((NamedPort(17, "dns"), PortRange(6, 1, 1)), {DNS, DNS_TCP}, [PortRange(17, 53, 53), PortRange(6, 1, 1)]),
    ((NamedPort(6, "http"),), {HTTP, ContainerPort("http", 6, 81)}, [PortRange(6, 80, 80), PortRange(6, 81, 81)]),
]


@pytest.mark.parametrize(("ports", "declared", "expected"), RESOLVED)
def test_resolve(
    ports: tuple[PortRange | NamedPort, ...] | None, declared: set[ContainerPort], expected: list[PortRange] | None
) -> None:
    rule = Rule(RuleRef(ObjectRef("NetworkPolicy", "a", "p"), Direction.INGRESS, 0), None, ports)
    assert resolve(rule, sorted(declared)) == expected


@pytest.mark.parametrize(("few", "peers"), [(0, 0), (1, 0), (compiler.FEW_CLASSES, 0), (0, compiler.FEW_PEERS)])
@given(cluster=strategies.clusters(max_policies=4) | drawn_policies.clusters())
@settings(max_examples=40)
def test_rows_are_those_of_single_classes(few: int, peers: int, cluster: strategies.Cluster) -> None:
    """As if all policies selected one pod."""
    policies = strategies.policies_of(cluster)
    selectors = SelectorIndex()
    classes = ClassIndex(selectors)
    for name, labels in cluster.namespaces.items():
        selectors.set_namespace(name, labels)
    numbers = strategies.identities(cluster.pods)
    for number, workload in numbers.items():
        selectors.set_identity(number, workload)
    for peer in {p for policy in policies for rule in policy.rules for p in rule.peers or ()}:
        if isinstance(peer, PodSelector):
            selectors.add(peer)
    index = strategies.index_of(cluster)
    remotes = {
        strategies.class_of(party, strategies.identity_of(party, numbers), index)
        for party in strategies.parties(cluster)
    }
    for remote in remotes:
        classes.add(remote)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "FEW_CLASSES", few)
        patch.setattr(compiler, "FEW_PEERS", peers)
        for direction in Direction:
            side = Side(Subject(256, frozenset({HTTP, DNS})), direction, policies)
            given_rows = [(remote, row) for row, some in side.rows(classes) for remote in some or ()]
            assert len(given_rows) == len(dict(given_rows))
            alone = {r: row for remote in remotes for row, some in side.rows(classes, {remote}) for r in some or ()}
            assert dict(given_rows) == alone
            patch.setattr(compiler, "SINGLE_CLASSES", 0)
            some = set(sorted(remotes, key=str)[::2])
            together = {remote: row for row, found in side.rows(classes, some) for remote in found or ()}
            assert together == {remote: row for remote, row in alone.items() if remote in some}
            patch.setattr(compiler, "SINGLE_CLASSES", len(remotes))


def test_dropped_classes_are_found_no_more() -> None:
    classes = ClassIndex(SelectorIndex())
    block = (
        strategies.parsed(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": "p"},
                "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
            }
        )
        .rules[0]
        .peers
    )
    assert block is not None
    remote = RemoteClass(2, frozenset(p.block for p in block if isinstance(p, CidrBlock)), frozenset({HTTP}))
    named = NamedPort(6, "http")
    for _ in range(2):
        assert classes.add(remote)
        assert not classes.add(remote)
        assert classes.matched(block[0]) == {remote}
        assert (*classes.naming(named), *classes.of_identity(2)) == (remote, remote)
        assert classes.drop(remote)
        assert not classes.drop(remote)
        assert classes.matched(block[0]) == set()
        assert (*classes.naming(named), *classes.of_identity(2)) == ()
