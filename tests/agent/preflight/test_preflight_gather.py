"""Facts read from this machine, and from folders made for it."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import rig
from agents import environment

from agent.config import build
from agent.datapath.programs import ProgramType
from agent.preflight import gather, probes
from agent.preflight.facts import Folder

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]


def test_this_machine(datapath_host: None, tmp_path: Path) -> None:
    with socket.socket() as listener, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as bound:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        bound.bind(("::1", 0))
        facts = gather.gather(build({"manifests": "m", "state_dir": str(tmp_path / "a" / "b")}))
        assert listener.getsockname()[1] in facts.node.tcp_ports
        assert bound.getsockname()[1] in facts.node.udp_ports
    assert facts.kernel.release == os.uname().release
    assert facts.kernel.bpf == 0
    assert {name: probe for name, probe in facts.kernel.programs.items() if probe.error} == {}
    assert "bpf" in facts.kernel.filesystems
    assert facts.node.devices is not None
    assert "lo" in [device.name for device in facts.node.devices]
    assert 0 < facts.node.local_ports[0] < facts.node.local_ports[1] <= 65535
    assert facts.host.memory_bytes
    assert (facts.host.bcc, facts.host.headers) == ("", "")
    assert facts.host.envoy is not None, facts.host.envoy_problem
    assert facts.host.state_dir is not None
    assert (facts.host.state_dir.exists, facts.host.state_dir.writable) == (False, True)
    assert facts.host.state_dir.kind and facts.host.state_dir.free_bytes
    assert not (tmp_path / "a").exists()
    assert facts.api_server is None


def test_a_kernel_that_refuses_says_why(datapath_host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    code = probes._code((probes._CALL, 0, 0, 0, 9999), (probes._EXIT, 0, 0, 0, 0))
    monkeypatch.setitem(probes.PROGRAMS, "tc", (ProgramType.SCHED_CLS, 0, code))
    refused = probes.programs(["tc"])["tc"]
    assert refused.error == errno.EINVAL
    assert "unknown func" in refused.log or "invalid func" in refused.log


def test_wireguard_is_asked_for_where_it_is_wanted(datapath_host: None, tmp_path: Path) -> None:
    """By a device in a namespace of its own: there is none here after it."""
    wanted = {"manifests": "m", "encryption": "wireguard", "devices": "eth0"}
    with rig.Netns() as netns:
        here = [gather._kernel(build(wanted | {"wireguard": setting})).wireguard for setting in ("auto", "userspace")]
        made = netns.run("ip", "link", "add", "wg0", "type", "wireguard", check=False)
        assert netns.call(gather._wireguard) == here[0], "a device of that name is in nobody's way"
        netns.run("ip", "link", "del", "wg0", check=False)
        assert len(netns.run("ip", "-oneline", "link").stdout.splitlines()) == 1, "lo"
    assert (here[0] == 0) == (made.returncode == 0), made.stderr
    assert here[1] is None
    host = gather._host(build(wanted | {"wireguard_program": "sh"}))
    assert host.wireguard_program
    assert not gather._host(build(wanted | {"wireguard_program": str(tmp_path / "none")})).wireguard_program
    assert (host.tun == 0) == Path("/dev/net/tun").exists()


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    for name in ("20-b.conf", "10-a.conflist", "README", "30-c.json"):
        (tmp_path / "conf" / name).touch()
    config = build(
        {
            "manifests": "m",
            "pods": "cni",
            "cni_conf_dir": str(tmp_path / "conf"),
            "cni_bin_dir": str(tmp_path / "bin"),
            "state_dir": str(tmp_path / "conf" / "README" / "state"),
        }
    )
    host = gather._host(config)
    assert host.cni_configurations == ("10-a.conflist", "20-b.conf", "30-c.json")
    assert host.cni_conf_dir is not None and host.cni_conf_dir.writable
    assert host.cni_bin_dir == Folder(exists=False, writable=False)
    assert host.state_dir is not None and not host.state_dir.writable  # below a file


def test_a_network_of_its_own(datapath_host: None) -> None:
    """What is asked of the network is asked of the namespace this runs in; nothing there is changed."""
    with rig.Netns() as netns:
        netns.run("ip", "link", "add", "cilium_host", "type", "veth", "peer", "name", "kube-ipvs0")
        before = netns.run("sh", "-c", "ip -j address; sysctl -a 2>/dev/null | grep -v 'random\\|nr_\\|stat'").stdout
        command = [sys.executable, "-m", "agent.cli.main", "preflight", "--manifests", "m", "-o", "json"]
        done = netns.run(*command, check=False, env=environment())
        after = netns.run("sh", "-c", "ip -j address; sysctl -a 2>/dev/null | grep -v 'random\\|nr_\\|stat'").stdout
    found = {row["name"]: row for row in json.loads(done.stdout)}
    assert "Cilium: device cilium_host" in found["other agents"]["found"]
    assert "device kube-ipvs0" in found["kube-proxy"]["found"]
    assert found["devices"]["result"] == "warn"
    assert found["sysctls"]["result"] == "ok"
    assert done.returncode == (1 if any(row["result"] == "fail" for row in found.values()) else 0)
    assert [line for line in before.splitlines() if line.startswith("net.")] == [
        line for line in after.splitlines() if line.startswith("net.")
    ]


def test_without_privileges_it_says_so(root: None, tmp_path: Path) -> None:
    done = preflight("--manifests", "m", "-o", "json", launcher=NOBODY)
    found = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert found["privileges"]["result"] == "fail"
    assert found["bpf"]["result"] == "fail"
    assert {found[name]["result"] for name in ("programs", "bpf_sk_assign", "bpf_redirect_peer")} == {"unknown"}


def test_an_api_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        (tmp_path / "config").write_text(KUBECONFIG % taken.getsockname()[1])
        flags = ("--source", "kubernetes", "--ipam", "node", "--kubeconfig", str(tmp_path / "config"))
        done = preflight(*flags)
    assert done.returncode == 1
    assert "API server" in done.stdout
    missing = preflight("--source", "kubernetes", "--ipam", "node", "--kubeconfig", str(tmp_path / "none"))
    assert missing.returncode == 1
    assert "API server (fail)" in missing.stdout


KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:%d"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: t}}]
current-context: c
"""


def test_settings_that_cannot_be_are_a_row() -> None:
    done = preflight("--source", "directory")
    assert done.returncode == 1
    assert "settings (fail)" in done.stdout
    unreadable = preflight("--mtu", "wide")
    assert (unreadable.returncode, unreadable.stdout) == (2, "")


def preflight(*flags: str, launcher: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*(launcher or []), sys.executable, "-m", "agent.cli.main", "preflight", *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200, env=environment())
    assert "Traceback" not in done.stderr, done.stderr
    return done
