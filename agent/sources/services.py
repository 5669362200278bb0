"""Service (core/v1) and EndpointSlice (discovery/v1) documents → objects, checked as the API server checks them."""

from __future__ import annotations

from collections.abc import Sequence
from sys import intern

from agent.objects import EndpointSlice, Service, ServicePort, SliceEndpoint, SlicePort
from agent.sources import schema
from agent.sources.findings import (
    Findings,
    check_labels,
    dns_label,
    labels,
    port_name,
    port_number,
    protocol,
    reference,
)
from agent.sources.pods import address_of
from policies.address import is_v4, parse_address
from policies.model import Origin, Protocol

SERVICE_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
FAMILIES = ("IPv4", "IPv6")
FAMILY_POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")
SERVICE_LABEL = "kubernetes.io/service-name"
MAX_ENDPOINTS = 1000
MAX_ENDPOINT_ADDRESSES = 100


def service(doc: schema.ServiceDoc, origin: Origin, findings: Findings) -> Service:
    """An empty selector is none: the endpoints come from slices alone."""
    ref = reference("Service", doc.metadata, findings)
    check_labels("metadata.labels", doc.metadata.labels, findings)
    spec = doc.spec or schema.ServiceSpec()
    kind = spec.type or "ClusterIP"
    if kind not in SERVICE_TYPES:
        findings.error("spec.type", f"must be one of {', '.join(SERVICE_TYPES)}, not {kind!r}")
    headless, addresses = _cluster_ips(spec, kind, findings)
    if not spec.ports and not headless and kind != "ExternalName":
        findings.error("spec.ports", "must have at least one port")
    return Service(
        ref,
        origin,
        type=intern(kind),
        selector=labels("spec.selector", spec.selector, findings) or None,
        addresses=addresses,
        headless=headless,
        ports=_service_ports(spec.ports or (), findings),
        families=_families(spec, addresses, findings),
        publish_not_ready=bool(spec.publish_not_ready_addresses),
    )


def _cluster_ips(spec: schema.ServiceSpec, kind: str, findings: Findings) -> tuple[bool, tuple[bytes, ...]]:
    """(headless, addresses) of clusterIP and clusterIPs, which must agree."""
    given = list(enumerate(spec.cluster_ips or ()))
    if spec.cluster_ip and given and given[0][1] != spec.cluster_ip:
        findings.error("spec.clusterIPs[0]", f"must be spec.clusterIP, {spec.cluster_ip!r}")
    where = [(f"spec.clusterIPs[{i}]", text) for i, text in given] or [("spec.clusterIP", spec.cluster_ip or "")]
    if where[0][1] == "" and not given:
        return False, ()
    if kind == "ExternalName":
        findings.error(where[0][0], "must not be given where the type is ExternalName")
    if where[0][1] == "None":
        if len(where) > 1:
            findings.error(where[1][0], "must not be given for a headless service")
        if kind not in ("ClusterIP", "ExternalName"):
            findings.error(where[0][0], f"must not be None where the type is {kind}")
        return True, ()
    addresses: list[bytes] = []
    for path, text in where:
        address = address_of(path, text, findings)
        if address is not None and any(is_v4(address) == is_v4(other) for other in addresses):
            findings.error(path, "a service has at most one address of each family")
        elif address is not None:
            addresses.append(address)
    return False, tuple(addresses)


def _families(spec: schema.ServiceSpec, addresses: tuple[bytes, ...], findings: Findings) -> tuple[str, ...]:
    if spec.ip_family_policy is not None and spec.ip_family_policy not in FAMILY_POLICIES:
        findings.error("spec.ipFamilyPolicy", f"must be one of {', '.join(FAMILY_POLICIES)}")
    families = tuple(intern(family) for family in spec.ip_families or ())
    for index, family in enumerate(families):
        path = f"spec.ipFamilies[{index}]"
        if family not in FAMILIES:
            findings.error(path, f"must be IPv4 or IPv6, not {family!r}")
        elif family in families[:index]:
            findings.error(path, f"{family} is given twice")
        elif index < len(addresses) and is_v4(addresses[index]) != (family == "IPv4"):
            findings.error(path, "must be the family of the cluster address in the same place")
    if families or not addresses:
        return families
    return tuple("IPv4" if is_v4(address) else "IPv6" for address in addresses)


def _service_ports(given: Sequence[schema.ServicePort], findings: Findings) -> tuple[ServicePort, ...]:
    ports: list[ServicePort] = []
    names: set[str] = set()
    numbers: set[tuple[int, int]] = set()
    for index, port in enumerate(given):
        path = f"spec.ports[{index}]"
        name = port.name or ""
        if name:
            findings.check(f"{path}.name", name, dns_label)
        elif len(given) > 1:
            findings.error(f"{path}.name", "must be given where a service has several ports")
        if name and name in names:
            findings.error(f"{path}.name", f"two ports are called {name!r}")
        names.add(name)
        number = port_number(f"{path}.port", port.port, findings)
        proto = protocol(f"{path}.protocol", port.protocol, findings)
        if number and proto and (proto, number) in numbers:
            findings.error(f"{path}.port", f"{Protocol.BY_NUMBER[proto]} port {number} is given twice")
        numbers.add((proto, number))
        target = _target(f"{path}.targetPort", port.target_port, number, findings)
        ports.append(ServicePort(intern(name), proto, number, target))
    return tuple(ports)


def _target(path: str, given: int | str | None, port: int, findings: Findings) -> int | str:
    """spec.ports[].targetPort; the port itself where it is left out, 0 or empty."""
    if not given:
        return port
    if isinstance(given, int):
        return port_number(path, given, findings)
    if given.isdigit():
        findings.error(path, "a port number must not be in quotes")
    else:
        findings.check(path, given, port_name)
    return intern(given)


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
        endpoints=tuple([_endpoint(i, e, family == "IPv4", findings) for i, e in enumerate(endpoints)]),
    )


def _endpoint(index: int, given: schema.Endpoint, v4: bool, findings: Findings) -> SliceEndpoint:
    texts = given.addresses or ()
    addresses = tuple([_usable(text, v4) or _refuse(index, i, text, v4, findings) for i, text in enumerate(texts)])
    if not 1 <= len(addresses) <= MAX_ENDPOINT_ADDRESSES:
        findings.error(f"endpoints[{index}].addresses", f"must be 1–{MAX_ENDPOINT_ADDRESSES} addresses")
    conditions = given.conditions
    node = intern(given.node_name) if given.node_name else ""
    if conditions is None:
        return SliceEndpoint(addresses, node=node)
    return SliceEndpoint(
        addresses, conditions.ready is not False, conditions.serving is not False, conditions.terminating is True, node
    )


def _usable(text: str, v4: bool) -> bytes | None:
    """16 bytes; None unless it is of the family and no address that an endpoint must not have."""
    try:
        address = parse_address(text)
    except ValueError:
        return None
    return None if is_v4(address) is not v4 or (":" in text) is v4 or _is_special(address) else address


def _refuse(index: int, position: int, text: str, v4: bool, findings: Findings) -> bytes:
    path = f"endpoints[{index}].addresses[{position}]"
    address = address_of(path, text, findings)
    if address is not None and is_v4(address) is not v4:
        findings.error(path, f"{text!r} is not of the slice's addressType")
    elif address is not None:
        findings.error(path, f"{text!r} must not be an unspecified, loopback, link-local or multicast address")
    return b""


def _is_special(address: bytes) -> bool:
    """What core ValidateEndpointIP refuses, so that no service can lead to the node's own loopback."""
    if address[0] == 0:
        if not is_v4(address):
            return address[:15] == bytes(15) and address[15] <= 1
        first = address[12]
        if first not in _SPECIAL_V4:
            return False
        return address[12:14] == b"\xa9\xfe" if first == 0xA9 else first != 0 or address[12:] == bytes(4)
    return address[0] == 0xFF or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


_SPECIAL_V4 = frozenset((0, 127, 0xA9, *range(224, 240)))


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
    return tuple(ports)
