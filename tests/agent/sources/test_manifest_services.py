"""Services and EndpointSlices of manifests."""

from __future__ import annotations

from typing import Any

import pytest
from manifest_texts import only

from agent.objects import (
    DeclaredPort,
    EndpointSlice,
    Exposure,
    Pod,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from policies.address import Prefix, parse_address
from policies.model import ObjectRef, Origin

SERVICES = [
    ("{ports: [{port: 80}]}", {"ports": (ServicePort("", 6, 80, 80),)}),
    ("{ports: [{port: 80, targetPort: 0}]}", {"ports": (ServicePort("", 6, 80, 80),)}),
    ("{ports: [{port: 80, targetPort: http}]}", {"ports": (ServicePort("", 6, 80, "http"),)}),
    (
        "{ports: [{port: 53, name: a}, {port: 53, name: b, protocol: UDP, targetPort: 5353}]}",
        {"ports": (ServicePort("a", 6, 53, 53), ServicePort("b", 17, 53, 5353))},
    ),
    ("{selector: {a: b}, ports: [{port: 80}]}", {"selector": {"a": "b"}}),
    ("{selector: {}, ports: [{port: 80}]}", {"selector": None}),
    ("{clusterIP: None}", {"headless": True, "addresses": (), "ports": ()}),
    ("{clusterIP: '', ports: [{port: 80}]}", {"headless": False, "addresses": ()}),
    (
        "{clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 80}]}",
        {"addresses": (parse_address("10.96.0.1"), parse_address("fd00::1")), "families": ("IPv4", "IPv6")},
    ),
    ("{ipFamilies: [IPv6], ports: [{port: 80}]}", {"families": ("IPv6",)}),
    (
        "{type: NodePort, publishNotReadyAddresses: true, ports: [{port: 80}]}",
        {"type": "NodePort", "publish_not_ready": True},
    ),
    ("{type: ExternalName, externalName: example.org}", {"type": "ExternalName", "ports": ()}),
]

EXPOSED = [
    ("{ports: [{port: 80}]}", Exposure()),
    ("{externalIPs: [192.0.2.1, 192.0.2.1, 'fd00::1'], externalTrafficPolicy: Local, ports: [{port: 80}]}",
     Exposure(external_ips=(parse_address("192.0.2.1"), parse_address("fd00::1")), external_local=True)),
    ("{internalTrafficPolicy: Local, trafficDistribution: PreferClose, ports: [{port: 80}]}",
     Exposure(internal_local=True, distribution="PreferSameZone")),
    ("{trafficDistribution: PreferSameNode, sessionAffinity: None, ports: [{port: 80}]}",
     Exposure(distribution="PreferSameNode")),
    ("{sessionAffinity: ClientIP, ports: [{port: 80}]}", Exposure(affinity_timeout_s=10800)),
    ("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}, ports: [{port: 80}]}",
     Exposure(affinity_timeout_s=86400)),
    ("{type: LoadBalancer, allocateLoadBalancerNodePorts: false, externalTrafficPolicy: Local, "
     "healthCheckNodePort: 30100, loadBalancerSourceRanges: ['fd00::/8', ' 10.1.2.3/8 '], ports: [{port: 80}]}",
     Exposure(
         source_ranges=(Prefix.parse("10.0.0.0/8"), Prefix.parse("fd00::/8")),
         external_local=True,
         health_node_port=30100,
         allocates_node_ports=False,
     )),
    ("{type: ExternalName, externalName: a.b, externalIPs: [192.0.2.1]}", Exposure()),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "expected"), EXPOSED)
def test_exposure(spec: str, expected: Exposure) -> None:
    found = only(f"apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {spec}\n")
    assert isinstance(found, Service)
    assert found.exposure == expected


ANNOTATED = [
    ("gatehouse.io/algorithm: maglev", {"algorithm": "maglev"}),
    ("gatehouse.io/forwarding: hybrid", {"forwarding": "hybrid"}),
    ("service.kubernetes.io/topology-mode: Auto", {"distribution": "PreferSameZone"}),
    ("service.kubernetes.io/topology-aware-hints: auto", {"distribution": "PreferSameZone"}),
    ("service.kubernetes.io/topology-mode: Disabled", {"distribution": ""}),
    ("service.beta.kubernetes.io/load-balancer-source-ranges: '10.0.0.0/8, 192.0.2.0/24'",
     {"source_ranges": (Prefix.parse("10.0.0.0/8"), Prefix.parse("192.0.2.0/24"))}),
    ("service.beta.kubernetes.io/load-balancer-source-ranges: ''", {"source_ranges": ()}),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "expected"), ANNOTATED)
def test_annotations_of_a_service(annotation: str, expected: dict[str, Any]) -> None:
    metadata = f"metadata: {{name: s, annotations: {{{annotation}}}}}"
    found = only(f"apiVersion: v1\nkind: Service\n{metadata}\nspec: {{type: LoadBalancer, ports: [{{port: 80}}]}}\n")
    assert isinstance(found, Service)
    assert found.exposure == Exposure(**expected)


def test_the_status_of_a_load_balancer() -> None:
    """KEP-1860: packets for an address of mode Proxy are to go to the load balancer itself."""
    text = """\
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {type: %s, ports: [{port: 80, nodePort: 30080}]}
status: {loadBalancer: {ingress: [
  {ip: 192.0.2.1}, {ip: 192.0.2.2, ipMode: VIP}, {ip: 192.0.2.3, ipMode: Proxy}, {hostname: x}, {ip: "fd00::1"}]}}
"""
    found, plain = only(text % "LoadBalancer"), only(text % "NodePort")
    assert isinstance(found, Service)
    assert isinstance(plain, Service)
    wanted = tuple(map(parse_address, ("192.0.2.1", "192.0.2.2", "fd00::1")))
    assert found.exposure == Exposure(balancer_ips=wanted)
    assert found.ports == (ServicePort("", 6, 80, 80, 30080),)
    assert plain.exposure == Exposure(), "a status that another type has left behind"


@pytest.mark.parametrize(
    ("labels", "proxied"),
    [
        ("{}", True),
        ("{service.kubernetes.io/service-proxy-name: other}", False),
        ("{service.kubernetes.io/service-proxy-name: ''}", False),
        ("{service.kubernetes.io/headless: ''}", False),
        ("{app: x}", True),
    ],
)
def test_labels_that_leave_services_to_others(labels: str, proxied: bool) -> None:
    service = only(
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: s, labels: {labels}}}\nspec: {{ports: [{{port: 1}}]}}\n"
    )
    head = f"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: {labels}}}\n"
    slice_ = only(head + "addressType: IPv4\n")
    assert isinstance(service, Service)
    assert isinstance(slice_, EndpointSlice)
    assert (service.proxied, slice_.proxied) == (proxied, proxied)


def test_host_ports() -> None:
    found = only("""\
apiVersion: v1
kind: Pod
metadata: {name: web, deletionTimestamp: "2024-01-01T00:00:00Z"}
spec:
  containers:
  - name: a
    ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 53, hostPort: 53, hostIP: 192.0.2.1, protocol: UDP}]
""")
    assert isinstance(found, Pod)
    assert found.ports == (
        DeclaredPort("", 6, 80, 8080),
        DeclaredPort("", 17, 53, 53, parse_address("192.0.2.1")),
    )
    assert found.terminating


def test_a_pod_in_the_hosts_network_needs_no_host_ports() -> None:
    found = only("""\
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {hostNetwork: true, containers: [{name: a, ports: [{containerPort: 80, hostPort: 80, hostIP: 192.0.2.1}]}]}
""")
    assert isinstance(found, Pod)
    assert found.ports == (DeclaredPort("", 6, 80),)


def test_services_that_leave_all_at_its_defaults_share_one_exposure() -> None:
    texts = [f"apiVersion: v1\nkind: Service\nmetadata: {{name: {n}}}\nspec: {{ports: [{{port: 80}}]}}\n" for n in "ab"]
    first, second = (only(text) for text in texts)
    assert isinstance(first, Service)
    assert isinstance(second, Service)
    assert first.exposure is second.exposure


def test_labels_of_a_service_are_kept() -> None:
    """Policies select services by them (toServices)."""
    found = only("apiVersion: v1\nkind: Service\nmetadata: {name: s, labels: {a: b}}\nspec: {ports: [{port: 80}]}\n")
    assert isinstance(found, Service)
    assert found.labels == {"a": "b"}


@pytest.mark.parametrize(("spec", "expected"), SERVICES)
def test_service(spec: str, expected: dict[str, Any]) -> None:
    found = only(f"apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {spec}\n")
    assert isinstance(found, Service)
    assert {name: getattr(found, name) for name in expected} == expected


def test_endpoint_slice() -> None:
    found = only("""\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]
endpoints:
- {addresses: [10.0.0.1], nodeName: n}
- {addresses: [10.0.0.2], conditions: {ready: false, serving: null, terminating: true}}
- {addresses: [10.0.0.3], conditions: {serving: false}, zone: a, hints: {forZones: [{name: a}, {name: b}]}}
- {addresses: [10.0.0.4], hints: {forZones: [{name: a}], forNodes: [{name: n}]}}
""")
    assert found == EndpointSlice(
        ObjectRef("EndpointSlice", "default", "s-1"),
        Origin("m.yaml", 1),
        "s",
        (SlicePort("http", 6, 80), SlicePort("dns", 17, 53)),
        (
            SliceEndpoint((parse_address("10.0.0.1"),), node="n"),
            SliceEndpoint((parse_address("10.0.0.2"),), ready=False, serving=True, terminating=True),
            SliceEndpoint((parse_address("10.0.0.3"),), serving=False, zones=("a", "b")),
            SliceEndpoint((parse_address("10.0.0.4"),), zones=("a",), nodes=("n",)),
        ),
    )
