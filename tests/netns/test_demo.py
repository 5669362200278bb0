"""The demo as a user runs it: every probe as expected, and nothing left, however it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import agents
import pytest
import rig

from agent.datapath.mounts import BPFFS
from agent.endpoints import namespaces
from agent.instance import Instance
from agent.supervisor import listener_pid

DEMO_S = 240
pytestmark = pytest.mark.timeout(600)
COMMAND = [sys.executable, "-m", "agent.cli.main", "demo"]


class Demo:
    """One run; its box is in a folder of its own, so that demos side by side do not meet."""

    def __init__(self, folder: Path, *flags: str, starter: Sequence[str] = ()) -> None:
        """`starter`: a command that becomes the demo."""
        self.environment = agents.environment() | {"TMPDIR": str(folder)}
        self.process = subprocess.Popen(
            [*starter, *COMMAND, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        found = re.search(r"\(node (gatehouse-demo-\w+)\)", first)
        assert found, first
        self.name = found[1]
        self.folder = folder / self.name
        self.instance = Instance(self.folder / "state")

    def finish(self) -> str:
        output, _ = self.process.communicate(timeout=DEMO_S)
        assert "Traceback" not in output, output
        return output

    def remains(self) -> list[str]:
        """What there is of it: its folder, namespaces, pins, processes."""
        pins = BPFFS / "gatehouse" / self.instance.name
        found = [str(path) for path in (self.folder, pins) if path.exists()]
        found += [path.name for path in Path("/run/netns").glob(f"{self.name}*")]
        found += namespaces.list_names(self.instance.short_name)
        return found + [f"process {pid}" for pid in [listener_pid(self.instance.flows_socket)] if pid]


@pytest.fixture
def demos(root: None, tmp_path: Path) -> Iterator[list[Demo]]:
    """Runs that a test started; a failed one's box is removed all the same."""
    started: list[Demo] = []
    yield started
    for demo in started:
        if demo.process.poll() is None:
            demo.process.kill()
        demo.process.wait()
        assert demo.process.stdout is not None
        demo.process.stdout.close()
        if demo.folder.exists():
            subprocess.run([*COMMAND, "--remove"], env=demo.environment, check=True, timeout=DEMO_S)


def test_every_probe_goes_as_expected_and_nothing_is_left(demos: list[Demo], tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    demos.append(demo)
    output = demo.finish()
    assert demo.process.returncode == 0, output
    done, wanted = map(int, re.findall(r"(\d+) of (\d+) probes went as expected", output)[0])
    assert done == wanted >= 20
    assert len(re.findall(r"^ok ", output, re.MULTILINE)) == wanted
    assert re.search(r"FORWARDED new .* by shop/cart ingress\[0\] via shop/cart:80", output), output
    assert re.search(r"FORWARDED l7 .* HTTP/1.1 GET /menu 200 .* by kitchen/app egress\[0\]", output), output
    assert re.search(r"DROPPED +l7 .* HTTP/1.1 GET /kitchen/keys 403 .* PROXY_DENIED", output), output
    assert re.search(r"FORWARDED l7 .* DNS A supplier.example NOERROR 198.51.100.10", output), output
    assert re.search(r"DROPPED +l7 .* DNS A tracker.example REFUSED", output), output
    assert demo.remains() == []


IN_THE_BACKGROUND = ("env", "--ignore-signal=INT")
"""As a shell without job control starts what ends in `&`."""


@pytest.mark.parametrize(
    ("number", "starter"),
    [(signal.SIGINT, ("env", "--default-signal=INT")), (signal.SIGINT, IN_THE_BACKGROUND), (signal.SIGTERM, ())],
    ids=["SIGINT", "SIGINT in the background", "SIGTERM"],
)
def test_interrupted_it_removes_everything(
    demos: list[Demo], tmp_path: Path, number: signal.Signals, starter: tuple[str, ...]
) -> None:
    demo = Demo(tmp_path, starter=starter)
    demos.append(demo)
    rig.wait_until(lambda: namespaces.list_names(demo.instance.short_name), DEMO_S, "pods of the demo")
    demo.process.send_signal(number)
    demo.finish()
    assert demo.process.returncode != 0
    assert demo.remains() == []


def test_kept_it_runs_on_until_removed(demos: list[Demo], tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--keep")
    demos.append(demo)
    output = demo.finish()
    assert demo.process.returncode == 0, output
    status = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", "status", "--state-dir", str(demo.instance.state_dir)],
        capture_output=True,
        text=True,
        check=False,
        env=demo.environment,
    )
    assert status.returncode == 0, status
    assert re.search(r"Endpoints +11 ready", status.stdout), status.stdout
    subprocess.run([*COMMAND, "--remove"], env=demo.environment, check=True, stdout=subprocess.DEVNULL)
    assert demo.remains() == []
