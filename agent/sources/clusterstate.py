"""Documents of gatehouse.io/v1alpha1 → objects: what the parts of a cluster tell each other."""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Sequence
from sys import intern

import msgspec

from agent.objects import DeclaredPort, NodeEndpoint, NodeEndpoints, SecurityIdentity
from agent.sources import schema
from agent.sources.addresses import block_of, of_one_node, one_a_family
from agent.sources.documents import JsonSource, YamlSource
from agent.sources.explain import type_error
from agent.sources.findings import (
    Findings,
    dns_label,
    dns_subdomain,
    labels,
    port_name,
    port_number,
    protocol,
    reference,
    shared,
)
from agent.world.config import FIRST_IDENTITY, LAST_IDENTITY
from policies.address import Prefix
from policies.model import SERVICE_ACCOUNT, ObjectRef, Origin

UNUSED_SINCE = "gatehouse.io/unused-since"
"""Annotation of a SecurityIdentity that is about to be collected."""
KEY_BYTES = 32

_NUMBER = re.compile(r"[1-9][0-9]{2,4}")
_DIGEST = re.compile(r"[0-9a-f]{16}")


def security_identity(doc: schema.SecurityIdentityDoc, origin: Origin, findings: Findings) -> SecurityIdentity:
    ref = reference("SecurityIdentity", doc.metadata, findings)
    number = int(ref.name) if _NUMBER.fullmatch(ref.name) else 0
    if ref.name and not FIRST_IDENTITY <= number <= LAST_IDENTITY:
        findings.error(
            "metadata.name", f"must be the identity's number, {FIRST_IDENTITY}-{LAST_IDENTITY}, not {ref.name!r}"
        )
    spec = doc.spec or schema.SecurityIdentitySpec()
    for path, text, check in (
        ("spec.namespace", spec.namespace, dns_label),
        ("spec.serviceAccount", spec.service_account, dns_subdomain),
    ):
        if not text:
            findings.error(path, "must be given")
        else:
            findings.check(path, text, check)
    given = labels("spec.labels", spec.labels, findings)
    if SERVICE_ACCOUNT in given:
        findings.error(f"spec.labels[{SERVICE_ACCOUNT}]", "must not be given: spec.serviceAccount says it")
    return SecurityIdentity(
        ref,
        origin,
        number,
        intern(spec.namespace or ""),
        intern(spec.service_account or ""),
        given,
        (doc.metadata.annotations or {}).get(UNUSED_SINCE, ""),
    )


def node_endpoints(source: JsonSource | YamlSource, origin: Origin, findings: Findings) -> NodeEndpoints:
    """An endpoint that is not valid is left out with a warning: its addresses are nobody's, which is denied, and the
    others of its node are as they were. Raises msgspec.ValidationError."""
    meta, spec, given = _read(source, findings)
    return NodeEndpoints(
        reference("NodeEndpoints", meta, findings),
        origin,
        of_one_node(_placed("spec.addresses", spec.addresses or ()), findings),
        _blocks(spec.pod_cidrs or (), findings),
        _endpoints(given, findings),
        _public_key("spec.publicKey", spec.public_key or "", findings),
        _public_key("spec.nextPublicKey", spec.next_public_key or "", findings),
    )


Given = Sequence[tuple[int, schema.NodeEndpoint]]
"""Endpoints with their places in the document."""


def _read(
    source: JsonSource | YamlSource, findings: Findings
) -> tuple[schema.Metadata, schema.NodeEndpointsHead, Given]:
    """Where an endpoint has a field of another type, each is read by itself."""
    try:
        doc = source.convert(schema.NodeEndpointsDoc)
    except msgspec.ValidationError:
        return _read_each(source.convert(schema.LooseEndpointsDoc), findings)
    spec = doc.spec or schema.NodeEndpointsSpec()
    return doc.metadata, spec, list(enumerate(spec.endpoints or ()))


def _read_each(
    doc: schema.LooseEndpointsDoc, findings: Findings
) -> tuple[schema.Metadata, schema.NodeEndpointsHead, Given]:
    spec = doc.spec or schema.LooseEndpointsSpec()
    given: list[tuple[int, schema.NodeEndpoint]] = []
    for index, one in enumerate(spec.endpoints or ()):
        try:
            given.append((index, msgspec.convert(one, schema.NodeEndpoint)))
        except msgspec.ValidationError as error:
            path, message = type_error(error, one)
            findings.warn(".".join(filter(None, (f"spec.endpoints[{index}]", path))), message)
    return doc.metadata, spec, given


def _blocks(given: Sequence[str], findings: Findings) -> tuple[Prefix, ...]:
    """A node may have several of a family: blocks of a pool."""
    blocks: list[Prefix] = []
    for path, text in _placed("spec.podCIDRs", given):
        block = block_of(path, text, findings)
        if block is None:
            continue
        if any(block.covers(other) or other.covers(block) for other in blocks):
            findings.error(path, f"{text} overlaps another block of the node")
        else:
            blocks.append(block)
    return tuple(blocks)


def _public_key(path: str, text: str, findings: Findings) -> bytes:
    """An object with a key that cannot be used is refused: without one its node would be sent plain text."""
    if not text:
        return b""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        findings.error(path, f"must be the base64 of {KEY_BYTES} bytes")
    return key


# ---- endpoints


def _endpoints(given: Given, findings: Findings) -> tuple[NodeEndpoint, ...]:
    """Of endpoints that share an address or a pod's name nobody can say whose it is: none is taken."""
    read: list[tuple[int, NodeEndpoint]] = []
    for index, one in given:
        own = Findings()
        endpoint = _endpoint(one, own)
        for path, message in own.errors:
            findings.warn(f"spec.endpoints[{index}].{path}", message)
        if not own.errors:
            read.append((index, endpoint))
    addresses = Counter(address for _, one in read for address in one.addresses)
    names = Counter(one.pod for _, one in read)
    found: list[NodeEndpoint] = []
    for index, endpoint in read:
        if names[endpoint.pod] > 1:
            findings.warn(f"spec.endpoints[{index}].pod", "is given twice: neither is taken")
        elif any(addresses[address] > 1 for address in endpoint.addresses):
            findings.warn(f"spec.endpoints[{index}].ips", "an address is given twice: no pod has it")
        else:
            found.append(endpoint)
    return tuple(found)


def _endpoint(given: schema.NodeEndpoint, findings: Findings) -> NodeEndpoint:
    identity, digest = given.identity or 0, given.digest or ""
    if not FIRST_IDENTITY <= identity <= LAST_IDENTITY:
        findings.error("identity", f"must be {FIRST_IDENTITY}-{LAST_IDENTITY}, not {identity}")
    if not _DIGEST.fullmatch(digest):
        findings.error("digest", "must be 16 hexadecimal digits in lower case")
    return NodeEndpoint(
        _pod(given.pod or "", findings),
        _addresses(given.ips or (), findings),
        identity,
        intern(digest),
        _ports(given.ports, findings) if given.ports else (),
    )


def _pod(text: str, findings: Findings) -> ObjectRef:
    namespace, _, name = text.partition("/")
    if problem := dns_label(namespace) or dns_subdomain(name):
        findings.error("pod", f"must be NAMESPACE/NAME: {problem}")
    return ObjectRef("Pod", intern(namespace), name)


def _addresses(given: Sequence[str], findings: Findings) -> tuple[bytes, ...]:
    """At least one."""
    if not given:
        findings.error("ips", "must be given")
    return one_a_family(_placed("ips", given), "pod", findings, special=False)


def _placed(path: str, given: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"{path}[{index}]", text) for index, text in enumerate(given)]


def _ports(given: Sequence[schema.SlicePort], findings: Findings) -> tuple[DeclaredPort, ...]:
    ports: list[DeclaredPort] = []
    for index, port in enumerate(given):
        path = f"ports[{index}]"
        findings.check(f"{path}.name", port.name or "", port_name)
        kind = protocol(f"{path}.protocol", port.protocol, findings)
        ports.append(DeclaredPort(intern(port.name or ""), kind, port_number(f"{path}.port", port.port, findings)))
    return shared(tuple(ports))
