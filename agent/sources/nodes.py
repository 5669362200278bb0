"""Node documents → objects (core/v1): where other nodes are, and in which zones."""

from __future__ import annotations

from collections.abc import Iterator
from sys import intern

from agent.objects import Node
from agent.sources import schema
from agent.sources.addresses import block_of, of_one_node
from agent.sources.findings import Findings, labels, reference
from policies.address import Prefix
from policies.model import Origin

ZONE_LABEL = "topology.kubernetes.io/zone"
ADDRESS_TYPES = ("InternalIP", "ExternalIP")
LEAVING = "ToBeDeletedByClusterAutoscaler"
"""Taint of a node that is about to be removed (KEP-3836)."""


def node(doc: schema.NodeDoc, origin: Origin, findings: Findings) -> Node:
    """Host names among the addresses are passed over."""
    ref = reference("Node", doc.metadata, findings)
    given = labels("metadata.labels", doc.metadata.labels, findings)
    spec, status = doc.spec or schema.NodeSpec(), doc.status or schema.NodeStatus()
    return Node(
        ref,
        origin,
        addresses=of_one_node(_addresses(status), findings),
        pod_cidrs=_pod_cidrs(spec, findings),
        zone=intern(given.get(ZONE_LABEL, "")),
        labels=given,
        leaving=doc.metadata.deletion_timestamp is not None or any(t.key == LEAVING for t in spec.taints or ()),
    )


def _addresses(status: schema.NodeStatus) -> Iterator[tuple[str, str]]:
    """The same one may be the node's inside and outside."""
    for index, one in enumerate(status.addresses or ()):
        if one.type in ADDRESS_TYPES:
            yield f"status.addresses[{index}].address", one.address or ""


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
