"""The pod: commands, mounts, probes, privileges."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from chart_objects import container, containers, layers, mounted, pod, variables
from helm_process import Helm
from helper_containers import MAY

from agent.cli.main import build
from agent.config import merge
from agent.encryption.choose import TUN
from agent.encryption.userspace import SOCKETS
from agent.helpers.names import Name

OWN = "gatehouse"
BY_A_PROGRAM = {"agent": {str(SOCKETS)}, "wireguard": {str(SOCKETS), str(TUN.parent)}}
OTHERS = {("bpffs", "sh"), ("bpffs", "nsenter"), ("clean", "sleep")}
"""Containers that run no command of Gatehouse."""


def test_commands_are_gatehouses(objects: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is taken by the parser of the command it runs, with the variables it has."""
    parsed = 0
    for one in containers(objects):
        program, *words = one["command"]
        if program != OWN:
            assert (one["name"], program) in OTHERS
            continue
        with monkeypatch.context() as patched:
            for name, value in variables(one, objects).items():
                patched.setenv(name, value)
            command = typer.main.get_command(build(words[0])).commands[words[0]]  # type: ignore[attr-defined]
            command.make_context(words[0], words[1:])
        parsed += 1
    assert parsed


def test_helpers_share_the_agents_state(working: list[dict[str, Any]]) -> None:
    config = merge(*layers(working)).config
    for one in containers(working):
        if one["command"][1] == "helper":
            assert one["command"][-2:] == ["--state-dir", config.state_dir]
        if one["command"][0] == OWN:
            assert config.state_dir in mounted(one)


def test_folders_of_the_settings_are_the_nodes(working: list[dict[str, Any]]) -> None:
    """At the same paths in the container: runtimes are told of them, and `gatehouse cleanup` finds them by notes."""
    config = merge(*layers(working)).config
    volumes = {one["name"]: one.get("hostPath", {}).get("path") for one in pod(working)["spec"]["volumes"]}
    of_the_node = {path: volumes[name] for path, name in mounted(container(working, "agent")).items()}
    folders = {config.state_dir, config.cgroup, config.cni_conf_dir, config.cni_bin_dir, "/run/gatehouse", "/run/netns"}
    for folder in folders - {""}:
        assert of_the_node[folder] == folder


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, {}),
        ({"encryption": {"enabled": True}}, BY_A_PROGRAM),
        ({"encryption": {"enabled": True, "implementation": "userspace"}}, BY_A_PROGRAM),
        ({"encryption": {"enabled": True, "implementation": "kernel"}}, {}),
        ({"encryption": {"enabled": True}, "cleanup": {"enabled": True}}, {"cleanup": {str(SOCKETS)}}),
    ],
)
def test_what_a_wireguard_program_needs(helm: Helm, values: dict[str, Any], wanted: dict[str, set[str]]) -> None:
    """Only where one may be run. Its socket is where `wg` looks, on the node, too; and for cleanup to remove."""
    objects = helm.objects(values)
    volumes = {one["name"]: one.get("hostPath", {}).get("path") for one in pod(objects)["spec"]["volumes"]}
    found = {}
    for one in containers(objects):
        paths = {path: name for path, name in mounted(one).items() if path in (str(SOCKETS), str(TUN.parent))}
        assert all(volumes[name] == path for path, name in paths.items())
        if paths:
            found[one["name"]] = set(paths)
    assert found == wanted


def test_every_helper_has_a_container(helm: Helm) -> None:
    """And may do what tests/helper_containers.py lets it do."""
    objects = helm.objects({"encryption": {"enabled": True}})
    may = {one["name"]: one["securityContext"]["capabilities"]["add"] for one in pod(objects)["spec"]["containers"]}
    assert may.keys() == {"agent", *Name}
    assert {name: may[name] for name in Name} == {name: MAY[name].upper().split() for name in Name}


def test_encryption_takes_no_more_rights(helm: Helm) -> None:
    """By the kernel or a program: the agent may set up links in any case, and the kernel loads its module itself. What
    the program may is its container's."""
    without, with_it = (helm.objects(values) for values in ({}, {"encryption": {"enabled": True}}))
    program = container(with_it, Name.WIREGUARD)
    assert program["securityContext"]["capabilities"]["add"] == ["NET_ADMIN"]
    assert [one["securityContext"] for one in containers(with_it) if one != program] == [
        one["securityContext"] for one in containers(without)
    ]
    kinds = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    assert [one for one in with_it if one["kind"] in kinds] == [one for one in without if one["kind"] in kinds]


def test_names_in_the_pod_lead_somewhere(objects: list[dict[str, Any]]) -> None:
    spec = pod(objects)["spec"]
    used = {mount["name"] for one in containers(objects) for mount in one.get("volumeMounts", ())}
    assert used == {one["name"] for one in spec["volumes"]}
    made = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for one in containers(objects):
        ports = {port["name"] for port in one.get("ports", ())}
        probes = [probe for key, probe in one.items() if key.endswith("Probe")]
        assert {probe["httpGet"]["port"] for probe in probes} <= ports
        for variable in one.get("env", ()):
            if (ref := variable.get("valueFrom", {}).get("secretKeyRef")) is not None:
                assert ("Secret", ref["name"]) in made
    assert ("ServiceAccount", spec["serviceAccountName"]) in made
    assert not spec["automountServiceAccountToken"]


def test_probes_ask_what_the_agent_answers(helm: Helm) -> None:
    agent = container(helm.objects({}), "agent")
    probes = {key: probe["httpGet"] for key, probe in agent.items() if key.endswith("Probe")}
    assert sorted(probes) == ["livenessProbe", "readinessProbe", "startupProbe"]
    assert {probe["path"] for probe in probes.values()} == {"/livez"}
    assert {probe["host"] for probe in probes.values()} == {"127.0.0.1"}


def test_containers_have_little(objects: list[dict[str, Any]]) -> None:
    spec = pod(objects)["spec"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in containers(objects):
        context = one["securityContext"]
        assert not context.get("privileged")
        assert context["readOnlyRootFilesystem"]
        assert context["capabilities"]["drop"] == ["ALL"]
        added = context["capabilities"].get("add", [])
        assert context["allowPrivilegeEscalation"] is ("SYS_ADMIN" in added), "for Kubernetes, who has it may escalate"
        assert added == sorted(added)
        assert "ALL" not in added
        assert one["image"].partition(":")[2] not in ("", "latest")


def test_who_has_the_token(objects: list[dict[str, Any]], installation: str) -> None:
    has = [one["name"] for one in containers(objects) if "token" in mounted(one).values()]
    assert has == ([] if installation == "cleanup" else ["agent"])


def test_what_is_turned_off_has_no_container(helm: Helm) -> None:
    def names(values: dict[str, Any]) -> list[str]:
        return [one["name"] for one in pod(helm.objects(values))["spec"]["containers"]]

    assert names({}) == ["agent", "flows", "envoy", "dns"]
    assert names({"l7Proxy": {"enabled": False}}) == ["agent", "flows", "dns"]
    assert names({"dnsProxy": {"enabled": False}}) == ["agent", "flows", "envoy"]
    kernel = {"encryption": {"enabled": True, "implementation": "kernel"}}
    assert names(kernel) == ["agent", "flows", "envoy", "dns"]


def test_scheduled_everywhere(helm: Helm) -> None:
    (found,) = (one for one in helm.objects({}) if one["kind"] == "DaemonSet")
    spec = found["spec"]["template"]["spec"]
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert found["spec"]["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}
    assert spec["hostNetwork"] is True
    assert spec["hostPID"] is False
    assert spec["dnsPolicy"] == "Default"
