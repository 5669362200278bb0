"""What a policy asks for, and in which rules two versions of it differ."""

from __future__ import annotations

from collections.abc import Iterator

from policies.address import Prefix
from policies.compile import named_by
from policies.model import (
    CidrBlock,
    Direction,
    EntityPeer,
    Mark,
    NamedPort,
    PodSelector,
    Policy,
    Rule,
    Tier,
)

Trait = PodSelector | Prefix | NamedPort | EntityPeer | Mark
"""What a rule can ask of a remote class: to be selected, to lie in a block, to name a port, to be of an entity, to have
a mark."""


Force = tuple[PodSelector, frozenset[Direction], tuple[Rule, ...], Tier, int]


def force(policy: Policy | None) -> Force | None:
    """The part of a policy that decides; where it was written does not."""
    if policy is None:
        return None
    return policy.subject, policy.isolates, policy.rules, policy.tier, policy.priority


def differing(one: Policy | None, other: Policy | None) -> set[Rule]:
    """Rules that only one of them has, or has in another place where places decide."""
    return {rule for _, rule in set(_placed(one)) ^ set(_placed(other))}


def _placed(policy: Policy | None) -> Iterator[tuple[tuple[int, ...], Rule]]:
    if policy is None:
        return
    for place, rule in enumerate(policy.rules):
        yield () if policy.tier is Tier.NAMESPACED else (policy.tier, policy.priority, place), rule


def traits_of(policy: Policy) -> set[Trait]:
    """What a class must have for the policy to treat it otherwise than any remote."""
    peers = {peer for rule in policy.rules for peer in rule.peers or ()}
    named: set[Trait] = set(named_by(r for r in policy.rules if r.ref.direction is Direction.EGRESS))
    return named | {peer.block if isinstance(peer, CidrBlock) else peer for peer in peers}
