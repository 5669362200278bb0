"""Namespace and Pod documents → objects, checked as the API server checks the fields that are used (core/v1)."""

from __future__ import annotations

from collections.abc import Sequence
from sys import intern

from agent.objects import Container, DeclaredPort, Namespace, Pod
from agent.sources import schema
from agent.sources.addresses import address_of, one_a_family
from agent.sources.findings import (
    Findings,
    dns_label,
    dns_subdomain,
    labels,
    port_name,
    port_number,
    protocol,
    reference,
)
from policies.model import Origin, Protocol

RESTART_POLICIES = ("Always", "OnFailure", "Never")
FINISHED = ("Succeeded", "Failed")
NAME_LABEL = "kubernetes.io/metadata.name"
MIRROR = "kubernetes.io/config.mirror"
"""Annotation of a static pod's mirror: the uid by which the kubelet knows the pod, and asks for its network."""


def namespace(doc: schema.NamespaceDoc, origin: Origin, findings: Findings) -> Namespace:
    """With the label the API server adds (KEP-2161); a manifest cannot give it another value."""
    ref = reference("Namespace", doc.metadata, findings)
    given = labels("metadata.labels", doc.metadata.labels, findings)
    if given.get(NAME_LABEL, ref.name) != ref.name:
        findings.error(f"metadata.labels[{NAME_LABEL}]", f"must be {ref.name}, the namespace's name")
    return Namespace(ref, origin, {**given, NAME_LABEL: ref.name})


def pod(doc: schema.PodDoc, origin: Origin, findings: Findings) -> Pod:
    """Commands of init containers are not run, and a variable is set only from a value: both are warnings."""
    ref = reference("Pod", doc.metadata, findings)
    spec = doc.spec or schema.PodSpec()
    if spec.node_name:
        findings.check("spec.nodeName", spec.node_name, dns_subdomain)
    if spec.service_account_name:
        findings.check("spec.serviceAccountName", spec.service_account_name, dns_subdomain)
    restart = spec.restart_policy or "Always"
    if restart not in RESTART_POLICIES:
        findings.error("spec.restartPolicy", f"must be one of {', '.join(RESTART_POLICIES)}, not {restart!r}")
    initial = spec.init_containers or []
    if any(container.command or container.args for container in initial):
        findings.warn("spec.initContainers", "init containers are not run")
    containers = spec.containers or []
    if not containers:
        findings.error("spec.containers", "must have at least one container")
    status = doc.status or schema.PodStatus()
    return Pod(
        ref,
        origin,
        labels("metadata.labels", doc.metadata.labels, findings),
        node=intern(spec.node_name or ""),
        service_account=intern(spec.service_account_name or "default"),
        host_network=bool(spec.host_network),
        addresses=_addresses(status, findings),
        ports=_ports(containers, initial, bool(spec.host_network), findings),
        containers=_containers(containers, findings),
        restart_always=restart == "Always",
        ready=_ready(status),
        terminating=doc.metadata.deletion_timestamp is not None,
        finished=status.phase in FINISHED,
        uid=(doc.metadata.annotations or {}).get(MIRROR) or doc.metadata.uid or "",
    )


def _containers(given: Sequence[schema.Container], findings: Findings) -> tuple[Container, ...]:
    seen: set[str] = set()
    for index, container in enumerate(given):
        path = f"spec.containers[{index}]"
        if not container.name:
            findings.error(f"{path}.name", "must be given")
        elif problem := dns_label(container.name):
            findings.error(f"{path}.name", problem)
        elif container.name in seen:
            findings.error(f"{path}.name", f"two containers are called {container.name!r}")
        seen.add(container.name or "")
    return tuple(
        Container(
            c.name or "",
            command=(*(c.command or ()), *(c.args or ())),
            env=_environment(f"spec.containers[{index}]", c, findings),
            working_dir=c.working_dir or "",
        )
        for index, c in enumerate(given)
    )


def _environment(path: str, container: schema.Container, findings: Findings) -> dict[str, str]:
    """Of a name given twice the last value counts, as in a container's environment."""
    if container.env_from:
        findings.warn(f"{path}.envFrom", "variables are set from env[].value only")
    env: dict[str, str] = {}
    for index, variable in enumerate(container.env or ()):
        where = f"{path}.env[{index}]"
        if not variable.name:
            findings.error(f"{where}.name", "must be given")
        elif "=" in variable.name or not variable.name.isprintable() or not variable.name.isascii():
            findings.error(f"{where}.name", f"{variable.name!r} must be printable ASCII without '='")
        elif variable.value_from is not None:
            findings.warn(f"{where}.valueFrom", f"variables are set from env[].value only: {variable.name} is not set")
        elif "\0" in (variable.value or ""):
            findings.error(f"{where}.value", "must not hold a zero byte")
        else:
            env[variable.name] = variable.value or ""
    return env


def _ports(
    containers: Sequence[schema.Container],
    initial: Sequence[schema.Container],
    host_network: bool,
    findings: Findings,
) -> tuple[DeclaredPort, ...]:
    """Of all containers, in order, and then of sidecars: init containers that go on (KEP-753). A name is unique within
    its container, a port of the host within the pod."""
    declared: list[DeclaredPort] = []
    on_host: set[tuple[int, int, bytes]] = set()
    listening = [(f"spec.containers[{index}]", one) for index, one in enumerate(containers)]
    listening += [(f"spec.initContainers[{i}]", one) for i, one in enumerate(initial) if one.restart_policy == "Always"]
    for where, container in listening:
        seen: set[str] = set()
        for p, given in enumerate(container.ports or ()):
            path = f"{where}.ports[{p}]"
            if given.name:
                findings.check(f"{path}.name", given.name, port_name)
                if given.name in seen:
                    findings.error(f"{path}.name", f"two ports of the container are called {given.name!r}")
                seen.add(given.name)
            port = _port(path, given, host_network, findings)
            taken = (port.protocol, port.host_port, port.host_address)
            if port.host_port and taken in on_host:
                name = Protocol.BY_NUMBER.get(port.protocol, "")
                findings.error(f"{path}.hostPort", f"{name} port {port.host_port} is given twice")
            on_host.add(taken)
            declared.append(port)
    return tuple(declared)


def _port(path: str, given: schema.ContainerPort, host_network: bool, findings: Findings) -> DeclaredPort:
    """A pod in the host's network has its ports there anyway: it needs none forwarded."""
    number = port_number(f"{path}.containerPort", given.container_port, findings)
    kind = protocol(f"{path}.protocol", given.protocol, findings)
    host_port = port_number(f"{path}.hostPort", given.host_port, findings) if given.host_port else 0
    host_address = address_of(f"{path}.hostIP", given.host_ip, findings) or b"" if given.host_ip else b""
    if host_network:
        if host_port not in (0, number):
            findings.error(f"{path}.hostPort", f"must be containerPort, {number}, where the pod has hostNetwork")
        host_port, host_address = 0, b""
    return DeclaredPort(intern(given.name or ""), kind, number, host_port, host_address)


def _addresses(status: schema.PodStatus, findings: Findings) -> tuple[bytes, ...]:
    """status.podIPs: at most one of each family, the first equal to podIP where both are given."""
    given = [(f"status.podIPs[{i}].ip", ip.ip or "") for i, ip in enumerate(status.pod_ips or ())]
    if status.pod_ip and not given:
        given = [("status.podIP", status.pod_ip)]
    elif status.pod_ip and given[0][1] != status.pod_ip:
        findings.error("status.podIP", f"must be the first of status.podIPs, {given[0][1]!r}")
    return one_a_family(given, "pod", findings)


def _ready(status: schema.PodStatus) -> bool:
    return all(c.status == "True" for c in status.conditions or () if c.type == "Ready")
