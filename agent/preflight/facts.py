"""What is known of a node before an agent starts there. None, everywhere: could not be told."""

from __future__ import annotations

import errno
from enum import StrEnum

import msgspec

from agent.datapath.devices import Device
from agent.endpoints.links import Limits


class Result(StrEnum):
    OK = "ok"
    WARN = "warn"
    """It works, but not as it might, or not for long."""
    FAIL = "fail"
    UNKNOWN = "unknown"


class Finding(msgspec.Struct, frozen=True):
    """`found`: what there is; `advice`: what to do, "" where there is nothing to."""

    result: Result
    found: str
    advice: str = ""


class Probe(msgspec.Struct, frozen=True):
    """Of a program that was tried on the kernel's verifier. `error`: errno, 0: it took it. `log`: what it said."""

    error: int
    log: str = ""


class Folder(msgspec.Struct, frozen=True):
    """`kind`: of the file system it is on, or would be on."""

    exists: bool
    writable: bool
    kind: str = ""
    free_bytes: int = 0


class Server(msgspec.Struct, frozen=True):
    """The API server's answer: its version, or why there is none."""

    version: str = ""
    problem: str = ""


class Kernel(msgspec.Struct, frozen=True):
    release: str = ""
    btf: bool | None = None
    jit: str | None = None  # net.core.bpf_jit_enable
    bpf: int | None = None  # errno of a bpf(2) call that makes a map; 0: it did
    programs: dict[str, Probe] = {}
    filesystems: frozenset[str] = frozenset()  # that it knows
    modules: frozenset[str] | None = None  # loaded, built in, or there to be loaded
    wireguard: int | None = None  # errno of making a device; asked where one may be wanted
    capabilities: int = 0  # effective


class Node(msgspec.Struct, frozen=True):
    """Of the network namespace this is asked in."""

    is_initial: bool | None = None
    sysctls: dict[str, str] | None = None  # that an agent would change, and what to
    sysctls_writable: bool = False
    local_ports: tuple[int, int] = (0, 0)
    tcp_ports: frozenset[int] = frozenset()  # somebody listens there
    udp_ports: frozenset[int] = frozenset()
    devices: tuple[Device, ...] | None = None
    limits: dict[str, Limits] | None = None  # of packets, by device
    kube_proxy: tuple[str, ...] = ()
    others: dict[str, str] = {}  # network agent → what tells of it
    agent_runs: bool = False  # with the state directory that is asked about


class Host(msgspec.Struct, frozen=True):
    bpffs: bool = False  # mounted where Gatehouse looks for it
    cgroup2: str | None = None
    memory_bytes: int | None = None  # available, or what is left to this cgroup
    bcc: str = ""  # what is missing, "": nothing
    headers: str = ""
    envoy: str | None = None  # its version
    envoy_problem: str = ""  # why it has none
    state_dir: Folder | None = None
    cni_conf_dir: Folder | None = None
    cni_bin_dir: Folder | None = None
    cni_configurations: tuple[str, ...] = ()  # in the order runtimes read them
    clock_synchronized: bool | None = None
    wireguard_program: bool = False  # found
    tun: int = errno.ENOENT  # of opening /dev/net/tun; 0: it can be


class Facts(msgspec.Struct, frozen=True):
    kernel: Kernel = Kernel()
    node: Node = Node()
    host: Host = Host()
    api_server: Server | None = None
