"""Which remotes an entity of cilium.io/v2 stands for, by identity number (bpf/abi.h, IDENTITY_*)."""

from __future__ import annotations

from collections.abc import Mapping

from policies.model import Entity, EntityPeer, RemoteClass

WORLD, WORLD_IPV4, WORLD_IPV6 = 2, 9, 10
APISERVER = 7
"""An address of the API server that is no node's and no pod's: of the cluster, and of the world, as for Cilium."""
CLUSTER_IDENTITIES = range(256, 65536)
LOCAL_MIN = (1 << 24) + 1
"""From here on: numbers a node gives to blocks and names outside the cluster."""

SINGLE: Mapping[Entity, int] = {
    Entity.HOST: 1,
    Entity.UNMANAGED: 3,
    Entity.HEALTH: 4,
    Entity.INIT: 5,
    Entity.REMOTE_NODE: 6,
    Entity.KUBE_APISERVER: APISERVER,
    Entity.INGRESS: 8,
}
"""Entities of one number. All of them are of the cluster, too."""

Entities = frozenset[EntityPeer]


def _peers(*entities: Entity) -> Entities:
    return frozenset(map(EntityPeer, entities))


NOTHING = _peers()
POD = _peers(Entity.CLUSTER)
OUTSIDE = _peers(Entity.WORLD)
OUTSIDE_IPV4 = _peers(Entity.WORLD, Entity.WORLD_IPV4)
OUTSIDE_IPV6 = _peers(Entity.WORLD, Entity.WORLD_IPV6)

_RESERVED: Mapping[int, Entities] = {
    **{number: _peers(entity, Entity.CLUSTER) for entity, number in SINGLE.items()},
    WORLD_IPV4: OUTSIDE_IPV4,
    WORLD_IPV6: OUTSIDE_IPV6,
}


def entities_of(remote: RemoteClass) -> Entities:
    """Entities a class is one of. The family of an address outside is told by its identity, or by its prefixes."""
    identity = remote.identity
    if identity == APISERVER:
        return _RESERVED[identity] | _outside(remote)
    if (known := _RESERVED.get(identity)) is not None:
        return known
    if identity in CLUSTER_IDENTITIES:
        return POD
    return _outside(remote) if is_outside(identity) else NOTHING


def _outside(remote: RemoteClass) -> Entities:
    for prefix in remote.prefixes:
        return OUTSIDE_IPV4 if prefix.is_v4 else OUTSIDE_IPV6
    return OUTSIDE


def is_outside(identity: int) -> bool:
    """Whether an address with it is outside the cluster."""
    return identity >= LOCAL_MIN or identity in (WORLD, WORLD_IPV4, WORLD_IPV6, APISERVER)
