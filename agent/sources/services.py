"""Service (core/v1) documents → objects, checked as the API server checks them."""

from __future__ import annotations

from collections.abc import Sequence
from sys import intern

from agent.objects import Service, ServicePort
from agent.sources import schema
from agent.sources.addresses import one_a_family
from agent.sources.exposure import exposure
from agent.sources.findings import (
    Findings,
    dns_label,
    labels,
    port_name,
    port_number,
    protocol,
    reference,
    shared,
)
from policies.address import is_v4
from policies.model import Origin, Protocol

SERVICE_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
FAMILIES = ("IPv4", "IPv6")
FAMILY_POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")
NOT_PROXIED = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")
"""Labels, of services and slices, by which these are another's to serve, or nobody's; whatever their value."""


def service(doc: schema.ServiceDoc, origin: Origin, findings: Findings) -> Service:
    """An empty selector is none: the endpoints come from slices alone."""
    ref = reference("Service", doc.metadata, findings)
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
        ports=_service_ports(spec.ports or (), kind, findings),
        families=_families(spec, addresses, findings),
        publish_not_ready=bool(spec.publish_not_ready_addresses),
        exposure=exposure(doc, kind, findings),
        proxied=is_proxied(doc.metadata),
        labels=labels("metadata.labels", doc.metadata.labels, findings),
    )


def is_proxied(meta: schema.Metadata) -> bool:
    return not meta.labels or not any(label in meta.labels for label in NOT_PROXIED)


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
    return False, one_a_family(where, "service", findings)


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
        return shared(families)
    return shared(tuple("IPv4" if is_v4(address) else "IPv6" for address in addresses))


def _service_ports(given: Sequence[schema.ServicePort], kind: str, findings: Findings) -> tuple[ServicePort, ...]:
    ports: list[ServicePort] = []
    names: set[str] = set()
    numbers: set[tuple[int, int]] = set()
    on_nodes: set[tuple[int, int]] = set()
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
        node_port = _node_port(f"{path}.nodePort", port.node_port, kind, findings)
        if node_port and (proto, node_port) in on_nodes:
            findings.error(f"{path}.nodePort", f"{Protocol.BY_NUMBER.get(proto, '')} port {node_port} is given twice")
        on_nodes.add((proto, node_port))
        ports.append(ServicePort(intern(name), proto, number, target, node_port))
    return shared(tuple(ports))


def _node_port(path: str, given: int | None, kind: str, findings: Findings) -> int:
    """Whether it is in the cluster's range is for the World to say."""
    if not given or kind == "ExternalName":
        return 0
    if kind == "ClusterIP":
        findings.error(path, "must not be given where the type is ClusterIP")
        return 0
    return port_number(path, given, findings)


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
