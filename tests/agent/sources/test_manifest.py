"""Manifest text → items: what is accepted and with which defaults, and where problems are said to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.objects import (
    Container,
    DeclaredPort,
    EndpointSlice,
    Exposure,
    Namespace,
    Node,
    Object,
    Pod,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from agent.sources.items import VERSIONS
from agent.sources.manifest import parse
from policies.address import Prefix, parse_address
from policies.model import Direction, ObjectRef, Origin, Policy

BAD = Path(__file__).parent / "bad_manifests.yaml"


def items(text: str, file: str = "m.yaml") -> list[Any]:
    return list(parse(text.encode(), file).items)


def only(text: str, file: str = "m.yaml") -> Object:
    (item,) = items(text, file)
    assert item.problems == ()
    found: Object = item.object
    assert found is not None
    return found


def cases() -> list[Any]:
    """Rows of bad_manifests.yaml: blocks that begin with lines `#! expected problem` and end at the next such block."""
    rows: list[Any] = []
    expected: list[str] = []
    body: list[str] = []
    for line in [*BAD.read_text().splitlines(), "#! end"]:
        if line.startswith("#! ") and body:
            rows.append(pytest.param("\n".join(body) + "\n", expected, id=expected[0].replace(" ", "_")[:60]))
            expected, body = [], []
        if line.startswith("#! "):
            expected.append(line[3:])
        elif expected:
            body.append(line)
    return rows


@pytest.mark.parametrize(("text", "expected"), cases())
def test_problem_is_at_its_line_and_field(text: str, expected: list[str]) -> None:
    found = [p for item in items(text) for p in item.problems]
    shown = [f"{'warning ' if p.warning else ''}{p.line} {p.path or '-'} {p.message}" for p in sorted(found)]
    assert len(shown) == len(expected), shown
    for got, want in zip(shown, expected, strict=True):
        assert got.startswith(want)
    for item in items(text):
        assert (item.object is None) == any(not p.warning for p in item.problems) or item.ref is None


def test_namespace_has_its_name_as_label() -> None:
    found = only("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n")
    labels = {"team": "a", "kubernetes.io/metadata.name": "shop"}
    assert found == Namespace(ObjectRef("Namespace", "", "shop"), Origin("m.yaml", 1), labels)


def test_node() -> None:
    """Host names are passed over, and an address is one however often it is listed."""
    found = only("""\
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1, other: x}}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, "fd00:1::/64"]}
status:
  addresses:
  - {type: InternalIP, address: 192.0.2.1}
  - {type: Hostname, address: n1}
  - {type: ExternalIP, address: "2001:db8::1"}
  - {type: ExternalIP, address: 192.0.2.1}
  - {type: InternalDNS, address: 192.0.2.9}
""")
    addresses = (parse_address("192.0.2.1"), parse_address("2001:db8::1"))
    blocks = (Prefix.parse("10.1.0.0/24"), Prefix.parse("fd00:1::/64"))
    labels = {"topology.kubernetes.io/zone": "z1", "other": "x"}
    assert found == Node(ObjectRef("Node", "", "n1"), Origin("m.yaml", 1), addresses, blocks, "z1", labels)


@pytest.mark.parametrize("rest", ["", "spec: {}\nstatus: {addresses: []}\n"])
def test_a_node_of_which_little_is_known(rest: str) -> None:
    found = only("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n" + rest)
    assert found == Node(ObjectRef("Node", "", "n1"), Origin("m.yaml", 1))


def test_pod_with_everything() -> None:
    found = only("""\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, version: "1.10", empty: ""}}
spec:
  nodeName: node-1
  serviceAccountName: web
  hostNetwork: true
  restartPolicy: Never
  containers:
  - name: a
    image: any
    command: [python3, -m]
    args: [http.server, "8080"]
    env: [{name: X, value: "1"}, {name: Y}]
    workingDir: /srv
    ports: [{name: http, containerPort: 8080}, {containerPort: 53, protocol: UDP}]
  - name: b
    ports: [{name: http, containerPort: 81}]
  initContainers:
  - {name: first, ports: [{name: http, containerPort: 82}]}
  - {name: sidecar, restartPolicy: Always, ports: [{name: metrics, containerPort: 83}]}
status:
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]
  conditions: [{type: Ready, status: "False"}]
""")
    assert found == Pod(
        ObjectRef("Pod", "shop", "web"),
        Origin("m.yaml", 1),
        {"app": "web", "version": "1.10", "empty": ""},
        node="node-1",
        service_account="web",
        host_network=True,
        addresses=(parse_address("10.0.0.1"), parse_address("fd00::1")),
        ports=(
            DeclaredPort("http", 6, 8080),
            DeclaredPort("", 17, 53),
            DeclaredPort("http", 6, 81),
            DeclaredPort("metrics", 6, 83),
        ),
        containers=(
            Container("a", ("python3", "-m", "http.server", "8080"), {"X": "1", "Y": ""}, "/srv"),
            Container("b"),
        ),
        restart_always=False,
        ready=False,
    )


def test_pod_defaults() -> None:
    found = only("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a}]}\n")
    assert found == Pod(ObjectRef("Pod", "default", "web"), Origin("m.yaml", 1), {}, containers=(Container("a"),))


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


# ---- files

NS = "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (NS % "a" + "---\n" + NS % "b", [1, 5]),
        ("# x\n---\n# y\n\n" + NS % "a" + "---\n---\n...\n# z\n---\n" + NS % "b", [5, 13]),
        ("--- # first\n" + NS % "a" + "--- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n", [2, 5]),
        ("%YAML 1.1\n---\n" + NS % "a" + "...\n" + NS % "b", [3, 7]),
        (("\ufeff" + NS % "a" + "---\n" + NS % "b").replace("\n", "\r\n"), [1, 5]),
        ("kind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n\n"
         "- apiVersion: v1\n  kind: Namespace\n  metadata: {name: b}\n", [4, 6]),
        (NS % "a" + "data: |\n  ---\n  text\n---\n" + NS % "b", [1, 8]),
    ],
)  # fmt: skip
def test_lines_of_documents(text: str, lines: list[int]) -> None:
    found = items(text)
    assert [item.ref.name for item in found] == ["a", "b"]
    assert [item.object.origin.line for item in found] == lines


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n---\n", "null\n", "--- ~\n...\n", "\ufeff", " \n\t\n"])
def test_nothing(text: str) -> None:
    assert items(text) == []


def test_json_and_yaml_agree() -> None:
    documents: list[Any] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": {"x": "y"}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {}},
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}, indent=1)
    as_json, as_yaml = items(text, "m.json"), items(text, "m.yaml")
    assert [item.object for item in as_json if not item.problems] != []
    for one, other in zip(as_json, as_yaml, strict=True):
        assert (one.ref, one.origin.line, one.problems == ()) == (other.ref, other.origin.line, other.problems == ())


JSON = [
    ('{"kind":', 1, "", "not valid JSON"),
    ('{"kind": "Pod",\n"kind": "Pod"}', 2, "kind", "the same key twice"),
    ('{"apiVersion": "v1", "kind": "Namespace",\n "metadata": {"name":\n  7}}', 2, "metadata.name", "must be a string"),
    ('{"kind": "List", "items": [\n{"apiVersion": "v1", "kind": "Namespace",\n"metadata": {"name": "A"}}]}', 3,
     "metadata.name", "'A' must be"),
    ("[" * 100_000, 1, "", "nested too deeply"),
    ('{"a": ' * 2000 + "1" + "}" * 2000, 1, "", "nested too deeply"),
    ('\n{"a": tru}', 2, "", "not valid JSON"),
    ("[1]", 1, "", "must be an object, not a list"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "path", "message"), JSON, ids=range(len(JSON)))
def test_bad_json(text: str, line: int, path: str, message: str) -> None:
    (item,) = items(text, "m.json")
    (problem,) = item.problems
    assert (problem.line, problem.path) == (line, path)
    assert problem.message.startswith(message)
    assert item.object is None


def test_one_bad_document_leaves_the_others() -> None:
    found = items(NS % "a" + "---\nkind: [\n---\n" + NS % "b" + '---\nkind: "\n---\n' + NS % "c")
    assert [item.ref.name if item.ref else None for item in found] == ["a", None, "b", None, "c"]
    assert [item.problems[0].line for item in found if item.problems] == [5, 11]


def test_only_changed_documents_are_read_again() -> None:
    text = "---\n".join(NS % name for name in "abc")
    before = parse(text.encode(), "m.yaml")
    after = parse(text.replace("name: b", "name: x").encode(), "m.yaml", before)
    assert after.items[0] is before.items[0]
    assert after.items[2] is before.items[2]
    moved = parse(b"# one more line\n" + text.encode(), "m.yaml", before)
    assert [item.object.origin.line for item in moved.items if item.object] == [2, 6, 10]
    assert moved.items == parse(b"# one more line\n" + text.encode(), "m.yaml").items


PIECES = st.sampled_from([
    *"abk :-[]{}#&*!|>'\"%@`,?~\t\n\r\0", "\ufeff", "\x85", "\u2028",
    "---\n", "...\n", "<<: ", "- ", ": ", "*a ", "&a ", "!!int ",
    "kind: ", "metadata: {name: a}\n", "spec:\n", "  podSelector: {}\n", "NetworkPolicy\n",
    "Pod\n", "List\n", "items:\n",
    "apiVersion: v1\n", "apiVersion: networking.k8s.io/v1\n", "0x_", "0b_", "._",
    "1" * 5000, "-.inf", "1e999", "yes", "null",
])  # fmt: skip
FIELDS = (
    "kind", "apiVersion", "metadata", "name", "namespace", "labels", "spec",
    "items", "ports", "port", "containers", "status",
    "podIPs", "endpoints", "addresses", "conditions",
    "addressType", "selector", "clusterIPs", "podSelector", "ingress", "from",
)  # fmt: skip
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(text=st.lists(PIECES, max_size=30).map("".join))
def test_no_text_stops_the_reader(text: str) -> None:
    for item in items(text):
        assert item.object is not None or item.problems


@settings(deadline=None)
@given(value=JSON_VALUES, kind=st.sampled_from([*VERSIONS, "List"]), cut=st.integers(0, 3))
def test_no_value_stops_the_reader(value: Any, kind: str, cut: int) -> None:
    if isinstance(value, dict):
        value |= {"kind": kind, "apiVersion": VERSIONS.get(kind, ("v1",))[0]}
    text = json.dumps(value)
    for file in ("m.json", "m.yaml"):
        for item in items(text[: len(text) - cut], file):
            assert item.object is not None or item.problems


@settings(deadline=None)
@given(data=st.binary(max_size=40))
def test_no_bytes_stop_the_reader(data: bytes) -> None:
    for file in ("m.json", "m.yaml"):
        parse(data, file)


@pytest.mark.parametrize(
    "text", ['{"a": %s}' % ("1" * 5000), '{"a": 1e999, "a": 1}', '{"a": "\\ud800", "a": 2}', '{"a": NaN}']
)
def test_odd_json(text: str) -> None:
    (item,) = items(text, "m.json")
    assert item.object is None
    assert item.problems


# ---- policies that are not valid

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
"""
BOTH = frozenset(Direction)


@pytest.mark.parametrize(
    "text",
    [
        POLICY + "  - from: [\n",
        POLICY + "  - from:\n\t- podSelector: {}\n",
        POLICY + "  - ports: [{port: 80, port: 81}]\n",
        POLICY + "  - ports: [{port: *x}]\n",
        POLICY + '  - from: [{ipBlock: {cidr: "10.0.0.0/99"}}]\n  policyTypes: [Ingress, Egress]\n',
        POLICY.replace("networking.k8s.io/v1", "networking.k8s.io/v1beta1") + "  - {}\n",
        POLICY.replace("networking.k8s.io/v1", "extensions/v1beta1") + "  - {}\n",
    ],
)
def test_lesson_15_a_policy_that_is_not_understood_isolates(text: str) -> None:
    (item,) = items(text)
    assert item.object is None
    assert item.ref == ObjectRef("NetworkPolicy", "shop", "p")
    assert isinstance(item.isolating, Policy)
    assert item.isolating.rules == ()
    assert item.isolating.problem
    assert item.isolating.isolates == BOTH
    assert item.isolating.subject.namespace == "shop"
    assert item.isolating.subject.pods.matches({"app": "web"})
    assert not item.isolating.subject.pods.matches({"app": "db"})


@pytest.mark.parametrize(
    "text",
    [
        POLICY.replace("{matchLabels: {app: web}}", "{matchLabels: {app: web"),
        POLICY.replace(
            "podSelector: {matchLabels: {app: web}}", "podSelector: {}\n  podSelector: {matchLabels: {app: web}}"
        ),
        POLICY.replace("app: web", "app: yes"),
        POLICY.replace("shop}", "shop"),
        POLICY.replace("name: p", "name: p, name: q") + "  - {}\n",
    ],
)
def test_a_policy_whose_pods_are_not_clear_isolates_nothing(text: str) -> None:
    (item,) = items(text)
    assert item.problems
    assert item.object is None
    assert item.isolating is None


@pytest.mark.parametrize(
    ("text", "unidentified"),
    [
        ("a: [\n", True),
        ("kind: Pod\nmetadata: {name: [\n", True),
        ("kind: Pod\nmetadata: {name: a}\nspec: [\n", False),
        ("kind: Deployment\nmetadata: {name: a}\nspec: [\n", False),
        ("kind: NetworkPolcy\nmetadata: {name: a}\n", True),
        ("kind: List\nitems: [\n", True),
        ("kind: Pod\n  metadata\nspec: [\n", True),
        ("apiVersion: v1\nmetadata: {name: a}\n", True),
        ("apiVersion: v1\nkind: Pod\nmetadata: {generateName: a}\n", True),
        ("just text\n", True),
    ],
)
def test_what_may_be_any_object(text: str, unidentified: bool) -> None:
    (item,) = items(text)
    assert item.problems
    assert item.unidentified is unidentified
