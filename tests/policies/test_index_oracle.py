"""Compiled rows, looked up as the kernel does, agree with the oracle, and name a rule that it says allows the flow."""

from __future__ import annotations

import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Cluster

import policies.compile as compiler
from policies.evaluate import Flow, ends, evaluate_side, exempt
from policies.flatten import lookup
from policies.index import PolicyIndex
from policies.model import Direction, Policy, Verdict

pytestmark = pytest.mark.timeout(420)  # of a failure, hypothesis may take five minutes to find the smallest


def agree(cluster: Cluster, index: PolicyIndex, policies: list[Policy], flow: Flow) -> None:
    """Each judged side, as the datapath judges it: exact class row, else the row of any remote, else deny."""
    numbers = strategies.identities(cluster.pods)
    for direction in Direction:
        side = evaluate_side(policies, cluster.namespaces, flow, direction)
        subject_party, remote_party = ends(flow, direction)
        if not side.judged or exempt(flow, direction) is not None:
            continue  # the datapath allows these before it asks for a row
        assert subject_party.pod is not None
        identity = strategies.identity_of(subject_party, numbers)
        subject = strategies.subject_of(subject_party.pod, identity, index)
        remote = strategies.class_of(remote_party, strategies.identity_of(remote_party, numbers), index)
        entries = index.compile(subject)
        row = entries.get((direction, remote), entries.get((direction, None), ()))
        cell = lookup(row, flow.protocol, flow.port)
        verdict = Verdict.DENY if cell is None else cell.verdict
        assert verdict is side.verdict, f"{flow.source} → {flow.destination} {direction}: {side}, row {row}"
        if cell is not None:
            anywhere = lookup(entries.get((direction, None), ()), -1, 0)
            # Where everything is allowed from anywhere, narrower rules are not named.
            assert cell.rule in side.allowed_by if anywhere is not None else cell.rule == side.allowed_by[0]
        for key, single in index.compile(subject, {remote}).items():
            assert entries[key] == single
        assert {k for k in entries if k[1] == remote} == set(index.compile(subject, {remote}))


@given(cluster=strategies.clusters(), seed=st.integers(0, 2**32))
@settings(max_examples=200, deadline=None, print_blob=True)
@pytest.mark.parametrize(("few", "peers"), [(0, 0), (compiler.FEW_CLASSES, 0), (0, compiler.FEW_PEERS)])
def test_random_clusters(few: int, peers: int, cluster: Cluster, seed: int) -> None:
    """Both ways of grouping classes: split as sets, and one by one."""
    index = strategies.index_of(cluster)
    policies = [strategies.parsed(raw) for raw in cluster.policies]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "FEW_CLASSES", few)
        patch.setattr(compiler, "FEW_PEERS", peers)
        for flow in strategies.flows_of(cluster, seed, 30):
            agree(cluster, index, policies, flow)
