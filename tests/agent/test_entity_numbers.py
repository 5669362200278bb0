"""Numbers of entities are those of bpf/abi.h, which the policy language does not read."""

from __future__ import annotations

from agent.datapath import abi
from policies import entities
from policies.model import Entity

NUMBERS = abi.load().constants


def test_reserved_identities() -> None:
    names = {Entity.REMOTE_NODE: "REMOTE_NODE", Entity.KUBE_APISERVER: "APISERVER"}
    for entity, number in entities.SINGLE.items():
        assert number == NUMBERS[f"IDENTITY_{names.get(entity, entity.upper())}"]
    assert (entities.WORLD, entities.WORLD_IPV4, entities.WORLD_IPV6) == (
        NUMBERS.IDENTITY_WORLD,
        NUMBERS.IDENTITY_WORLD_IPV4,
        NUMBERS.IDENTITY_WORLD_IPV6,
    )
    assert range(NUMBERS.IDENTITY_CLUSTER_MIN, NUMBERS.IDENTITY_CLUSTER_MAX + 1) == entities.CLUSTER_IDENTITIES
    assert entities.LOCAL_MIN == NUMBERS.IDENTITY_LOCAL_MIN
