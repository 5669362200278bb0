"""EndpointSlices that a cluster's controller would make of a Service and its pods (discovery/v1). Pure.

Pods whose named ports have different numbers go into different slices; a slice has one address family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

from agent.objects import EndpointSlice, Pod, Service, SliceEndpoint, SlicePort
from policies.address import is_v4
from policies.model import ObjectRef

Group = tuple[str, tuple[SlicePort, ...]]  # family, ports
ZONES: Mapping[str, str] = {}


def derive(service: Service, pods: Iterable[Pod], zones: Mapping[str, str] = ZONES) -> tuple[EndpointSlice, ...]:
    """Slices of a service with a selector. `pods`: those it selects; others, and pods without address, are passed over.
    `zones`: node → zone, of nodes whose zone is known.

    A pod that does not declare a named target port is no endpoint of that port. Equal input gives equal output,
    whatever the order of the pods.
    """
    if not service.selector or service.type == "ExternalName":
        return ()
    wanted = service.selector.items()
    fixed = None if any(isinstance(port.target, str) for port in service.ports) else _ports(service, None)
    groups: dict[Group, list[SliceEndpoint]] = {}
    for pod in sorted(pods, key=lambda pod: pod.ref):
        if not pod.addresses or pod.ref.namespace != service.ref.namespace or not wanted <= pod.labels.items():
            continue
        ports = _ports(service, pod) if fixed is None else fixed
        if service.ports and not ports:
            continue
        for address in pod.addresses:
            family = "IPv4" if is_v4(address) else "IPv6"
            if not service.families or family in service.families:
                groups.setdefault((family, ports), []).append(_endpoint(service, pod, address, zones))
    return tuple(
        EndpointSlice(_ref(service, group), service.origin, service.ref.name, group[1], tuple(endpoints))
        for group, endpoints in sorted(groups.items())
    )


def _endpoint(service: Service, pod: Pod, address: bytes, zones: Mapping[str, str]) -> SliceEndpoint:
    """A pod that terminates is not ready, but serves as long as it says so (KEP-1672); published ones are ready all.
    Hints of PreferSameNode name the zone, too, for clients whose node has no endpoint (KEP-3015).
    """
    distribution = service.exposure.distribution
    zone = zones.get(pod.node) if distribution else None
    return SliceEndpoint(
        (address,),
        ready=service.publish_not_ready or (pod.ready and not pod.terminating),
        serving=pod.ready,
        terminating=pod.terminating,
        node=pod.node,
        zones=(zone,) if zone else (),
        nodes=(pod.node,) if pod.node and distribution == "PreferSameNode" else (),
    )


def _ports(service: Service, pod: Pod | None) -> tuple[SlicePort, ...]:
    """Target ports as numbers; a name is that of the pod's first port of this name and protocol."""
    ports = []
    for port in service.ports:
        number: int | None
        if isinstance(port.target, int):
            number = port.target
        else:
            declared = pod.ports if pod is not None else ()
            number = next((d.number for d in declared if d.name == port.target and d.protocol == port.protocol), None)
        if number is not None:
            ports.append(SlicePort(port.name, port.protocol, number))
    return tuple(ports)


def _ref(service: Service, group: Group) -> ObjectRef:
    """A name of its own for each group of ports, that a given slice is unlikely to have."""
    family, ports = group
    text = " ".join(f"{port.name}/{port.protocol}/{port.port}" for port in ports)
    digest = blake2b(text.encode(), digest_size=4).hexdigest()
    return ObjectRef("EndpointSlice", service.ref.namespace, f"{service.ref.name}-{family.lower()}-{digest}")
