"""What the world must know of the node it is seen from."""

from __future__ import annotations

import msgspec

from policies.address import Prefix


class NodeConfig(msgspec.Struct, frozen=True):
    """At most one block a family in `pod_cidrs` and `service_cidrs`. For label patterns see LabelFilter."""

    name: str
    pod_cidrs: tuple[Prefix, ...]
    service_cidrs: tuple[Prefix, ...] = ()
    addresses: tuple[bytes, ...] = ()
    labels_include: tuple[str, ...] = ()
    labels_exclude: tuple[str, ...] = ()
    implicit_namespaces: bool = True
    """A namespace that no manifest declares has the label kubernetes.io/metadata.name once it has a pod. False, where
    an API server declares every namespace: until it does, no namespaceSelector matches its pods."""
