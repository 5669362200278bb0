"""Judgements of the node's network: sysctls, devices, ports, other network software, CNI, the API server."""

from __future__ import annotations

from collections.abc import Container, Iterable

from agent.bigtcp import USUAL, common
from agent.cni.conflist import NAME as CONFLIST
from agent.config import Config, listen_address, port_range
from agent.config.checks import MIN_MTU, makes_pods
from agent.config.spellings import Range, overlap
from agent.datapath.devices import Device, choose
from agent.endpoints.links import Limits
from agent.kubeproxy import sentence
from agent.preflight.facts import Facts, Finding, Folder, Result
from agent.routing import mtu as routing_mtu
from policies.address import is_v4, parse_address

SHOWN = 5

OK, WARN, FAIL, UNKNOWN = Result.OK, Result.WARN, Result.FAIL, Result.UNKNOWN


def sysctls(facts: Facts, config: Config) -> Finding:
    changes = facts.node.sysctls
    if changes is None:
        return Finding(UNKNOWN, "/proc/sys is not to be read")
    if not changes:
        return Finding(OK, "all are as they have to be")
    command = " ".join(("sysctl -w", *(f"{path.replace('/', '.')}={value}" for path, value in changes.items())))
    if facts.node.is_initial is not False and not config.node_sysctls:
        return Finding(FAIL, f"{len(changes)} would have to change", f"allow it (--node-sysctls), or: {command}")
    if not facts.node.sysctls_writable:
        found = f"{len(changes)} would have to change, and /proc/sys is read-only"
        return Finding(FAIL, found, f"mount the host's /proc/sys/net, or on the host: {command}")
    return Finding(OK, f"the agent changes {', '.join(path.replace('/', '.') for path in changes)}")


def _chosen(facts: Facts, config: Config) -> tuple[list[Device], list[str]]:
    found = facts.node.devices or ()
    own = [parse_address(text) for text in config.node_addresses] or [a for one in found for a in one.addresses]
    return choose(config.devices or ("auto",), found, own)


def devices(facts: Facts, config: Config) -> Finding:
    if facts.node.devices is None:
        return Finding(UNKNOWN, "the kernel does not list them")
    chosen, missing = _chosen(facts, config)
    named = ", ".join(device.name for device in chosen) or "none"
    if missing:
        return Finding(FAIL if not chosen and config.devices else WARN, named, "; ".join(missing))
    return Finding(OK, named if config.devices else f"{named}; not used for node ports (--devices)")


def overhead(facts: Facts, config: Config) -> int:
    """Bytes of a packet that the way to another node takes."""
    chosen, _ = _chosen(facts, config)
    has_v4 = any(is_v4(address) for device in chosen for address in device.addresses)
    return routing_mtu.overhead(config.routing, has_v4, config.encryption != "off")


def mtu(facts: Facts, config: Config) -> Finding:
    if facts.node.devices is None:
        return Finding(UNKNOWN, "devices are not known")
    chosen, _ = _chosen(facts, config)
    if not chosen:
        return Finding(UNKNOWN, "there is no device to go by")
    smallest, head = min(device.mtu for device in chosen), overhead(facts, config)
    allowed = smallest - head
    whom = "VXLAN" if config.encryption == "off" else "WireGuard"
    text = f"devices allow {smallest}" + (f", {head} go to {whom}" if head else "")
    if allowed < MIN_MTU:
        return Finding(FAIL, f"{text}: {allowed} are left, IPv6 needs {MIN_MTU}", "raise the devices' MTU")
    if config.mtu == 0:
        return Finding(OK, f"{text}: pods will have {allowed}")
    if config.mtu > allowed:
        return Finding(WARN, f"{text}; pods have {config.mtu}", f"larger packets do not arrive: --mtu 0, or {allowed}")
    return Finding(OK, f"{text}; pods have {config.mtu}")


def big_tcp(facts: Facts, config: Config) -> Finding | None:
    if not config.big_tcp:
        return None
    if facts.node.limits is None:
        return Finding(UNKNOWN, "the kernel does not list devices")
    chosen, _ = _chosen(facts, config)
    limits = {device.name: facts.node.limits.get(device.name, Limits()) for device in chosen}
    size, problems = common(limits)
    if problems:
        advice = (
            "leave --big-tcp out, or use other devices or a newer kernel" if size <= USUAL else "use a newer kernel"
        )
        return Finding(WARN, "; ".join(problems), advice)
    return Finding(OK, f"packets of up to {size} bytes")


def vxlan(facts: Facts, config: Config) -> Finding | None:
    if config.routing != "vxlan":
        return None
    modules = facts.kernel.modules
    if modules is None:
        return Finding(UNKNOWN, "the kernel does not say")
    if "vxlan" in modules:
        return Finding(OK, "in the kernel")
    return Finding(UNKNOWN, "not among the kernel's modules", "use --routing native, or a kernel with CONFIG_VXLAN")


def _taken(ports: Iterable[int], wanted: Range) -> list[int]:
    return sorted(port for port in ports if wanted[0] <= port <= wanted[1])


def _listed(ports: list[int]) -> str:
    more = f" and {len(ports) - SHOWN} more" if len(ports) > SHOWN else ""
    return ", ".join(map(str, ports[:SHOWN])) + more


def proxy_ports(facts: Facts, config: Config) -> Finding | None:
    if config.l7_proxy == "off" and config.dns_proxy == "off":
        return None
    wanted = port_range("proxy_ports", config.proxy_ports)
    taken = _taken(facts.node.tcp_ports | facts.node.udp_ports, wanted)
    if not taken:
        return Finding(OK, f"{config.proxy_ports} are free")
    if facts.node.agent_runs:
        return Finding(OK, f"{_listed(taken)} in use, where an agent runs")
    return Finding(
        WARN, f"{_listed(taken)} in use", "rules that get one of these ports deny: move --proxy-ports or who has them"
    )


def node_ports(facts: Facts, config: Config) -> Finding:
    wanted = port_range("node_ports", config.node_ports)
    taken = _taken(facts.node.tcp_ports | facts.node.udp_ports, wanted)
    if taken:
        return Finding(WARN, f"{_listed(taken)} in use", "a service with such a node port hides who listens there")
    if overlap(wanted, facts.node.local_ports):
        first, last = facts.node.local_ports
        return Finding(OK, f"{config.node_ports}; the agent reserves them among ip_local_port_range ({first}-{last})")
    return Finding(OK, f"{config.node_ports} are free")


def healthz(facts: Facts, config: Config) -> Finding | None:
    return _listens_at(facts, "healthz", config.healthz)


def metrics(facts: Facts, config: Config) -> Finding | None:
    return _listens_at(facts, "metrics", config.metrics)


def _listens_at(facts: Facts, field: str, where: str) -> Finding | None:
    if not where:
        return None
    _, port = listen_address(field, where)
    advice = f"stop who has it (kube-proxy has 10256), or choose --{field}"
    return _one_port(facts, port, facts.node.tcp_ports, advice)


def tunnel_port(facts: Facts, config: Config) -> Finding | None:
    if config.routing != "vxlan":
        return None
    advice = "remove the other VXLAN device (`ip -d link`), or choose --tunnel-port"
    return _one_port(facts, config.tunnel_port, facts.node.udp_ports, advice)


def encryption_port(facts: Facts, config: Config) -> Finding | None:
    if config.encryption == "off":
        return None
    advice = "remove the other WireGuard device (`ip -d link`), or choose --encryption-port on all nodes"
    return _one_port(facts, config.encryption_port, facts.node.udp_ports, advice)


def _one_port(facts: Facts, port: int, taken: Container[int], advice: str) -> Finding:
    if port not in taken:
        return Finding(OK, f"{port} is free")
    if facts.node.agent_runs:
        return Finding(OK, f"{port} is in use, where an agent runs")
    return Finding(FAIL, f"{port} is in use", advice)


def kube_proxy(facts: Facts, _config: Config) -> Finding:
    if facts.node.kube_proxy:
        return Finding(WARN, ", ".join(facts.node.kube_proxy), sentence(facts.node.kube_proxy))
    return Finding(OK, "not here")


def others(facts: Facts, config: Config) -> Finding:
    found = "; ".join(f"{name}: {sign}" for name, sign in facts.node.others.items())
    if not found:
        return Finding(OK, "none")
    if config.cni_chain:
        return Finding(OK, f"{found}; Gatehouse stands behind {config.cni_chain}")
    return Finding(
        WARN, found, "two network agents work against each other: remove the other, or stand behind it (--cni-chain)"
    )


def cni_configuration(facts: Facts, config: Config) -> Finding | None:
    if not config.cni_conf_dir:
        return None if makes_pods(config) else Finding(WARN, "not written", "name the runtime's folder: --cni-conf-dir")
    if (wrong := _folder(config.cni_conf_dir, facts.host.cni_conf_dir)) is not None:
        return wrong
    names = facts.host.cni_configurations
    if config.cni_chain and config.cni_chain not in names:
        there = ", ".join(names) or "nothing"
        return Finding(
            FAIL,
            f"{config.cni_conf_dir} has no {config.cni_chain}: {there}",
            "correct --cni-chain, or install that one",
        )
    earlier = [name for name in names if name < CONFLIST]
    if earlier:
        return Finding(FAIL, f"runtimes read {earlier[0]} before {CONFLIST}", "remove it, or give it a later name")
    return Finding(OK, f"{config.cni_conf_dir}: {CONFLIST} is read first")


def cni_plugin(facts: Facts, config: Config) -> Finding | None:
    if not config.cni_bin_dir:
        return None
    return _folder(config.cni_bin_dir, facts.host.cni_bin_dir) or Finding(OK, config.cni_bin_dir)


def _folder(path: str, folder: Folder | None) -> Finding | None:
    if folder is None:
        return Finding(UNKNOWN, path)
    if not folder.exists:
        return Finding(FAIL, f"{path} is not there", "make it, or mount the host's")
    if not folder.writable:
        return Finding(FAIL, f"{path} is not writable", "mount the host's folder without readOnly")
    return None


def api_server(facts: Facts, config: Config) -> Finding | None:
    if config.source != "kubernetes":
        return None
    server = facts.api_server
    if server is None:
        return Finding(UNKNOWN, "not asked")
    if server.problem:
        return Finding(FAIL, server.problem, "a node with state on disk starts without; a new one waits for it")
    return Finding(OK, server.version)
