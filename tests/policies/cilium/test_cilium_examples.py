"""What Cilium's documentation shows by example (layers 3, 4 and 7, deny, clusterwide): manifests and flows."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from policies.address import parse_address
from policies.evaluate import evaluate
from policies.facts import Flow, Party, PodFacts
from policies.kinds import KINDS
from policies.model import SERVICE_ACCOUNT, ContainerPort, Origin, Verdict

NAMESPACES = {"shop": {"team": "a"}, "pay": {"team": "b"}, "kube-system": {}}
ALLOW, DENY, ASK = Verdict.ALLOW, Verdict.DENY, Verdict.REDIRECT


def pod(number: int, namespace: str, name: str, account: str = "default", **labels: str) -> Party:
    facts = PodFacts(
        namespace, name, {"app": name, SERVICE_ACCOUNT: account, **labels}, frozenset({ContainerPort("web", 6, 8080)})
    )
    return Party(parse_address(f"10.0.0.{number}"), facts)


PARTIES = {
    "web": pod(1, "shop", "web", role="backend"),
    "front": pod(2, "shop", "front", account="luke", role="frontend"),
    "other": pod(3, "pay", "other", role="frontend"),
    "dns": pod(4, "kube-system", "dns", **{"k8s-app": "kube-dns"}),
    "outside": Party(parse_address("192.0.2.7")),
    "near": Party(parse_address("10.1.2.3")),
}
HEAD = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\n"
WIDE = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: p}\n"

# what it shows, the manifest, and flows (from, to, port[/protocol]) with their verdicts
EXAMPLES: list[tuple[str, str, list[tuple[str, str, str, Verdict]]]] = [
    (
        "one role may reach another, and nobody else",
        HEAD + """
spec:
  endpointSelector: {matchLabels: {role: backend}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: frontend}}]
""",
        [("front", "web", "80", ALLOW), ("dns", "web", "80", DENY), ("other", "web", "80", DENY),
         ("web", "outside", "80", ALLOW), ("outside", "web", "80", DENY)],
    ),
    (
        "an empty rule puts pods into default deny",
        HEAD + "spec: {endpointSelector: {}, ingress: [{}]}",
        [("front", "web", "80", DENY), ("web", "other", "80", ALLOW)],
    ),
    (
        "an empty selector is every pod of the namespace",
        HEAD + "spec: {endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}",
        [("front", "web", "80", ALLOW), ("other", "web", "80", DENY), ("outside", "web", "80", DENY)],
    ),
    (
        "an empty list is nobody",
        HEAD + "spec: {endpointSelector: {}, ingress: [{fromEndpoints: []}]}",
        [("front", "web", "80", DENY)],
    ),
    (
        "clusterwide, an empty selector is every pod",
        WIDE + "spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{}]}]}",
        [("front", "web", "80", ALLOW), ("other", "web", "80", ALLOW), ("outside", "web", "80", DENY)],
    ),
    (
        "another namespace by name, and by its labels",
        HEAD + """
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system}}]
  - fromEndpoints: [{matchLabels: {"k8s:io.cilium.k8s.namespace.labels.team": b, app: other}}]
""",
        [("dns", "web", "1", ALLOW), ("other", "web", "1", ALLOW), ("front", "web", "1", DENY)],
    ),
    (
        "a service account",
        HEAD + """
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: luke}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
""",
        [("front", "web", "80", ALLOW), ("front", "web", "81", DENY), ("dns", "web", "80", DENY)],
    ),
    (
        "blocks are of addresses outside the cluster",
        HEAD + """
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toCIDR: [192.0.2.7/32]
  - toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
""",
        [("web", "outside", "1", ALLOW), ("web", "near", "1", DENY), ("web", "front", "1", DENY)],
    ),
    (
        "ports of any protocol, ranges and names",
        HEAD + """
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - toPorts: [{ports: [{port: "90", endPort: 99}, {port: "53", protocol: UDP}, {port: web, protocol: TCP}]}]
""",
        [("outside", "web", "95/UDP", ALLOW), ("outside", "web", "53/UDP", ALLOW), ("outside", "web", "53", DENY),
         ("outside", "web", "8080", ALLOW), ("outside", "web", "8080/UDP", DENY)],
    ),
    (
        "types of ICMP",
        HEAD + """
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{icmps: [{fields: [{type: 8}, {family: IPv6, type: EchoRequest}]}]}]
""",
        [("web", "outside", "8/ICMP", ALLOW), ("web", "outside", "13/ICMP", DENY), ("web", "outside", "8", DENY)],
    ),
    (
        "a deny goes before every allow",
        HEAD + """
specs:
- endpointSelector: {}
  ingress: [{fromEntities: [all]}]
- endpointSelector: {matchLabels: {app: web}}
  ingressDeny: [{fromEntities: [world], toPorts: [{ports: [{port: "22"}]}]}]
""",
        [("outside", "web", "22", DENY), ("outside", "web", "23", ALLOW), ("front", "web", "22", ALLOW)],
    ),
    (
        "entities",
        HEAD + """
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromEntities: [world]}]
  egress: [{toEntities: [cluster]}]
""",
        [("outside", "web", "1", ALLOW), ("front", "web", "1", DENY), ("web", "front", "1", ALLOW),
         ("web", "outside", "1", DENY)],
    ),
    (
        "a policy that only denies leaves the rest alone, if told so",
        WIDE + """
spec:
  endpointSelector: {}
  enableDefaultDeny: {egress: false}
  egressDeny: [{toCIDR: [192.0.2.0/24]}]
""",
        [("web", "outside", "1", DENY), ("web", "near", "1", ALLOW), ("web", "front", "1", ALLOW)],
    ),
    (
        "requests, names and TLS are looked at where a rule asks for it",
        HEAD + """
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: frontend}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /public}]}}]
  egress:
  - toEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system, "k8s:k8s-app": kube-dns}}]
    toPorts: [{ports: [{port: "53", protocol: ANY}], rules: {dns: [{matchPattern: "*"}]}}]
  - toFQDNs: [{matchName: my-remote.example.com}]
  - toPorts: [{ports: [{port: "443", protocol: TCP}], serverNames: [a.example.com]}]
""",
        [("front", "web", "80", ASK), ("dns", "web", "80", DENY), ("web", "dns", "53/UDP", ASK),
         ("web", "dns", "53", ASK), ("web", "dns", "54", DENY), ("web", "outside", "443", ASK),
         ("web", "outside", "80", DENY)],
    ),
]  # fmt: skip


def flow(source: str, destination: str, where: str) -> Flow:
    port, _, protocol = where.partition("/")
    return Flow(PARTIES[source], PARTIES[destination], {"": 6, "UDP": 17, "ICMP": 1}[protocol], int(port))


@pytest.mark.parametrize(("manifest", "flows"), [example[1:] for example in EXAMPLES], ids=[e[0] for e in EXAMPLES])
def test_examples(manifest: str, flows: list[tuple[str, str, str, Verdict]]) -> None:
    raw: Any = yaml.safe_load(manifest)
    policies = KINDS[raw["kind"]].parse(raw, Origin("m", 1))
    found = [evaluate(policies, NAMESPACES, flow(a, b, where)) for a, b, where, _ in flows]
    shown = [(a, b, where, decision.verdict) for (a, b, where, _), decision in zip(flows, found, strict=True)]
    assert shown == flows
