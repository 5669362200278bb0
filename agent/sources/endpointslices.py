"""EndpointSlice (discovery/v1) documents → objects, checked as the API server checks them."""

from __future__ import annotations

from collections.abc import Sequence
from socket import AF_INET, AF_INET6, inet_pton
from sys import intern

import msgspec

from agent.objects import Endpoints, EndpointSlice, SliceEndpoint, SlicePort
from agent.sources import schema
from agent.sources.addresses import address_of, is_special
from agent.sources.findings import (
    Check,
    Findings,
    check_labels,
    dns_label,
    dns_subdomain,
    port_number,
    protocol,
    reference,
    shared,
)
from agent.sources.services import FAMILIES, is_proxied
from policies.address import V4_MAPPED, is_v4
from policies.model import Origin
from policies.syntax import label_value_problem

SERVICE_LABEL = "kubernetes.io/service-name"
MAX_ENDPOINTS = 1000
MAX_ENDPOINT_ADDRESSES = 100
MAX_HINTS = 8


def endpoint_slice(doc: schema.EndpointSliceDoc, origin: Origin, findings: Findings) -> EndpointSlice:
    """A slice of host names (addressType FQDN) is valid and has no endpoints that could be used: a warning."""
    ref = reference("EndpointSlice", doc.metadata, findings)
    given = doc.metadata.labels or {}
    check_labels("metadata.labels", doc.metadata.labels, findings)
    family = doc.address_type
    endpoints: Sequence[schema.Endpoint] = doc.endpoints or ()
    if family == "FQDN":
        findings.warn("addressType", "FQDN endpoints are not handled: the slice has no endpoints")
        endpoints = ()
    elif family not in FAMILIES:
        findings.error("addressType", "must be IPv4, IPv6 or FQDN" + (f", not {family!r}" if family else ""))
        endpoints = ()
    if len(endpoints) > MAX_ENDPOINTS:
        findings.error("endpoints", f"must be at most {MAX_ENDPOINTS}")
    return EndpointSlice(
        ref,
        origin,
        service=intern(given.get(SERVICE_LABEL, "")),
        ports=_slice_ports(doc.ports or (), findings),
        endpoints=_endpoints(endpoints, family == "IPv4", findings) if endpoints else (),
        proxied=is_proxied(doc.metadata),
    )


def _endpoints(given: Sequence[schema.Endpoint], v4: bool, findings: Findings) -> Endpoints | tuple[SliceEndpoint, ...]:
    """At least one. Nearly all have one address; their kinds are shared, as many slices list the same pods."""
    kinds = [_kind(index, one, findings) for index, one in enumerate(given)]
    if (only := _only_addresses(given, v4)) is not None:
        packed = Endpoints.of(only, kinds)
        return Endpoints(packed.addresses, shared(packed.kinds))
    addresses = [_addresses(index, one.addresses or (), v4, findings) for index, one in enumerate(given)]
    both = zip(kinds, addresses, strict=True)
    return tuple([msgspec.structs.replace(kind, addresses=tuple(some)) for kind, some in both])


def _only_addresses(given: Sequence[schema.Endpoint], v4: bool) -> list[bytes] | None:
    """Of endpoints that all have one address, a good one. There may be 250,000, and hardly any others."""
    found: list[bytes] = []
    for one in given:
        texts = one.addresses
        address = _usable(texts[0], v4) if texts is not None and len(texts) == 1 else None
        if address is None:
            return None
        found.append(address)
    return found


def _addresses(index: int, texts: Sequence[str], v4: bool, findings: Findings) -> list[bytes]:
    found = [_usable(text, v4) or _refuse(index, i, text, v4, findings) for i, text in enumerate(texts)]
    if not 1 <= len(found) <= MAX_ENDPOINT_ADDRESSES:
        findings.error(f"endpoints[{index}].addresses", f"must be 1–{MAX_ENDPOINT_ADDRESSES} addresses")
    return found


def _kind(index: int, given: schema.Endpoint, findings: Findings) -> SliceEndpoint:
    """All but its addresses."""
    if given.conditions is None and given.hints is None and not given.node_name:
        return PLAIN
    conditions = given.conditions or _DEFAULT_CONDITIONS
    zones, nodes = _hints(index, given.hints, findings) if given.hints is not None else ((), ())
    return shared(
        SliceEndpoint(
            (),
            conditions.ready is not False,
            conditions.serving is not False,
            conditions.terminating is True,
            intern(given.node_name) if given.node_name else "",
            zones,
            nodes,
        )
    )


_DEFAULT_CONDITIONS = schema.EndpointConditions()
PLAIN = SliceEndpoint(())
"""One for all of which nothing is said."""


def _hints(index: int, given: schema.Hints, findings: Findings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Zones and nodes whose clients this endpoint is for."""
    path = f"endpoints[{index}].hints"
    return (
        _names(f"{path}.forZones", given.for_zones or (), label_value_problem, findings),
        _names(f"{path}.forNodes", given.for_nodes or (), dns_subdomain, findings),
    )


def _names(path: str, given: Sequence[schema.Named], check: Check, findings: Findings) -> tuple[str, ...]:
    if len(given) > MAX_HINTS:
        findings.error(path, f"must be at most {MAX_HINTS}")
    names: list[str] = []
    for index, one in enumerate(given):
        where, name = f"{path}[{index}].name", one.name or ""
        if not name:
            findings.error(where, "must be given")
        elif name in names:
            findings.error(where, f"{name!r} is given twice")
        else:
            findings.check(where, name, check)
        names.append(intern(name))
    return shared(tuple(names))


def _usable(text: str, v4: bool) -> bytes | None:
    """16 bytes; None unless it is of the family and no address that an endpoint must not have."""
    try:
        address = V4_MAPPED + inet_pton(AF_INET, text) if v4 else inet_pton(AF_INET6, text)
    except (OSError, ValueError):
        return None
    return None if is_special(address) or (not v4 and is_v4(address)) else address


def _refuse(index: int, position: int, text: str, v4: bool, findings: Findings) -> bytes:
    path = f"endpoints[{index}].addresses[{position}]"
    address = address_of(path, text, findings)
    if address is not None and is_v4(address) is not v4:
        findings.error(path, f"{text!r} is not of the slice's addressType")
    elif address is not None:
        findings.error(path, f"{text!r} must not be an unspecified, loopback, link-local or multicast address")
    return b""


def _slice_ports(given: Sequence[schema.SlicePort], findings: Findings) -> tuple[SlicePort, ...]:
    """A port without a number means all ports, which a service cannot use: it is left out, with a warning."""
    ports: list[SlicePort] = []
    names: set[str] = set()
    for index, port in enumerate(given):
        path = f"ports[{index}]"
        name = port.name or ""
        if name:
            findings.check(f"{path}.name", name, dns_label)
        if name in names:
            findings.error(f"{path}.name", f"two ports are called {name!r}")
        names.add(name)
        proto = protocol(f"{path}.protocol", port.protocol, findings)
        if port.port is None:
            findings.warn(f"{path}.port", "a port without a number is not handled: it is left out")
            continue
        ports.append(SlicePort(intern(name), proto, port_number(f"{path}.port", port.port, findings)))
    return shared(tuple(ports))
