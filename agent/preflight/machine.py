"""Judgements of the machine: its kernel, its file systems, what is installed."""

from __future__ import annotations

import errno
import os

from agent.config import Config
from agent.datapath import abi
from agent.datapath.abi import MapType
from agent.datapath.mounts import check_kernel
from agent.encryption import userspace
from agent.encryption.choose import TUN
from agent.helpers.names import Name
from agent.preflight.facts import Facts, Finding, Probe, Result

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
"""Without which an agent does not work (linux/capability.h)."""
OF_FILES = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3}
"""To share sockets with Envoy's user alone."""
OF_CHILDREN = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8}
"""To run proxies with less."""

ENTRY_OVERHEAD = 64
"""Bytes of a hash map's element besides key and value, more or less (kernel/bpf/hashtab.c)."""
PASSING = frozenset({"tmpfs", "ramfs", "overlay"})
"""File systems whose content goes with the machine's or the container's next start."""
STATE_FREE = 64 << 20

OK, WARN, FAIL, UNKNOWN = Result.OK, Result.WARN, Result.FAIL, Result.UNKNOWN


def kernel(facts: Facts, _config: Config) -> Finding:
    if not facts.kernel.release:
        return Finding(UNKNOWN, "it does not say which it is")
    problem = check_kernel(facts.kernel.release)
    return Finding(FAIL, facts.kernel.release, problem) if problem else Finding(OK, facts.kernel.release)


def privileges(facts: Facts, config: Config) -> Finding:
    def lacking(wanted: dict[str, int]) -> str:
        return ", ".join(name for name, bit in wanted.items() if not facts.kernel.capabilities >> bit & 1)

    if missing := lacking(CAPABILITIES):
        return Finding(FAIL, f"no {missing}", "run as root, or give the container these capabilities")
    if missing := lacking(OF_FILES | (OF_CHILDREN if config.helpers == "children" else {})):
        return Finding(
            WARN, f"no {missing}", "proxies cannot be run with fewer privileges: give these capabilities, too"
        )
    return Finding(OK, "all capabilities that are needed")


def bpf(facts: Facts, _config: Config) -> Finding:
    error = facts.kernel.bpf
    if error is None:
        return Finding(UNKNOWN, "not tried")
    if error == 0:
        return Finding(OK, "bpf(2) makes maps")
    if error == errno.ENOSYS:
        return Finding(FAIL, "the kernel has no bpf(2)", "use a kernel with CONFIG_BPF_SYSCALL")
    refused = error in (errno.EPERM, errno.EACCES)
    advice = "run as root, with CAP_BPF, and under a seccomp profile that allows bpf(2)" if refused else "see dmesg"
    return Finding(FAIL, f"bpf(2) refuses to make a map: {os.strerror(error)}", advice)


def btf(facts: Facts, _config: Config) -> Finding:
    without = Finding(WARN, "none", "nothing needs it yet; a kernel with CONFIG_DEBUG_INFO_BTF is what is tested")
    return _either(facts.kernel.btf, "/sys is not to be read", "/sys/kernel/btf/vmlinux", without)


def _either(known: bool | None, unknown: str, yes: str, no: Finding) -> Finding:
    if known is None:
        return Finding(UNKNOWN, unknown)
    return Finding(OK, yes) if known else no


def jit(facts: Facts, _config: Config) -> Finding:
    setting = facts.kernel.jit
    if setting is None:
        return Finding(UNKNOWN, "net.core.bpf_jit_enable is not to be read")
    if setting == "0":
        return Finding(WARN, "off", "packets cost several times as much: sysctl -w net.core.bpf_jit_enable=1")
    return Finding(OK, "on")


def bpffs(facts: Facts, _config: Config) -> Finding:
    if facts.host.bpffs:
        return Finding(OK, "mounted at /sys/fs/bpf")
    if "bpf" not in facts.kernel.filesystems:
        return Finding(FAIL, "the kernel knows no file system bpf", "use a kernel with CONFIG_BPF_SYSCALL")
    return Finding(
        WARN,
        "not mounted at /sys/fs/bpf",
        "the agent mounts it; in a container mount the host's (mountPropagation), or pins end with the container",
    )


def cgroup2(facts: Facts, config: Config) -> Finding | None:
    if config.socket_lb == "off":
        return None
    if facts.host.cgroup2:
        return Finding(OK, facts.host.cgroup2)
    if "cgroup2" not in facts.kernel.filesystems:
        return Finding(FAIL, "the kernel knows no file system cgroup2", "use --socket-lb off, or another kernel")
    return Finding(WARN, "not mounted", "the agent mounts it under /run/gatehouse: processes must be in it, too")


def programs(facts: Facts, _config: Config) -> Finding:
    return _loads(facts.kernel.programs.get("tc"), "tc programs load", "use a kernel with CONFIG_NET_CLS_BPF")


def socket_programs(facts: Facts, config: Config) -> Finding | None:
    if config.socket_lb == "off":
        return None
    found = [facts.kernel.programs.get(name) for name in ("cgroup_sock", "cgroup_sock_addr")]
    worst = max(found, key=lambda probe: -1 if probe is None else probe.error)
    probe = None if None in found else worst
    return _loads(probe, "programs for sockets load", "use --socket-lb off: services are then translated by packet")


def xdp(facts: Facts, config: Config) -> Finding | None:
    if config.xdp == "off":
        return None
    return _loads(facts.kernel.programs.get("xdp"), "XDP programs load", "use --xdp off")


def sk_assign(facts: Facts, config: Config) -> Finding | None:
    if config.l7_proxy == "off" and config.dns_proxy == "off":
        return None
    return _loads(
        facts.kernel.programs.get("sk_assign"),
        "tc programs may use it",
        "L7 and DNS rules deny: use kernel 6.1 or newer",
    )


def redirect_peer(facts: Facts, _config: Config) -> Finding:
    return _loads(facts.kernel.programs.get("redirect_peer"), "tc programs may use it", "use kernel 6.1 or newer")


def _loads(probe: Probe | None, yes: str, advice: str) -> Finding:
    if probe is None:
        return Finding(UNKNOWN, "not tried")
    if probe.error == 0:
        return Finding(OK, yes)
    why = os.strerror(probe.error)
    if probe.error in (errno.EPERM, errno.EACCES) and "unknown func" not in probe.log:
        return Finding(UNKNOWN, f"could not be tried: {why}", "run this as root")
    said = probe.log.strip().splitlines()
    return Finding(FAIL, f"the kernel refuses it: {said[-1] if said else why}", advice)


def map_bytes(config: Config) -> int:
    """What maps take when they are full, more or less."""
    total = 0
    for spec in abi.load().maps.values():
        entries = config.map_sizes.get(spec.name, spec.max_entries)
        total += entries * (1 if spec.type is MapType.RINGBUF else spec.key_size + spec.value_size + ENTRY_OVERHEAD)
    return total


def memory(facts: Facts, config: Config) -> Finding:
    need = map_bytes(config)
    text = f"maps take up to {need >> 20} MB"
    available = facts.host.memory_bytes
    if available is None:
        return Finding(UNKNOWN, text)
    text += f", {available >> 20} MB are available"
    if need > available:
        return Finding(FAIL, text, "make them smaller (--map-sizes), or raise the memory limit")
    if need > available // 2:
        return Finding(WARN, text, "make them smaller (--map-sizes), or raise the memory limit")
    return Finding(OK, text)


def bcc(facts: Facts, _config: Config) -> Finding:
    missing = facts.host.bcc or facts.host.headers
    if missing:
        return Finding(FAIL, "the datapath cannot be compiled", missing)
    return Finding(OK, "python3-bpfcc and the kernel's user headers")


def envoy(facts: Facts, config: Config) -> Finding | None:
    if config.l7_proxy == "off":
        return None
    if facts.host.envoy:
        return Finding(OK, facts.host.envoy)
    if not facts.host.envoy_problem:
        return Finding(UNKNOWN, "it did not say its version in time")
    result = FAIL if config.l7_proxy == "on" else WARN
    return Finding(result, facts.host.envoy_problem, "HTTP and TLS rules deny: correct --envoy")


def clock(facts: Facts, _config: Config) -> Finding:
    advice = "run chrony or systemd-timesyncd: leases, tokens and flow records go by it"
    kept = facts.host.clock_synchronized
    return _either(kept, "the kernel does not say", "synchronized", Finding(WARN, "nobody keeps it", advice))


def state_dir(facts: Facts, config: Config) -> Finding:
    folder = facts.host.state_dir
    if folder is None:
        return Finding(UNKNOWN, config.state_dir)
    found = f"{config.state_dir} on {folder.kind or 'an unknown file system'}, {folder.free_bytes >> 20} MB free"
    if not folder.writable:
        return Finding(FAIL, f"{found}, not writable", "mount a folder of the host there, or choose --state-dir")
    if folder.free_bytes < STATE_FREE:
        return Finding(FAIL, found, f"make {STATE_FREE >> 20} MB free")
    if folder.kind in PASSING:
        return Finding(
            WARN, found, "what is there does not outlive a restart: mount a folder of the host (hostPath) there"
        )
    return Finding(OK, found)


def wireguard(facts: Facts, config: Config) -> Finding:
    kernel = None if config.wireguard == "userspace" else _kernel_wireguard(facts)
    program = config.wireguard_program or userspace.PROGRAM
    lacking = f"no {program}" if not facts.host.wireguard_program else ""
    elsewhere = config.helpers == "containers" and facts.host.tun in _HIDDEN and not lacking
    lacking = lacking or (f"{TUN}: {os.strerror(facts.host.tun)}" if facts.host.tun else "")
    if kernel:
        return Finding(OK, "in the kernel")
    if config.wireguard != "kernel" and not lacking:
        return Finding(OK, f"{program} and {TUN}")
    if config.encryption != "off" and config.wireguard != "kernel" and elsewhere:
        helper = f"`gatehouse helper {Name.WIREGUARD}`"
        found = f"{program} is run by {helper}, and whether that has {TUN} cannot be seen from here"
        return Finding(UNKNOWN, found, f"see `gatehouse encryption status`, and the log of the container of {helper}")
    if config.encryption == "off" or (config.wireguard != "userspace" and kernel is None):
        found = "not in the kernel" if kernel is False else "the kernel does not say"
        return Finding(UNKNOWN, found, f"encryption between nodes needs the module, or {program}; nothing else does")
    found = {"kernel": "not in the kernel", "userspace": lacking}.get(
        config.wireguard, f"not in the kernel, and {lacking}"
    )
    return Finding(FAIL, found, _ADVICE[config.wireguard])


_HIDDEN = (errno.ENOENT, errno.EPERM, errno.EACCES)
"""What a container is told of a device that another one has."""
_ADVICE = {
    "kernel": "use a kernel with the module, or a program (--wireguard userspace)",
    "userspace": "install the program, give its container that device, or use the kernel's (--wireguard kernel)",
    "auto": "use a kernel with the module, or install the program and give its container that device",
}


def _kernel_wireguard(facts: Facts) -> bool | None:
    """Whether the kernel has it: as it did when it was asked, else by its modules."""
    error, modules = facts.kernel.wireguard, facts.kernel.modules
    if error is not None and error not in (errno.EPERM, errno.EACCES):
        return error == 0
    return None if modules is None else "wireguard" in modules
