"""Facts read from the node this runs on. Writes nothing, loads no program that stays, ends within seconds."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from agent import privileges
from agent.config import Config, listen_address, port_range
from agent.datapath import devices, mounts
from agent.encryption import userspace
from agent.encryption.choose import TUN
from agent.encryption.link import NodeLink
from agent.endpoints import links, namespaces, node
from agent.endpoints.netlink import NetlinkError, RouteSocket
from agent.kubeproxy import signs
from agent.preflight import probes
from agent.preflight.answers import api_server, envoy_version
from agent.preflight.facts import Facts, Folder, Host, Kernel, Node
from agent.supervisor import listener_pid

TIME_ERROR = 5  # adjtimex(2)
_LISTENS, _BOUND = "0A", "07"
SIGNS = {
    "Cilium": (("cilium_host", "cilium_net", "cilium_vxlan"), "/var/run/cilium/cilium.sock"),
    "Calico": (("cali", "vxlan.calico"), "/var/run/calico/bird.ctl"),
    "Flannel": (("flannel.",), "/run/flannel/subnet.env"),
    "Weave Net": (("weave",), "/var/run/weave/weave.sock"),
}
"""Beginnings of the names of devices, and a file, that tell of another network agent."""

Value = TypeVar("Value")


def gather(config: Config) -> Facts:
    with ThreadPoolExecutor(3) as threads:
        version = threads.submit(envoy_version, config)
        server = threads.submit(api_server, config)
        kernel = threads.submit(_kernel, config)
        here = _node(config)
        version_text, problem = version.result()
        host = msgspec.structs.replace(_host(config), envoy=version_text, envoy_problem=problem)
        return Facts(kernel.result(), here, host, server.result())


# ---- the kernel


def _kernel(config: Config) -> Kernel:
    release = os.uname().release
    return Kernel(
        release=release,
        btf=Path("/sys/kernel/btf/vmlinux").exists() if Path("/sys/kernel").is_dir() else None,
        jit=_text("/proc/sys/net/core/bpf_jit_enable"),
        bpf=probes.map_error(),
        programs=probes.programs(),
        filesystems=frozenset(line.split()[-1] for line in (_text("/proc/filesystems") or "").splitlines()),
        modules=_modules(release),
        wireguard=_wireguard() if config.encryption != "off" and config.wireguard != "userspace" else None,
        capabilities=privileges.capabilities()["CapEff"],
    )


def _modules(release: str) -> frozenset[str] | None:
    """By name. Of one that is built in without parameters only modules.builtin tells."""
    folder = Path("/lib/modules") / release
    listed = [text for name in ("modules.dep", "modules.builtin") if (text := _text(folder / name)) is not None]
    found = {Path(line.partition(":")[0]).name.partition(".ko")[0] for text in listed for line in text.splitlines()}
    with suppress(OSError):
        found |= {path.name for path in Path("/sys/module").iterdir()}
    return frozenset(name.replace("-", "_") for name in found) if found else None


def _wireguard() -> int | None:
    """Of a device in a namespace made for it, which ends with both. The kernel loads its module to answer, which is in
    no folder that a container has."""
    with suppress(OSError), namespaces.entered(home := namespaces.open_current()):
        try:
            netns = namespaces.create()
            try:
                with NodeLink("wireguard") as link:
                    link.add()
            except NetlinkError as error:
                return error.errno
            finally:
                os.close(netns)
            return 0
        finally:
            os.close(home)
    return None


# ---- the network


def _node(config: Config) -> Node:
    healthz = {listen_address("healthz", config.healthz)[1]} if config.healthz else set[int]()
    runs = listener_pid(Path(config.state_dir) / "agent.sock") != 0
    found = _unless(_devices)
    return Node(
        is_initial=_unless(namespaces.is_initial),
        sysctls=_unless(lambda: _sysctls(config)),
        sysctls_writable=os.access("/proc/sys/net/ipv4/ip_forward", os.W_OK) and not _read_only("/proc/sys"),
        local_ports=_local_ports(),
        tcp_ports=_ports(("tcp", "tcp6"), _LISTENS),
        udp_ports=_ports(("udp", "udp6"), _BOUND),
        devices=found,
        limits=_unless(_limits),
        kube_proxy=tuple(_unless(lambda: signs(healthz if runs else ())) or ()),
        others=_others([device.name for device in found or ()]),
        agent_runs=runs,
    )


def _sysctls(config: Config) -> dict[str, str]:
    return node.wanted([port_range("node_ports", config.node_ports)], port_range("snat_ports", config.snat_ports))


def _devices() -> tuple[devices.Device, ...]:
    with RouteSocket() as route:
        return tuple(devices.read(route))


def _limits() -> dict[str, links.Limits]:
    with RouteSocket() as route:
        replies = route.request(links.list_links())
    return {links.read_link(reply).name: links.read_limits(reply) for reply in replies}


def _local_ports() -> tuple[int, int]:
    first, _, last = (_text("/proc/sys/net/ipv4/ip_local_port_range") or "0 0").partition("\t")
    return int(first.split()[0]), int((last or first).split()[-1])


def _ports(tables: tuple[str, ...], state: str) -> frozenset[int]:
    """Of sockets in that state, from /proc/net (proc(5))."""
    found = set()
    for table in tables:
        for line in (_text(f"/proc/thread-self/net/{table}") or "").splitlines()[1:]:
            words = line.split()
            if words[3] == state:
                found.add(int(words[1].rpartition(":")[2], 16))
    return frozenset(found)


def _others(names: list[str]) -> dict[str, str]:
    found = {}
    for agent, (prefixes, path) in SIGNS.items():
        device = next((name for name in names if name.startswith(prefixes)), "")
        if device:
            found[agent] = f"device {device}"
        elif Path(path).exists():
            found[agent] = path
    return found


# ---- files and programs


def _host(config: Config) -> Host:
    mountinfo = _text("/proc/self/mountinfo") or ""
    cgroup = next((str(path) for path, kind in mounts.mounted(mountinfo) if kind == "cgroup2"), None)
    return Host(
        bpffs=mounts.is_mounted(mounts.BPFFS, "bpf", mountinfo),
        cgroup2=cgroup,
        memory_bytes=_memory(cgroup),
        bcc=mounts.check_bcc(),
        headers=mounts.check_headers(),
        state_dir=_folder(config.state_dir, mountinfo, would_be_made=True),
        cni_conf_dir=_folder(config.cni_conf_dir, mountinfo) if config.cni_conf_dir else None,
        cni_bin_dir=_folder(config.cni_bin_dir, mountinfo) if config.cni_bin_dir else None,
        cni_configurations=_configurations(config.cni_conf_dir),
        clock_synchronized=_clock(),
        wireguard_program=shutil.which(config.wireguard_program or userspace.PROGRAM) is not None,
        tun=_tun(),
    )


def _folder(text: str, mountinfo: str, *, would_be_made: bool = False) -> Folder:
    path = Path(text).absolute()
    exists = path.is_dir()
    if would_be_made:
        path = next(folder for folder in (path, *path.parents) if folder.exists())
    elif not exists:
        return Folder(exists=False, writable=False)
    status = os.statvfs(path)
    writable = path.is_dir() and os.access(path, os.W_OK | os.X_OK) and not status.f_flag & os.ST_RDONLY
    return Folder(exists, writable, _kind(path.resolve(), mountinfo), status.f_bavail * status.f_frsize)


def _kind(path: Path, mountinfo: str) -> str:
    found = dict(mounts.mounted(mountinfo))
    return next((found[folder] for folder in (path, *path.parents) if folder in found), "")


def _configurations(folder: str) -> tuple[str, ...]:
    with suppress(OSError):
        if folder:
            names = (path.name for path in Path(folder).iterdir() if path.suffix in (".conf", ".conflist", ".json"))
            return tuple(sorted(names))
    return ()


def _memory(cgroup: str | None) -> int | None:
    """What is available on the machine, or left to this process's cgroup, if that is less."""
    lines = dict(line.split(":", 1) for line in (_text("/proc/meminfo") or "").splitlines())
    if "MemAvailable" not in lines:
        return None
    available = int(lines["MemAvailable"].split()[0]) << 10
    own = (_text("/proc/self/cgroup") or "").rpartition("::")[2].splitlines()
    if cgroup and own:
        folder = Path(cgroup + own[0])
        limit, current = _text(folder / "memory.max"), _text(folder / "memory.current")
        if limit and limit.isdecimal() and current:
            available = min(available, int(limit) - int(current))
    return available


def _clock() -> bool | None:
    libc = ctypes.CDLL(None, use_errno=True)
    state = int(libc.adjtimex(ctypes.create_string_buffer(512)))  # struct timex, modes 0: only asks
    return None if state < 0 else state != TIME_ERROR


def _tun() -> int:
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))  # makes no device yet
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


# ---- reading


def _text(path: str | Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text().strip()
    return None


def _read_only(path: str) -> bool:
    with suppress(OSError):
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    return True


def _unless(read: Callable[[], Value]) -> Value | None:
    """None where this process may not ask, or the kernel does not know the question."""
    with suppress(OSError):
        return read()
    return None
