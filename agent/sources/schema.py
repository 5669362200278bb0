"""The fields of Kubernetes objects that are used, as they are written: nothing defaulted, nothing checked but types.

Fields that are not named here are not looked at. msgspec reads these from JSON text or from a YAML document's values.
"""

from __future__ import annotations

import msgspec
from msgspec import field


class _Raw(msgspec.Struct, rename="camel", gc=False):
    pass


class Metadata(_Raw):
    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None
    uid: str | None = None


class Name(_Raw):
    name: str | None = None
    namespace: str | None = None


class Envelope(_Raw):
    """What tells objects apart."""

    api_version: str | None = None
    kind: str | None = None
    metadata: Name | None = None


class JsonFile(_Raw):
    """A JSON file: one object, or a list whose items are read one by one."""

    kind: str | None = None
    items: list[msgspec.Raw] | None = None


class NamespaceDoc(_Raw):
    metadata: Metadata


class Taint(_Raw):
    key: str | None = None


class NodeSpec(_Raw):
    pod_cidr: str | None = field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None


class NodeAddress(_Raw):
    type: str | None = None
    address: str | None = None


class NodeStatus(_Raw):
    addresses: list[NodeAddress] | None = None


class NodeDoc(_Raw):
    metadata: Metadata
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class ContainerPort(_Raw):
    name: str | None = None
    protocol: str | None = None
    container_port: int | None = None
    host_port: int | None = None
    host_ip: str | None = field(default=None, name="hostIP")


class EnvVar(_Raw):
    name: str | None = None
    value: str | None = None
    value_from: dict[str, object] | None = None


class Container(_Raw):
    name: str | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[EnvVar] | None = None
    env_from: list[object] | None = None
    working_dir: str | None = None
    ports: list[ContainerPort] | None = None
    restart_policy: str | None = None


class PodSpec(_Raw):
    node_name: str | None = None
    service_account_name: str | None = None
    host_network: bool | None = None
    restart_policy: str | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodIp(_Raw):
    ip: str | None = None


class Condition(_Raw):
    type: str | None = None
    status: str | None = None


class PodStatus(_Raw):
    phase: str | None = None
    pod_ip: str | None = field(default=None, name="podIP")
    pod_ips: list[PodIp] | None = field(default=None, name="podIPs")
    conditions: list[Condition] | None = None


class PodDoc(_Raw):
    metadata: Metadata
    spec: PodSpec | None = None
    status: PodStatus | None = None


class ServicePort(_Raw):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    target_port: int | str | None = None
    node_port: int | None = None


class ClientIpConfig(_Raw):
    timeout_seconds: int | None = None


class AffinityConfig(_Raw):
    client_ip: ClientIpConfig | None = field(default=None, name="clientIP")


class ServiceSpec(_Raw):
    type: str | None = None
    selector: dict[str, str] | None = None
    cluster_ip: str | None = field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    ip_family_policy: str | None = None
    ports: list[ServicePort] | None = None
    publish_not_ready_addresses: bool | None = None
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    load_balancer_source_ranges: list[str] | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    health_check_node_port: int | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    traffic_distribution: str | None = None
    allocate_load_balancer_node_ports: bool | None = None


class BalancerIngress(_Raw):
    ip: str | None = None
    ip_mode: str | None = None


class BalancerStatus(_Raw):
    ingress: list[BalancerIngress] | None = None


class ServiceStatus(_Raw):
    load_balancer: BalancerStatus | None = None


class ServiceDoc(_Raw):
    metadata: Metadata
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class SecretDoc(_Raw):
    metadata: Metadata
    data: dict[str, str] | None = None
    string_data: dict[str, str] | None = None


class EndpointConditions(_Raw):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Named(_Raw):
    name: str | None = None


class Hints(_Raw):
    for_zones: list[Named] | None = None
    for_nodes: list[Named] | None = None


class Endpoint(_Raw):
    addresses: list[str] | None = None
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    hints: Hints | None = None


class SlicePort(_Raw):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSliceDoc(_Raw):
    metadata: Metadata
    address_type: str | None = None
    endpoints: list[Endpoint] | None = None
    ports: list[SlicePort] | None = None


class SecurityIdentitySpec(_Raw):
    namespace: str | None = None
    service_account: str | None = None
    labels: dict[str, str] | None = None


class SecurityIdentityDoc(_Raw):
    metadata: Metadata
    spec: SecurityIdentitySpec | None = None


class NodeEndpoint(_Raw):
    pod: str | None = None
    ips: list[str] | None = None
    identity: int | None = None
    digest: str | None = None
    ports: list[SlicePort] | None = None


class NodeEndpointsHead(_Raw):
    """What a NodeEndpoints object says of its node."""

    addresses: list[str] | None = None
    pod_cidrs: list[str] | None = field(default=None, name="podCIDRs")
    public_key: str | None = None
    next_public_key: str | None = None


class NodeEndpointsSpec(NodeEndpointsHead):
    endpoints: list[NodeEndpoint] | None = None


class NodeEndpointsDoc(_Raw):
    metadata: Metadata
    spec: NodeEndpointsSpec | None = None


class LooseEndpointsSpec(NodeEndpointsHead):
    """Of a document in which some endpoint has fields of other types."""

    endpoints: list[object] | None = None


class LooseEndpointsDoc(_Raw):
    metadata: Metadata
    spec: LooseEndpointsSpec | None = None
