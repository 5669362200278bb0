"""Pods' processes in cgroups of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pods_at import ADDRESSES, Site, bring_up, in_loop, make_pod, shell, until

from agent.datapath.mounts import ensure_cgroup2
from agent.endpoints import cgroups, namespaces
from agent.endpoints.cgroups import PodCgroups
from agent.objects import Container
from policies.model import ObjectRef

ENTER = "import sys; from pathlib import Path; from agent.endpoints import enter\n"
ENTER += "enter.execute(sys.argv[1], sys.argv[3:], cgroup=Path(sys.argv[2]))\n"


@pytest.fixture
def folder(root: None) -> Iterator[Path]:
    """A cgroup for one agent; the test may leave nothing in it."""
    folder = ensure_cgroup2() / f"gh-test-{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir()
    yield folder
    left = [path.name for path in folder.glob("pods/*/")]
    cgroups.remove_tree(folder)
    assert left == [], "the test left cgroups behind"


def pids(folder: Path) -> list[int]:
    return [int(pid) for pid in (folder / cgroups.PROCESSES).read_text().split()]


def arguments(pid: int) -> list[str]:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1] or [""]
    return [""]


@in_loop
async def test_all_that_a_pod_runs_is_in_its_cgroup_from_its_first_command_on(site: Site, folder: Path) -> None:
    pod = make_pod(
        shell("grep ^0:: /proc/self/cgroup; sleep 60 & setsid sleep 61 & wait"),
        shell("exec sleep 62", "side"),
        Container("pause"),
    )
    async with site.running(pod, cgroup=folder) as endpoints:
        own = PodCgroups(folder, site.instance).of(pod.ref)
        await until(lambda: {"60", "61", "62"} <= {arguments(pid)[-1] for pid in pids(own)})
        assert site.output(pod) == f"0::/{own.relative_to(ensure_cgroup2())}\n".replace("//", "/")
        state = endpoints.state(pod.ref)
        assert state is not None and {c.pid for c in state.containers} < set(pids(own))
        assert os.getpid() not in pids(own)
    assert not own.exists()


@in_loop
async def test_a_container_that_starts_again_is_back_in_it(site: Site, folder: Path) -> None:
    pod = make_pod(shell("grep ^0:: /proc/self/cgroup"))
    async with site.running(pod, cgroup=folder):
        await until(lambda: site.output(pod).count("\n") >= 3)
        own = PodCgroups(folder, site.instance).of(pod.ref)
        assert {line.rpartition("/")[2] for line in site.output(pod).splitlines()} == {own.name}


@in_loop
async def test_pods_of_the_nodes_network_too(site: Site, folder: Path) -> None:
    pod = make_pod(shell("sleep 60"), host_network=True)
    async with site.running(pod, cgroup=folder):
        await until(lambda: pids(PodCgroups(folder, site.instance).of(pod.ref)))


@in_loop
async def test_adopted_processes_stay_in_theirs_and_those_of_lost_pods_go(site: Site, folder: Path) -> None:
    stays, goes, forgotten = (make_pod(shell("exec sleep 60"), name=name) for name in ("stays", "goes", "forgotten"))
    own = PodCgroups(folder, site.instance)
    async with site.running(stays, cgroup=folder, keep=True) as endpoints:
        await endpoints.ensure(goes, [ADDRESSES[0][:-1] + b"\x09"])
        await endpoints.start(goes)
        await until(lambda: pids(own.of(stays.ref)) and pids(own.of(goes.ref)))
    own.make(forgotten.ref)
    before = pids(own.of(stays.ref))
    async with site.endpoints(cgroup=folder) as endpoints:
        await endpoints.adopt([stays.ref])
        await endpoints.start(stays)
        assert pids(own.of(stays.ref)) == before
        assert not own.of(goes.ref).exists() and not own.of(forgotten.ref).exists()


@in_loop
async def test_commands_run_in_a_pod_are_in_its_cgroup_and_end_with_it(site: Site, folder: Path) -> None:
    pod = make_pod(Container("pause"))
    async with site.endpoints(cgroup=folder) as endpoints:
        await bring_up(endpoints, pod)
        state = endpoints.state(pod.ref)
        assert state is not None and state.interface is not None
        own = cgroups.of_netns(folder, state.interface.netns)
        assert own == PodCgroups(folder, site.instance).of(pod.ref)
        argv = [sys.executable, "-c", ENTER, state.interface.netns, str(own), "sleep", "60"]
        with subprocess.Popen(argv) as command:
            await until(lambda: command.pid in pids(own))
            await endpoints.remove(pod.ref)
            assert command.wait(60) == -9
        assert not own.exists()


def test_a_pod_without_a_cgroup_can_be_entered_all_the_same(site: Site, folder: Path) -> None:
    argv = [sys.executable, "-c", ENTER, site.node.path, str(folder / "pods/none"), "cat", "/proc/self/cgroup"]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=True).stdout
    assert told.splitlines() == Path("/proc/self/cgroup").read_text().splitlines()


@pytest.fixture
def agents_folder(root: None) -> Iterator[Path]:
    folder = ensure_cgroup2() / f"gh-test-{os.getpid()}-{os.urandom(4).hex()}" / "agent"
    yield folder
    assert not folder.parent.exists()


def test_an_agents_cgroup_is_removed_with_what_pods_run_and_nobody_else(agents_folder: Path) -> None:
    pod, node = PodCgroups(agents_folder, "t1").make(ObjectRef("Pod", "shop", "web")), agents_folder / "node"
    node.mkdir()
    with subprocess.Popen(["sleep", "60"]) as of_pod, subprocess.Popen(["sleep", "60"]) as of_node:
        for process, folder in ((of_pod, pod), (of_node, node)):
            (folder / cgroups.PROCESSES).write_text(str(process.pid))
        assert cgroups.remove_tree(agents_folder)
        assert of_pod.wait(60) == -9
        assert of_node.poll() is None
        of_node.kill()
    assert not cgroups.remove_tree(agents_folder)


def test_but_never_from_inside_a_pod(agents_folder: Path) -> None:
    pod = PodCgroups(agents_folder, "t1").make(ObjectRef("Pod", "shop", "web"))
    code = "import sys; from pathlib import Path; from agent.endpoints import cgroups\n"
    code += "cgroups.join(Path(sys.argv[2])); cgroups.remove_tree(Path(sys.argv[1]))"
    argv = [sys.executable, "-c", code, str(agents_folder), str(pod)]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
    assert told.returncode == 1 and "this process runs in" in told.stderr
    assert cgroups.remove_tree(agents_folder)


@in_loop
async def test_an_interface_says_its_namespaces_cookie(site: Site) -> None:
    pod = make_pod()
    async with site.endpoints(keep=True) as endpoints:
        interface = await endpoints.ensure(pod, ADDRESSES)
        netns = os.open(interface.netns, os.O_RDONLY)
        assert interface.netns_cookie == namespaces.cookie(netns) != 0
        assert interface.netns_cookie != namespaces.cookie(site.node.fd)
        os.close(netns)
    async with site.endpoints() as endpoints:
        adopted = await endpoints.adopt([pod.ref])
        assert adopted[pod.ref].interface == interface
        await endpoints.remove(pod.ref)
