"""Containers as real processes: what they get, how they end, how they are found again."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rig
from pods_at import Site, bring_up, in_loop, make_pod, shell, until

from agent.endpoints import launch, namespaces
from agent.endpoints.command import DEFAULT_PATH
from agent.endpoints.container import Backoff
from agent.endpoints.endpoints import Endpoints
from agent.objects import Container, Pod


def pid_of(endpoints: Endpoints, pod: Pod, container: str = "main") -> int:
    state = endpoints.state(pod.ref)
    assert state is not None
    return next((c.pid for c in state.containers if c.name == container), 0)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@in_loop
async def test_environment_directory_session_and_namespace(site: Site, tmp_path: Path) -> None:
    pod = make_pod(
        Container(
            "main",
            command=("/bin/sh", "-c", "env; pwd; cat; echo to-stderr >&2; exec sleep 60"),
            env={"NAME": "web", "GREETING": "hello $(NAME)", "LINES": "a\nb = 'c\"$"},
            working_dir="/usr",
        ),
        # Not every program can hold such a name: sh drops it.
        Container("env", command=("env",), env={"odd.name-1": "x"}),
        restart=False,
    )
    os.environ["GATEHOUSE_TEST_SECRET"] = "of the agent"
    async with site.running(pod) as endpoints:
        await until(lambda: "to-stderr" in site.output(pod))
        output = site.output(pod)
        assert "NAME=web\n" in output
        assert "GREETING=hello web\n" in output
        assert "LINES=a\nb = 'c\"$\n" in output
        assert "HOSTNAME=web\n" in output
        assert "of the agent" not in output
        assert "\n/usr\n" in output
        pid = pid_of(endpoints, pod)
        await until(lambda: "odd" in site.output(pod, "env"))
        assert set(site.output(pod, "env").splitlines()) == {f"PATH={DEFAULT_PATH}", "HOSTNAME=web", "odd.name-1=x"}
        assert os.getsid(pid) == os.getpgid(pid) == pid
        state = endpoints.state(pod.ref)
        assert state is not None and state.interface is not None
        assert Path(f"/proc/{pid}/ns/net").stat().st_ino == Path(state.interface.netns).stat().st_ino
        assert {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()} == {0, 1, 2}
    del os.environ["GATEHOUSE_TEST_SECRET"]


@in_loop
async def test_a_container_without_a_command_runs_nothing(site: Site) -> None:
    pod = make_pod(Container("pause"))
    async with site.running(pod) as endpoints:
        state = endpoints.state(pod.ref)
        assert state is not None and (state.state, state.containers) == ("ready", ())


@pytest.mark.parametrize(
    ("container", "status", "words"),
    [
        (Container("main", command=("/no/such/program",)), 127, "/no/such/program"),
        (Container("main", command=("true",), working_dir="/no/such/directory"), 126, "/no/such/directory"),
    ],
)
@in_loop
async def test_what_cannot_run_says_so_in_its_log(site: Site, container: Container, status: int, words: str) -> None:
    pod = make_pod(container, restart=False)
    async with site.running(pod) as endpoints:
        await until(lambda: (s := endpoints.state(pod.ref)) and s.containers[0].state == "ended")
        state = endpoints.state(pod.ref)
        assert state is not None and state.containers[0].exit_status == status
        assert words in site.output(pod)


@in_loop
async def test_restart_with_back_off_and_appended_output(site: Site) -> None:
    pod = make_pod(shell("date +%s%N; exit 3"))
    backoff = Backoff(initial_s=0.1, maximum_s=0.4, reset_s=600)
    async with site.running(pod, backoff=backoff) as endpoints:
        await until(lambda: len(site.output(pod).split()) >= 5)
        begins = [int(line) / 1e9 for line in site.output(pod).split()]
        gaps = [later - earlier for earlier, later in itertools.pairwise(begins)]
        # none, initial, double, maximum; each plus the time to start a process
        assert all(gap >= wanted for gap, wanted in zip(gaps, (0, 0.1, 0.2, 0.4), strict=False)), gaps
        state = endpoints.state(pod.ref)
        assert state is not None and state.containers[0].restarts >= 4
        assert state.containers[0].exit_status == 3


def test_back_off_doubles_up_to_the_maximum() -> None:
    assert [Backoff().delay_s(n) for n in (0, 1, 2, 3, 6, 7, 8, 10_000)] == [0, 1, 2, 4, 32, 60, 60, 60]


@in_loop
async def test_back_off_is_forgotten_after_a_long_run(site: Site) -> None:
    pod = make_pod(shell("echo run; sleep 0.2"))
    async with site.running(pod, backoff=Backoff(initial_s=30, maximum_s=30, reset_s=0.1)):
        await until(lambda: site.output(pod).count("run") >= 4)


@in_loop
async def test_not_restarted_when_the_policy_says_so_nor_after_a_new_start(site: Site) -> None:
    pod = make_pod(shell("echo run"), restart=False)
    async with site.running(pod, keep=True) as endpoints:
        await until(lambda: (s := endpoints.state(pod.ref)) and s.containers[0].state == "ended")
        await endpoints.start(pod)
    async with site.endpoints() as endpoints:
        await endpoints.adopt([pod.ref])
        await endpoints.start(pod)
        assert site.output(pod) == "run\n"
        await endpoints.start(make_pod(shell("echo changed"), restart=False))
        await until(lambda: site.output(pod) == "run\nchanged\n")


@in_loop
async def test_a_changed_command_replaces_the_process(site: Site) -> None:
    first = make_pod(shell("echo one; exec sleep 60"), shell("exec sleep 60", "same"), shell("exec sleep 60", "gone"))
    second = make_pod(shell("echo two; exec sleep 60"), shell("exec sleep 60", "same"))
    async with site.running(first) as endpoints:
        before = {name: pid_of(endpoints, first, name) for name in ("main", "same", "gone")}
        await endpoints.start(second)
        assert pid_of(endpoints, second, "same") == before["same"]
        assert pid_of(endpoints, second) != before["main"]
        assert not is_alive(before["main"]) and not is_alive(before["gone"])
        await until(lambda: site.output(second).endswith("two\n"))


# A process in another session and process group, and one that was given away to process 1.
ESCAPEES = "setsid sleep 61 & (setsid sleep 62 &) ; sleep 63 & echo started; wait"


@in_loop
async def test_removal_ends_also_what_left_the_process_group(site: Site) -> None:
    pod = make_pod(shell(ESCAPEES))
    async with site.running(pod) as endpoints:
        state = endpoints.state(pod.ref)
        assert state is not None and state.interface is not None
        with rig.Netns.at(state.interface.netns) as inside:
            await until(lambda: len(inside.pids()) == 4)
            pids = inside.pids()
            await endpoints.remove(pod.ref)
            assert inside.pids() == []
        assert not any(map(is_alive, pids))
        assert endpoints.state(pod.ref) is None
        assert not (site.state_dir / "pods" / "shop").exists()


@in_loop
async def test_nothing_of_the_session_outlives_the_first_process(site: Site) -> None:
    pod = make_pod(shell("(trap '' TERM HUP; sleep 64) & echo $!; exit 0"), restart=False)
    async with site.running(pod) as endpoints:
        await until(lambda: (s := endpoints.state(pod.ref)) and s.containers[0].state == "ended")
        assert not is_alive(int(site.output(pod)))


@in_loop
async def test_sigterm_first_then_sigkill_after_the_grace_period(site: Site) -> None:
    pod = make_pod(
        shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done", "polite"),
        shell("trap '' TERM; echo up; while :; do sleep 0.05; done", "stubborn"),
    )
    async with site.running(pod, grace_s=0.5) as endpoints:
        await until(lambda: all("up" in site.output(pod, name) for name in ("polite", "stubborn")))
        pids = [pid_of(endpoints, pod, name) for name in ("polite", "stubborn")]
        log = (site.state_dir / "pods/shop/web/polite.log").open()
        begin = time.monotonic()
        await endpoints.stop(pod.ref)
        assert 0.5 <= time.monotonic() - begin < 4, "its own grace period, not the usual one"
        with log:
            assert log.read().split()[-1] == "bye"
        assert not any(map(is_alive, pids))
        state = endpoints.state(pod.ref)
        assert state is not None and state.state == "removing"


@in_loop
async def test_host_network_pods_run_on_the_node(site: Site) -> None:
    pod = make_pod(shell("(setsid sleep 65 &); exec sleep 66"), host_network=True)
    async with site.running(pod) as endpoints:
        pid = pid_of(endpoints, pod)
        assert Path(f"/proc/{pid}/ns/net").stat().st_ino == os.fstat(site.node.fd).st_ino
        await endpoints.remove(pod.ref)
        assert not is_alive(pid)


@in_loop
async def test_a_restart_in_progress_does_not_survive_removal(site: Site) -> None:
    """Removal at any moment of an endless crash loop leaves no process."""
    pod = make_pod(shell("exit 1"))
    for delay_s in (0.0, 0.001, 0.002, 0.004, 0.008, 0.016):
        async with site.running(pod, backoff=Backoff(0.0001, 0.0001, 600)) as endpoints:
            await asyncio.sleep(delay_s)
            await endpoints.remove(pod.ref)
            assert not list(site.node.pids())


# Starts a pod, says so, and waits to be killed.
AGENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, "tests")
from pods_at import bring_up, make_pod, shell
from agent.endpoints.endpoints import Endpoints

async def main():
    endpoints = Endpoints(sys.argv[1], Path(sys.argv[2]), blanks=1)
    for pod in (make_pod(shell(sys.argv[3]), shell("exec sleep 68", "side")),
                make_pod(shell("exec sleep 69"), name="host", host_network=True)):
        await bring_up(endpoints, pod)
    print("up", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def run_agent_and_kill_it(site: Site, script: str) -> None:
    agent = site.node.popen(
        sys.executable, "-c", AGENT, site.instance, str(site.state_dir), script, stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == b"up\n"
    agent.send_signal(signal.SIGKILL)
    agent.wait()


SCRIPT = "echo up; while :; do sleep 0.05; done"


@in_loop
async def test_processes_outlive_the_agent_and_are_adopted(site: Site) -> None:
    run_agent_and_kill_it(site, SCRIPT)
    pod = make_pod(shell(SCRIPT), shell("exec sleep 68", "side"))
    host = make_pod(shell("exec sleep 69"), name="host", host_network=True)
    await until(lambda: site.output(pod))
    record = launch.read_pid_file(site.state_dir / "pods/shop/web/main.pid")
    async with site.endpoints() as endpoints:
        adopted = await endpoints.adopt([pod.ref, host.ref])
        assert set(adopted) == {pod.ref}
        assert await endpoints.ensure(pod, tuple(adopted[pod.ref].addresses)) == adopted[pod.ref].interface
        await endpoints.activate(pod.ref)
        await endpoints.start(pod)
        await endpoints.start(host)
        pid = pid_of(endpoints, pod)
        assert record is not None and pid == record.pid
        assert is_alive(pid) and is_alive(pid_of(endpoints, host))
        assert site.output(pod) == "up\n"
        os.kill(pid, signal.SIGKILL)  # one that is no child of ours is seen to end, and started again
        await until(lambda: pid_of(endpoints, pod) not in (0, pid))
        await until(lambda: site.output(pod) == "up\nup\n")
        side = pid_of(endpoints, pod, "side")
        await endpoints.remove(pod.ref)
        await endpoints.remove(host.ref)
        assert not is_alive(side)


@in_loop
async def test_what_belongs_to_no_pod_any_more_is_removed(site: Site) -> None:
    run_agent_and_kill_it(site, ESCAPEES)
    (name,) = namespaces.list_names(site.instance)
    with rig.Netns.at(namespaces.path_of(name)) as inside:
        await until(lambda: len(inside.pids()) == 5)
        pids = inside.pids()
        assert len(site.node.pids()) == 1  # of the hostNetwork pod
        async with site.endpoints() as endpoints:
            assert await endpoints.adopt([]) == {}
            assert inside.pids() == site.node.pids() == []
            assert not any(map(is_alive, pids))
            assert namespaces.list_names(site.instance) == []


@in_loop
async def test_a_process_in_a_namespace_that_was_lost_is_not_adopted(site: Site) -> None:
    """Somebody removed the namespace's name while no agent ran: the pod gets a new one, and new processes."""
    run_agent_and_kill_it(site, SCRIPT)
    pod = make_pod(shell(SCRIPT), shell("exec sleep 68", "side"))
    (name,) = namespaces.list_names(site.instance)
    namespaces.take_name(name)
    async with site.endpoints() as endpoints:
        assert await endpoints.adopt([pod.ref]) == {}
        await bring_up(endpoints, pod)
        await until(lambda: site.output(pod) == "up\nup\n")
        state = endpoints.state(pod.ref)
        assert state is not None and state.interface is not None
        pid = pid_of(endpoints, pod)
        assert Path(f"/proc/{pid}/ns/net").stat().st_ino == Path(state.interface.netns).stat().st_ino


def test_a_number_used_again_is_not_taken_for_the_process(tmp_path: Path) -> None:
    record = tmp_path / "main.pid"
    record.write_text(f"abc {Path('/proc/self/stat').read_text()}")
    this = launch.read_pid_file(record)
    assert this is not None and (this.pid, this.digest) == (os.getpid(), "abc")
    pidfd = launch.open_running(this)
    assert pidfd is not None
    os.close(pidfd)
    assert launch.open_running(launch.Running(this.pid, this.start_ticks + 1, "abc")) is None


@pytest.mark.parametrize("content", ["", "abc", "abc 1", "abc x (y) z", "abc 12 (a b) S 1 2"])
def test_a_torn_pid_file_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "main.pid").write_text(content)
    assert launch.read_pid_file(tmp_path / "main.pid") is None


def test_the_agents_own_namespace_is_never_swept(site: Site) -> None:
    with pytest.raises(ValueError, match="own"):
        launch.kill_in_netns({Path("/proc/self/ns/net").stat().st_ino})
    with pytest.raises(ValueError, match="own"):
        site.node.call(launch.kill_in_netns, {os.fstat(site.node.fd).st_ino})


@in_loop
async def test_the_loop_is_not_held_up_by_starts(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    pods = [make_pod(shell("exec sleep 70"), name=f"p{n}", host_network=True) for n in range(30)]
    late: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - before - 0.001)

    async with site.endpoints() as endpoints:
        ticking = asyncio.create_task(tick())
        begin = time.perf_counter()
        await asyncio.gather(*map(endpoints.start, pods))
        spent = time.perf_counter() - begin
        ticking.cancel()
        with capsys.disabled():
            print(f"\n  start of a process: {spent / len(pods) * 1e3:.2f} ms; loop late by {max(late) * 1e3:.1f} ms")
        begin = time.perf_counter()
    with capsys.disabled():
        print(f"  end of {len(pods)} pods: {(time.perf_counter() - begin) * 1e3:.0f} ms")
