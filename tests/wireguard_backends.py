"""Which sorts of WireGuard there are here, and clusters whose nodes have one or both of them."""

from __future__ import annotations

import functools
import shutil
import subprocess

import pytest
import rig

from agent.encryption import choose

BACKENDS = ("userspace", "kernel")
CLUSTERS = (*BACKENDS, "mixed")
"""Mixed: the nodes have the kernel's and a program's in turn."""


def need(backend: str) -> None:
    """Skips the test where there is no such WireGuard."""
    if why := missing(backend):
        pytest.skip(why)


def need_all(cluster: str) -> None:
    """The same for one of CLUSTERS, or where there is no stock tool to look at devices."""
    stock()
    for backend in of_nodes(cluster, 2):
        need(backend)


def of_nodes(cluster: str, count: int) -> tuple[str, ...]:
    """The backend of each node."""
    kinds = BACKENDS[::-1] if cluster == "mixed" else (cluster,)
    return tuple(kinds[number % len(kinds)] for number in range(count))


@functools.cache
def missing(backend: str) -> str:
    """Why there is no such WireGuard here; empty: there is."""
    if backend == "kernel":
        with rig.Netns("probe") as probe:
            return probe.call(choose.kernel_problem, "ghwgprobe")
    if not choose.TUN.exists() and shutil.which("modprobe"):  # where nothing else has asked for it yet
        subprocess.run(["modprobe", "tun"], check=False, capture_output=True)
    return choose.program_problem("wireguard-go")


def stock_missing() -> str:
    return "" if shutil.which("wg") else "needs wg (Debian: wireguard-tools), which set-up installs"


def stock(*words: str) -> list[str]:
    """A command line of the stock tool."""
    if why := stock_missing():
        pytest.skip(why)
    return ["wg", *words]
