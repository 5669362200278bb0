"""The commands as people call them: exit statuses, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agents import environment
from command_line import gatehouse

from agent.cli.main import COMMANDS

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: sql}]
"""
PODS = """
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: db}, ports: [{name: sql, port: 80, targetPort: sql}, {name: none, port: 81, targetPort: other}]}
"""


def started(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    command = [sys.executable, "-m", "agent.cli.main", *arguments]
    settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 200, "env": environment()} | options
    result: subprocess.CompletedProcess[str] = subprocess.run(command, check=False, **settings)
    assert "Traceback" not in result.stderr, result.stderr
    return result


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "pods.yaml").write_text(PODS)
    return tmp_path


@pytest.mark.parametrize(
    "command", [*COMMANDS, "services trace", "policy check", "policy explain", "encryption status", "encryption rotate"]
)
def test_help_has_examples(command: str) -> None:
    result = gatehouse(*command.split(), "--help")
    assert result.returncode == 0
    if command != "policy":
        assert "Example" in result.stdout


def test_every_command_is_listed() -> None:
    shown = started("--help").stdout
    assert all(f"  {command} " in shown for command in (*COMMANDS, "version"))


def test_misspelt_command_is_an_error() -> None:
    result = started("statsu")
    assert result.returncode == 2
    assert "status" in result.stderr


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("gatehouse ", set(COMMANDS)),
        ("gatehouse services ", {"trace"}),
        ("gatehouse services --", {"--namespace", "--name", "--problems", "--output", "--state-dir"}),
        ("gatehouse services trace --", {"--source-port", "--output"}),
        ("gatehouse config --", {"--config", "--changed", "--output", "--mtu", "--state-dir"}),
        ("gatehouse preflight --", {"--config", "--output", "--source", "--cni-conf-dir"}),
        ("gatehouse encryption ", {"status", "rotate"}),
        ("gatehouse encryption rotate --", {"--wait", "--no-wait", "--timeout", "--state-dir"}),
        ("gatehouse helper ", {"flows", "dns", "envoy"}),
    ],
)
def test_shell_completion(words: str, known: set[str]) -> None:
    count = str(len(words.split(" ")) - 1)
    env = environment() | {"_GATEHOUSE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
    code = "import sys; sys.argv = ['gatehouse']; from agent.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert known <= set(result.stdout.split())


@pytest.mark.parametrize("command", ["status", "endpoints", "identities", "services", "policies", "nodes", "observe"])
def test_without_an_agent_it_says_what_to_do(command: str, tmp_path: Path) -> None:
    result = gatehouse(command, "--state-dir", str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert f"gatehouse agent --state-dir {tmp_path}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--manifests is missing"),
        (("--manifests", "m", "--mtu", "12"), "--mtu"),
        (("--manifests", "m", "--pod-cidrs", "x"), "--pod-cidrs: 'x' is not a block"),
    ],
)
def test_agent_refuses_what_it_cannot_use(arguments: tuple[str, ...], says: str) -> None:
    result = started("agent", *arguments)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_unknown_variable_is_an_error() -> None:
    result = started("agent", "--manifests", "m", env=environment() | {"GATEHOUSE_MANIFEST": "m"})
    assert result.returncode == 2
    assert "GATEHOUSE_MANIFEST is not a setting" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("command", [("agent", "--manifests", "/tmp"), ("cleanup",)])
def test_not_root(command: tuple[str, ...]) -> None:
    result = started(*command, user=65534, group=65534, extra_groups=[])
    assert result.returncode == 2
    assert "root" in result.stderr
    assert "sudo" in result.stderr


# ---- policy check


def test_check_of_good_manifests(manifests: Path) -> None:
    result = gatehouse("policy", "check", str(manifests))
    assert (result.returncode, result.stdout) == (0, "")


def test_check_says_file_line_and_field(manifests: Path) -> None:
    bad = POLICY.replace("port: sql", "port: 80, endPort: 79").replace("name: db", "name: other")
    (manifests / "policy.yaml").write_text(POLICY + "---" + bad)
    result = gatehouse("policy", "check", str(manifests))
    assert result.returncode == 1
    (line,) = result.stdout.splitlines()
    assert line.startswith(
        f"{manifests}/policy.yaml:18: error: NetworkPolicy shop/other: spec.ingress[0].ports[0].endPort"
    )
    (found,) = json.loads(gatehouse("policy", "check", "-o", "json", str(manifests)).stdout)
    assert (found["severity"], found["line"]) == ("error", 18)


def test_check_finds_what_two_files_define(manifests: Path) -> None:
    (manifests / "again.yaml").write_text(POLICY)
    result = gatehouse("policy", "check", str(manifests))
    assert result.returncode == 1
    assert "policy.yaml" in result.stdout
    assert "again.yaml" in result.stdout


def test_check_warns_of_slips(manifests: Path) -> None:
    (manifests / "policy.yaml").write_text(POLICY.replace("app: web", "app: wbe"))
    result = gatehouse("policy", "check", str(manifests))
    assert result.returncode == 0
    assert "warning" in result.stdout
    assert "app=wbe" in result.stdout
    assert gatehouse("policy", "check", "--strict", str(manifests)).returncode == 1


CILIUM = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromCIDR: [192.0.2.0/24]
  - fromCIDR:
    - 10.1.2.3/8
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: nodes}
spec:
  nodeSelector: {}
  ingress: [{}]
---
apiVersion: v1
kind: List
items:
- apiVersion: cilium.io/v2
  kind: CiliumNetworkPolicy
  metadata: {name: list, namespace: shop}
  spec:
    endpointSelector: {}
    egress:
    - toGroups: [{}]
"""


def test_check_of_other_kinds_says_which_line(manifests: Path) -> None:
    (manifests / "cilium.yaml").write_text(CILIUM)
    result = gatehouse("policy", "check", str(manifests))
    assert result.returncode == 1
    file = f"{manifests}/cilium.yaml"
    assert [line.partition(": ")[::2][1].rpartition(": ")[0] for line in result.stdout.splitlines()] == [
        "warning: CiliumNetworkPolicy shop/names: spec.ingress[1].fromCIDR[0]",
        "warning: CiliumClusterwideNetworkPolicy nodes: spec.nodeSelector",
        "error: CiliumNetworkPolicy shop/list: spec.egress[0].toGroups: is not supported",
    ]
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [f"{file}:{n}" for n in (9, 15, 27)]


def test_check_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = gatehouse("policy", "check", str(tmp_path / "none.yaml"))
    assert result.returncode == 2
    assert "is not there" in result.stderr


# ---- policy explain


@pytest.mark.parametrize(
    ("source", "destination", "port", "status", "says"),
    [
        ("shop/web", "shop/db", "5432", 0, "by NetworkPolicy shop/db ingress[0]"),
        ("shop/web", "shop/db", "sql", 0, "TCP 5432: allow"),
        ("shop/web", "shop/db", "5432/UDP", 1, "no rule allows it"),
        ("shop/web", "service/shop/db", "80", 0, "TCP 5432: allow"),
        ("shop/db", "shop/web", "80", 0, "not-isolated"),
        ("192.0.2.7", "shop/db", "5432", 1, "192.0.2.7"),
        ("host", "shop/db", "5432", 0, "node"),
        ("shop/db", "shop/db", "1", 0, "self"),
        ("shop/web", "shop/db", "icmp", 1, "ICMP"),
        ("2001:db8::1", "shop/db", "icmp", 1, "ICMPv6"),
    ],
)
def test_explain(manifests: Path, source: str, destination: str, port: str, status: int, says: str) -> None:
    arguments = ["--manifests", str(manifests), "--from", source, "--to", destination, "--port", port]
    result = gatehouse("policy", "explain", *arguments)
    assert (result.returncode, result.stderr) == (status, "")
    assert says in result.stdout


PEERS = """
apiVersion: v1
kind: Node
metadata: {name: far, labels: {zone: z1}}
status: {addresses: [{type: InternalIP, address: 192.0.2.50}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toNodes: [{matchLabels: {zone: z1}}]
  - toServices: [{k8sService: {serviceName: db, namespace: shop}}]
    toPorts: [{ports: [{port: "5432", protocol: TCP}], rules: {http: [{path: /a}]}}]
"""


@pytest.mark.parametrize(
    ("destination", "port", "status", "says"),
    [
        (
            "192.0.2.50",
            "80",
            0,
            "allow, by CiliumNetworkPolicy shop/web egress[0]",
        ),
        ("192.0.2.51", "80", 1, "no rule allows it"),
        ("shop/db", "5432", 0, "redirect, by CiliumNetworkPolicy shop/web egress[1], which asks for HTTP"),
    ],
)
def test_explain_knows_nodes_and_services(manifests: Path, destination: str, port: str, status: int, says: str) -> None:
    (manifests / "peers.yaml").write_text(PEERS)
    arguments = ["--manifests", str(manifests), "--from", "shop/web", "--to", destination, "--port", port]
    result = gatehouse("policy", "explain", *arguments)
    assert (result.returncode, result.stderr) == (status, "")
    assert says in result.stdout


@pytest.mark.parametrize(
    ("destination", "port", "says"),
    [
        ("shop/none", "80", "there is no pod shop/none"),
        ("nobody", "80", "'nobody' is no pod"),
        ("shop/db", "http", "has no TCP port named http"),
        ("shop/db", "80/QUIC", "'QUIC' is none of TCP"),
        ("shop/db", "70000", "not between 1 and 65535"),
        ("service/shop/db", "443", "has no port 443: it has 80/TCP, 81/TCP"),
        ("service/shop/db", "81", "no ready backend"),
        ("service/shop/web", "80", "there is no service shop/web"),
    ],
)
def test_explain_asked_of_nothing(manifests: Path, destination: str, port: str, says: str) -> None:
    arguments = ["--manifests", str(manifests), "--from", "shop/web", "--to", destination, "--port", port]
    result = gatehouse("policy", "explain", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert says in result.stderr


# ---- plan


def test_plan_is_what_would_be_installed(manifests: Path) -> None:
    result = gatehouse("plan", str(manifests), "-o", "json")
    assert (result.returncode, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert set(plan) == {"endpoints", "addresses", "policy", "services"}
    assert set(plan["endpoints"]) == {"shop/db", "shop/web"}
    (cells,) = (
        remotes[remote]
        for subject, sides in plan["policy"].items()
        for remotes in (sides["ingress"],)
        for remote in remotes
        if "app=db" in subject and "app=web" in remote
    )
    assert cells == ["allow TCP 5432 by NetworkPolicy shop/db ingress[0]"]
    assert "shop/db" in gatehouse("plan", str(manifests)).stdout


def test_plan_of_bad_manifests_says_so(manifests: Path) -> None:
    (manifests / "bad.yaml").write_text("kind: [")
    result = gatehouse("plan", str(manifests))
    assert result.returncode == 1
    assert "bad.yaml:1" in result.stderr


@pytest.mark.parametrize("pod", ["web", "shop/", ""])
def test_exec_wants_namespace_and_pod(pod: str) -> None:
    result = gatehouse("exec", pod, "--", "true")
    assert result.returncode == 2
    assert "is not NAMESPACE/POD" in result.stderr
