"""How a Service (core/v1) is reached from where, as its manifest says: checked as the API server checks it."""

from __future__ import annotations

from collections.abc import Mapping
from sys import intern

from agent.objects import Exposure
from agent.sources import schema
from agent.sources.addresses import address_of, block_of, is_special
from agent.sources.findings import Findings, port_number
from policies.address import Prefix

POLICIES = ("Cluster", "Local")
AFFINITIES = ("None", "ClientIP")
DEFAULT_AFFINITY_S = 10800
MAX_AFFINITY_S = 86400
IP_MODES = ("VIP", "Proxy")
DISTRIBUTIONS = {
    "PreferClose": "PreferSameZone",  # the older name of the same (KEP-4444, KEP-3015)
    "PreferSameZone": "PreferSameZone",
    "PreferSameNode": "PreferSameNode",
}
SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
TOPOLOGY = ("service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints")
ALGORITHM = "gatehouse.io/algorithm"
FORWARDING = "gatehouse.io/forwarding"
CHOICES = {ALGORITHM: ("random", "maglev"), FORWARDING: ("snat", "dsr", "hybrid")}
KUBELET_PORT = 10250

NO_ANNOTATIONS: dict[str, str] = {}
PLAIN = Exposure()
"""One for all services that leave everything at its defaults."""


def exposure(doc: schema.ServiceDoc, kind: str, findings: Findings) -> Exposure:
    """Of a service of this type (spec.type, defaulted)."""
    spec = doc.spec or schema.ServiceSpec()
    annotations = doc.metadata.annotations or NO_ANNOTATIONS
    if kind == "ClusterIP" and not annotations and not _says_anything(spec):
        return PLAIN
    external_ips = _external_ips(spec, findings)
    reachable = kind in ("NodePort", "LoadBalancer") or (kind == "ClusterIP" and bool(spec.external_ips))
    external_local = _external_local(spec, kind, reachable, findings)
    if spec.allocate_load_balancer_node_ports is not None and kind != "LoadBalancer":
        findings.error("spec.allocateLoadBalancerNodePorts", f"must not be given where the type is {kind}")
    if kind == "LoadBalancer":
        _check_kubelet_port(spec, findings)
    found = Exposure(
        external_ips=() if kind == "ExternalName" else external_ips,
        balancer_ips=_balancer_ips(doc, findings) if kind == "LoadBalancer" else (),
        source_ranges=_source_ranges(spec, annotations, kind, findings),
        internal_local=_is_local("spec.internalTrafficPolicy", spec.internal_traffic_policy, findings),
        external_local=external_local,
        health_node_port=_health_port(spec, kind, external_local, findings),
        affinity_timeout_s=_affinity(spec, findings),
        distribution=_distribution(spec, annotations, findings),
        allocates_node_ports=spec.allocate_load_balancer_node_ports is not False,
        algorithm=_choice(ALGORITHM, annotations, findings),
        forwarding=_choice(FORWARDING, annotations, findings),
    )
    return PLAIN if found == PLAIN else found


def _says_anything(spec: schema.ServiceSpec) -> bool:
    """Whether any field that is looked at here is given. Of most services none is."""
    return (
        spec.external_ips is not None
        or spec.load_balancer_source_ranges is not None
        or spec.internal_traffic_policy is not None
        or spec.external_traffic_policy is not None
        or spec.health_check_node_port is not None
        or spec.session_affinity is not None
        or spec.session_affinity_config is not None
        or spec.traffic_distribution is not None
        or spec.allocate_load_balancer_node_ports is not None
    )


def _address(path: str, text: str, findings: Findings) -> bytes | None:
    """None that could be the node's own loopback or reach only one link (core ValidateNonSpecialIP)."""
    address = address_of(path, text, findings)
    if address is not None and is_special(address):
        findings.error(path, f"{text!r} must not be an unspecified, loopback, link-local or multicast address")
        return None
    return address


def _external_ips(spec: schema.ServiceSpec, findings: Findings) -> tuple[bytes, ...]:
    given = [_address(f"spec.externalIPs[{i}]", text, findings) for i, text in enumerate(spec.external_ips or ())]
    return tuple(dict.fromkeys(address for address in given if address is not None))


def _balancer_ips(doc: schema.ServiceDoc, findings: Findings) -> tuple[bytes, ...]:
    """status.loadBalancer.ingress of ipMode VIP (KEP-1860). To those of mode Proxy packets are to go as they are."""
    status = doc.status.load_balancer if doc.status is not None else None
    found: dict[bytes, None] = {}
    for index, ingress in enumerate(status.ingress or () if status is not None else ()):
        path = f"status.loadBalancer.ingress[{index}]"
        if ingress.ip_mode is not None and ingress.ip_mode not in IP_MODES:
            findings.error(f"{path}.ipMode", f"must be VIP or Proxy, not {ingress.ip_mode!r}")
        address = _address(f"{path}.ip", ingress.ip, findings) if ingress.ip else None
        if address is not None and ingress.ip_mode != "Proxy":
            found[address] = None
    return tuple(found)


def _source_ranges(
    spec: schema.ServiceSpec, annotations: Mapping[str, str], kind: str, findings: Findings
) -> tuple[Prefix, ...]:
    """spec.loadBalancerSourceRanges, or the annotation that came before it; the field wins where both are given."""
    path = "spec.loadBalancerSourceRanges"
    ranges = [(f"{path}[{index}]", text) for index, text in enumerate(spec.load_balancer_source_ranges or ())]
    if not ranges and annotations.get(SOURCE_RANGES, "").strip():
        path = f"metadata.annotations[{SOURCE_RANGES}]"
        ranges = [(path, text) for text in annotations[SOURCE_RANGES].split(",")]
    if ranges and kind != "LoadBalancer":
        findings.error(path, "must not be given unless the type is LoadBalancer")
    blocks = [block_of(where, text.strip(), findings) for where, text in ranges]
    return tuple(sorted({block for block in blocks if block is not None}))


def _is_local(path: str, given: str | None, findings: Findings) -> bool:
    if given is not None and given not in POLICIES:
        findings.error(path, f"must be Cluster or Local, not {given!r}")
    return given == "Local"


def _external_local(spec: schema.ServiceSpec, kind: str, reachable: bool, findings: Findings) -> bool:
    if spec.external_traffic_policy and not reachable:
        findings.error(
            "spec.externalTrafficPolicy",
            f"must not be given where the type is {kind} and there are no externalIPs: nothing outside reaches it",
        )
    return _is_local("spec.externalTrafficPolicy", spec.external_traffic_policy or None, findings)


def _health_port(spec: schema.ServiceSpec, kind: str, external_local: bool, findings: Findings) -> int:
    if not spec.health_check_node_port:
        return 0
    if kind != "LoadBalancer" or not external_local:
        findings.error(
            "spec.healthCheckNodePort",
            "must not be given unless the type is LoadBalancer and externalTrafficPolicy is Local",
        )
    return port_number("spec.healthCheckNodePort", spec.health_check_node_port, findings)


def _affinity(spec: schema.ServiceSpec, findings: Findings) -> int:
    """Seconds; 0 for none."""
    affinity = spec.session_affinity or "None"
    config = spec.session_affinity_config
    if affinity not in AFFINITIES:
        findings.error("spec.sessionAffinity", f"must be None or ClientIP, not {affinity!r}")
    if affinity != "ClientIP":
        if affinity == "None" and config is not None:
            findings.error("spec.sessionAffinityConfig", "must not be given where sessionAffinity is None")
        return 0
    timeout = config.client_ip.timeout_seconds if config is not None and config.client_ip is not None else None
    if timeout is None:
        return DEFAULT_AFFINITY_S
    if not 1 <= timeout <= MAX_AFFINITY_S:
        findings.error(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds", f"must be 1–{MAX_AFFINITY_S}, not {timeout}"
        )
    return timeout


def _distribution(spec: schema.ServiceSpec, annotations: Mapping[str, str], findings: Findings) -> str:
    """Topology-aware routing by annotation is by zone, and goes before trafficDistribution (KEP-4444)."""
    given = spec.traffic_distribution
    if given and given not in DISTRIBUTIONS:
        findings.error("spec.trafficDistribution", f"must be one of {', '.join(DISTRIBUTIONS)}, not {given!r}")
    mode = next((annotations[key] for key in TOPOLOGY if key in annotations), "")
    if mode in ("Auto", "auto"):
        return "PreferSameZone"
    return DISTRIBUTIONS.get(given or "", "")


def _choice(key: str, annotations: Mapping[str, str], findings: Findings) -> str:
    """Of this service alone; a word that means nothing leaves the node's setting, with a warning."""
    given = annotations.get(key, "")
    if given and given not in CHOICES[key]:
        wanted = " or ".join(CHOICES[key])
        findings.warn(f"metadata.annotations[{key}]", f"must be {wanted}, not {given!r}: the node's setting is used")
        return ""
    return intern(given)


def _check_kubelet_port(spec: schema.ServiceSpec, findings: Findings) -> None:
    for index, port in enumerate(spec.ports or ()):
        if port.port == KUBELET_PORT:
            findings.error(
                f"spec.ports[{index}].port", f"must not be {KUBELET_PORT}, the kubelet's, on a load balancer"
            )
