"""The box the demo's cluster lives in: a namespace that is the node, one that is the world outside, an agent.

Nothing of it touches the machine's own network. `Box` is a context manager: leaving it removes everything, also
after an interrupt.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

NODE_ADDRESSES = ("203.0.113.1/32", "2001:db8:1::1/128")
OUTSIDE_ADDRESSES = ("198.51.100.10/32", "198.51.100.66/32", "2001:db8:100::10/128")
OUTSIDE_PORTS = ("tcp:443", "tcp:80")
STOP_S = 20.0
PREFIX = "gatehouse-demo-"

HERE = Path(__file__).parent


class BoxError(RuntimeError):
    """The box could not be built; the message says what to do."""


class Box:
    """Namespaces, the servers outside, and the agent. `keep` leaves it all running when the block ends in order."""

    def __init__(self, keep: bool = False, folder: Path | None = None) -> None:
        self.keep = keep
        self.folder = folder or Path(tempfile.mkdtemp(prefix=PREFIX))
        self.state_dir = self.folder / "state"
        self.manifests = self.folder / "manifests"
        self.node = self.folder.name
        self.outside = f"{self.node}-outside"
        self.agent: subprocess.Popen[bytes] | None = None
        self._servers: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Box:
        try:
            self._write_manifests()
            self._build_networks()
            self._start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not (self.keep and kind is None):
            self.remove()

    def _write_manifests(self) -> None:
        """Copies, as they may be edited while the box stands; the commands of pods get this machine's paths."""
        self.manifests.mkdir()
        for source in sorted((HERE / "manifests").glob("*.yaml")):
            text = source.read_text().replace("$(PYTHON)", "/usr/bin/python3")
            for word, server in (("$(SERVE)", "serve.py"), ("$(KITCHEN)", "kitchen.py")):
                text = text.replace(word, str(HERE / server))
            (self.manifests / source.name).write_text(text)

    def _build_networks(self) -> None:
        """node — veth — outside, with routes for each other's addresses and no other way out of either."""
        for name in (self.node, self.outside):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.node, "link", "add", "outside", "type", "veth", "peer", "name", "eth0", "netns", self.outside)
        for name, link, own, others in (
            (self.node, "outside", NODE_ADDRESSES, OUTSIDE_ADDRESSES),
            (self.outside, "eth0", OUTSIDE_ADDRESSES, NODE_ADDRESSES),
        ):
            ip("-n", name, "link", "set", link, "up")
            for address in own:
                ip("-n", name, "address", "add", address, "dev", link, *(["nodad"] if ":" in address else []))
            for address in others:
                ip("-n", name, "route", "add", address, "dev", link)
        for address in NODE_ADDRESSES:
            gateway = address.partition("/")[0]
            ip("-n", self.outside, "route", "add", "default", "via", gateway, "dev", "eth0", "onlink")

    def _start(self) -> None:
        serve = ["/usr/bin/python3", "-I", str(HERE / "serve.py"), "outside", *OUTSIDE_PORTS]
        self._servers = self._run_in(self.outside, serve, "outside.log")
        command = [
            *(sys.executable, "-m", "agent.cli.main", "agent", "--node", "demo"),
            *("--manifests", str(self.manifests), "--state-dir", str(self.state_dir)),
            *("--node-addresses", ",".join(a.partition("/")[0] for a in NODE_ADDRESSES)),
            *(["--keep"] if self.keep else ["--remove-on-exit"]),
        ]
        self.agent = self._run_in(self.node, command, "agent.log")

    def _run_in(self, netns: str, command: list[str], log: str) -> subprocess.Popen[bytes]:
        """In a session of its own: Ctrl-C is for the demo, which then stops everything in order."""
        with (self.folder / log).open("wb") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", netns, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def agent_log(self, lines: int = 5) -> str:
        log = self.folder / "agent.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""

    def remove(self) -> None:
        """Stop what was started, by pid, and remove what was made. Safe to call again."""
        for process in (self.agent, self._servers):
            if process is not None and process.poll() is None:
                stop(process)
        if (self.state_dir / "state.json").exists():
            subprocess.run(
                [sys.executable, "-m", "agent.cli.main", "cleanup", "--state-dir", str(self.state_dir)],
                check=False, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        for name in (self.outside, self.node):
            if Path("/run/netns", name).exists():
                ip("netns", "delete", name)
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_kept() -> list[Path]:
    """Remove the boxes that --keep left; returns their folders."""
    folders = sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))
    for folder in folders:
        box = Box(folder=folder)
        for name in (box.node, box.outside):
            if Path("/run/netns", name).exists():
                for pid in ip("netns", "pids", name).split():
                    stop_pid(int(pid))
        box.remove()
    return folders


def stop_pid(pid: int) -> None:
    """SIGTERM a process that is not our child, and await its end; SIGKILL it when it takes too long."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number, wait_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, None)):
            signal.pidfd_send_signal(fd, number)
            if select.select([fd], [], [], wait_s)[0]:
                return
    except ProcessLookupError:
        return
    finally:
        os.close(fd)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BoxError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout
