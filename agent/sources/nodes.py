"""Node documents → objects (core/v1): where other nodes are, and in which zones."""

from __future__ import annotations

from collections.abc import Sequence
from sys import intern

from agent.objects import Node
from agent.sources import schema
from agent.sources.addresses import address_of, block_of, is_special
from agent.sources.findings import Findings, labels, reference
from policies.address import Prefix
from policies.model import Origin

ZONE_LABEL = "topology.kubernetes.io/zone"
ADDRESS_TYPES = ("InternalIP", "ExternalIP")
LEAVING = "ToBeDeletedByClusterAutoscaler"
"""Taint of a node that is about to be removed (KEP-3836)."""


def node(doc: schema.NodeDoc, origin: Origin, findings: Findings) -> Node:
    """Host names among the addresses are passed over. An address that many have, such as a loopback one, is refused:
    traffic of all who have it would be taken for a node's."""
    ref = reference("Node", doc.metadata, findings)
    given = labels("metadata.labels", doc.metadata.labels, findings)
    spec, status = doc.spec or schema.NodeSpec(), doc.status or schema.NodeStatus()
    return Node(
        ref,
        origin,
        addresses=_addresses(status.addresses or (), findings),
        pod_cidrs=_pod_cidrs(spec, findings),
        zone=intern(given.get(ZONE_LABEL, "")),
        labels=given,
        leaving=doc.metadata.deletion_timestamp is not None or any(t.key == LEAVING for t in spec.taints or ()),
    )


def _addresses(given: Sequence[schema.NodeAddress], findings: Findings) -> tuple[bytes, ...]:
    """Each once, in their order: the same one may be the node's inside and outside."""
    found: dict[bytes, None] = {}
    for index, one in enumerate(given):
        path = f"status.addresses[{index}].address"
        if one.type not in ADDRESS_TYPES:
            continue
        address = address_of(path, one.address or "", findings)
        if address is not None and is_special(address):
            findings.error(path, f"{one.address!r} is no address by which other machines know one node")
        elif address is not None:
            found[address] = None
    return tuple(found)


def _pod_cidrs(spec: schema.NodeSpec, findings: Findings) -> tuple[Prefix, ...]:
    """At most one of each family, the first equal to podCIDR where both are given, as core ValidateNode has it."""
    given = [(f"spec.podCIDRs[{i}]", text) for i, text in enumerate(spec.pod_cidrs or ())]
    if spec.pod_cidr and not given:
        given = [("spec.podCIDR", spec.pod_cidr)]
    elif spec.pod_cidr and given[0][1] != spec.pod_cidr:
        findings.error("spec.podCIDR", f"must be the first of spec.podCIDRs, {given[0][1]!r}")
    blocks: list[Prefix] = []
    for path, text in given:
        block = block_of(path, text, findings)
        if block is not None and any(block.is_v4 == other.is_v4 for other in blocks):
            findings.error(path, "a node has at most one block of each family")
        elif block is not None:
            blocks.append(block)
    return tuple(blocks)
