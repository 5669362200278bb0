"""Objects of manifests, and slips told at their lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from manifest_texts import items, only

from agent.objects import (
    Container,
    DeclaredPort,
    Namespace,
    Node,
    Pod,
)
from policies.address import Prefix, parse_address
from policies.model import ObjectRef, Origin

BAD = Path(__file__).parent / "bad_manifests.yaml"


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
