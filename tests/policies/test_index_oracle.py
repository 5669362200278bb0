"""Compiled rows, looked up as the kernel does, agree with the oracle, and name a rule that it says allows the flow."""

from __future__ import annotations

import os

import drawn_policies
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Cluster

import policies.compile as compiler
from policies.evaluate import evaluate_side, exempt
from policies.facts import Flow, ends
from policies.flatten import allows_everything, lookup
from policies.index import PolicyIndex
from policies.model import DEFAULT_DENY, Direction, Policy, Verdict

EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "100"))
GROUPINGS = ((0, 0), (compiler.FEW_CLASSES, 0), (0, compiler.FEW_PEERS))


def agree(cluster: Cluster, index: PolicyIndex, policies: list[Policy], flow: Flow, *, always: bool = False) -> None:
    """Each judged side, as the datapath judges it: exact class row, else the row of any remote, else deny."""
    numbers = strategies.identities(cluster.pods)
    for direction in Direction:
        side = evaluate_side(policies, cluster.namespaces, flow, direction, enforce_always=always)
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
        note = f"{flow.source} → {flow.destination} {flow.protocol}/{flow.port} {direction}: {side}, row {row}"
        assert verdict is side.verdict, note
        assert (cell and cell.demands) == side.demands, note
        named = side.denied_by or side.allowed_by or (DEFAULT_DENY,)
        anywhere = entries.get((direction, None), ())
        if row is anywhere and allows_everything(row):
            assert cell is not None and cell.rule in named, note  # narrower rules are not named there
        else:
            assert (DEFAULT_DENY if cell is None else cell.rule) == named[0], note
        for key, single in index.compile(subject, {remote}).items():
            assert entries[key] == single
        assert {k for k in entries if k[1] == remote} == set(index.compile(subject, {remote}))


def check(cluster: Cluster, seed: int) -> None:
    """Both ways of grouping classes, split as sets and one by one; and --policy-enforcement always, by which a pod that
    no policy selects is denied everything, too. One cluster is asked all of it: to draw one takes longest."""
    policies = strategies.policies_of(cluster)
    flows = strategies.flows_of(cluster, seed, 30)
    for few, peers in GROUPINGS:
        index = strategies.index_of(cluster)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiler, "FEW_CLASSES", few)
            patch.setattr(compiler, "FEW_PEERS", peers)
            for flow in flows:
                agree(cluster, index, policies, flow)
    index = strategies.index_of(cluster, enforce_always=True)
    for flow in flows:
        agree(cluster, index, policies, flow, always=True)


@given(cluster=strategies.clusters(), seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES)
def test_random_clusters(cluster: Cluster, seed: int) -> None:
    check(cluster, seed)


@given(cluster=drawn_policies.clusters(), seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES)
def test_random_clusters_with_policies_of_every_kind(cluster: Cluster, seed: int) -> None:
    check(cluster, seed)
