"""Scratch network namespaces for tests: a node to hang pods off, and the world outside of it.

    with Node() as node, Outside(node) as outside:
        node.run("ip", "address")                  # a command inside
        node.call(Sandboxes, "t1")                 # a function in a thread that is inside
        probes.tcp(outside, "192.0.2.1", 80)       # see probes.py

Everything is gone when the block ends: processes inside, the namespace, its links. What a killed test run left is
removed by the next (`sweep`). A name holds the process id, so runs side by side do not meet.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from patience import SLOWER

from agent.endpoints import namespaces

P = ParamSpec("P")
T = TypeVar("T")

NODE_V4, NODE_V6 = "192.0.2.1", "2001:db8:0:1::1"
OUTSIDE_V4, OUTSIDE_V6 = "192.0.2.2", "2001:db8:0:1::2"
COMMAND_TIMEOUT_S = 60.0 * SLOWER
WAIT_S = 30.0 * SLOWER
_PREFIX = "ght-"
_counter = itertools.count(1)


def new_instance() -> str:
    """An agent instance no other test uses; `sweep_instance` removes what it left."""
    return f"t{os.getpid()}x{next(_counter)}"


class Netns:
    """A network namespace: one made here (and removed at the end), or with `at` an existing one."""

    def __init__(self, role: str = "ns") -> None:
        self.name = f"{_PREFIX}{os.getpid()}-{next(_counter)}-{role}"
        self._owned = True
        self._processes: list[subprocess.Popen[bytes]] = []

        def make() -> int:
            fd = namespaces.create()
            namespaces.give_name(fd, self.name)
            return fd

        self.fd = _in_thread(make)
        self.path = str(namespaces.path_of(self.name))
        self.ip("link set lo up")

    @classmethod
    def at(cls, path: str | Path) -> Netns:
        """A namespace that somebody else made, such as a pod's; closing it removes nothing."""
        self = cls.__new__(cls)
        self.name = Path(path).name
        self.path = str(path)
        self._owned = False
        self._processes = []
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __enter__(self) -> Netns:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in a thread that is inside. Sockets it makes stay inside, whoever uses them later."""

        def inside() -> T:
            namespaces.enter(self.fd)
            return function(*args, **kwargs)

        return _in_thread(inside)

    def run(
        self, *argv: str, check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; `options` go to subprocess.run."""
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": timeout_s}
        settings |= options
        result: subprocess.CompletedProcess[str] = self.call(
            lambda: subprocess.run(list(argv), check=False, **settings)
        )
        if check and result.returncode != 0:
            raise AssertionError(f"{argv} in {self.name}: {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command inside, in a process group of its own; it is killed when the namespace is closed."""
        settings: dict[str, Any] = {"start_new_session": True}
        process: subprocess.Popen[bytes] = self.call(lambda: subprocess.Popen(list(argv), **(settings | options)))
        self._processes.append(process)
        return process

    def ip(self, *commands: str) -> None:
        """iproute2 commands without the leading `ip`, in one batch."""
        self.run("ip", "-batch", "-", input="".join(f"{command}\n" for command in commands))

    def sysctl(self, **values: str) -> None:
        """Set sysctls below net: dots and dashes of the name are double and single underscores,
        e.g. sysctl(ipv4__ip_forward="1")."""

        def write() -> None:
            for key, value in values.items():
                Path("/proc/sys/net", *key.split("__")).write_text(value)

        self.call(write)

    def pids(self) -> list[int]:
        """Processes inside, our own short-lived threads apart."""
        return [pid for pid in _pids_in(os.fstat(self.fd).st_ino) if pid != os.getpid()]

    def await_own(self, addresses: Sequence[str], device: str) -> None:
        """Until the kernel takes them for its own, and has a link-local one where there is a link: those of IPv6 one of
        its workers makes so, after `ip` is done."""
        wanted = [f"local {ipaddress.ip_address(address)} " for address in addresses if ":" in address]
        if wanted and device != "lo":
            wanted.append("local fe80:")

        def are_own() -> bool:
            routes = self.run("ip", "-6", "route", "show", "table", "local", "dev", device).stdout.splitlines()
            return all(any(route.startswith(one) for route in routes) for one in wanted)

        wait_until(are_own, what=f"{addresses} are {self.name}'s by {device}")

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        if self._owned:
            _kill_all_in(os.fstat(self.fd).st_ino)
            namespaces.take_name(self.name)
        os.close(self.fd)


class Node(Netns):
    """A namespace that plays a Kubernetes node: a routable address of each family on `lo`, nothing else.

    `forwarding` routes between pods at once; leave it off where the agent is to set it.
    """

    def __init__(self, forwarding: bool = False, addresses: Sequence[str] = (NODE_V4, NODE_V6)) -> None:
        super().__init__("node")
        self.addresses = tuple(addresses)
        if forwarding:
            self.sysctl(ipv4__ip_forward="1", ipv6__conf__all__forwarding="1")
        self.ip(*(f"address add {a} dev lo {'nodad' if ':' in a else ''}" for a in addresses))
        self.await_own(addresses, "lo")

    def __enter__(self) -> Node:
        return self


class Outside(Netns):
    """A namespace on a veth to a node, with addresses no pod has. It sends everything it does not know to the node.

    `extra` addresses are added to it and routed to it, e.g. for ipBlock rules.
    """

    def __init__(self, node: Node, extra: Sequence[str] = ()) -> None:
        super().__init__("outside")
        self.node = node
        self.link = f"out{next(_counter)}"
        node.ip(f"link add {self.link} type veth peer name eth0 netns {self.name}")
        for here, there in ((node, self.link), (self, "eth0")):
            # Until the link-local address is known to be nobody else's, up to two seconds, no neighbour is asked for.
            here.sysctl(**{f"ipv6__conf__{there}__accept_dad": "0"})
            here.ip(f"link set {there} up")
        for here, there, mine, other in (
            (node, self.link, node.addresses, (OUTSIDE_V4, OUTSIDE_V6, *extra)),
            (self, "eth0", (OUTSIDE_V4, OUTSIDE_V6, *extra), node.addresses),
        ):
            here.ip(
                *(f"address replace {a} dev {there} {'nodad' if ':' in a else ''}" for a in mine),
                *(f"route replace {a} dev {there}" for a in other),
            )
            here.await_own(mine, there)
        gateways = {(":" in a): a for a in node.addresses}
        self.ip(*(f"route replace default via {a} dev eth0 onlink" for a in gateways.values()))

    def __enter__(self) -> Outside:
        return self


def sweep() -> None:
    """Remove what test runs that no longer exist left behind."""
    if not namespaces.RUN_DIR.exists():
        return
    for path in namespaces.RUN_DIR.iterdir():
        if path.name.startswith(_PREFIX):
            pid = path.name.removeprefix(_PREFIX).split("-")[0]
        elif path.name.startswith("gh-t") and "x" in path.name:
            pid = path.name.removeprefix("gh-t").split("x")[0]
        else:
            continue
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _remove(path.name)


def sweep_instance(instance: str) -> list[str]:
    """Remove the pod namespaces an agent instance left; returns their names, so that a test can say there were none."""
    names = namespaces.list_names(instance)
    for name in names:
        _remove(name)
    return names


def wait_until(condition: Callable[[], T], timeout_s: float = WAIT_S, what: str = "") -> T:
    """Poll until the condition is true, for what sends no event; AssertionError after the time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(0.005)
    return value


def _remove(name: str) -> None:
    path = namespaces.path_of(name)
    if path.exists():
        _kill_all_in(path.stat().st_ino)
    namespaces.take_name(name)


def _pids_in(inode: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns/net").stat().st_ino == inode:
                    yield int(entry.name)
            except OSError:
                continue  # it ended meanwhile, or is a zombie


def _kill_all_in(inode: int) -> None:
    if inode == Path("/proc/self/ns/net").stat().st_ino:
        raise AssertionError("will not kill the processes of the test's own namespace")
    for _ in range(20):
        pids = list(_pids_in(inode))
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def _in_thread(function: Callable[[], T]) -> T:
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
