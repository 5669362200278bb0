"""Facts judged: one small function for each thing a node must have. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from agent.config import Config, ConfigError, Resolved, check
from agent.preflight import machine, network
from agent.preflight.facts import Facts, Finding, Result

Judge = Callable[[Facts, Config], Finding | None]


class Row(msgspec.Struct, frozen=True):
    """One line of the answer."""

    name: str
    result: Result
    found: str
    advice: str = ""


class Check(NamedTuple):
    """`judge` answers None where the settings have no need of it."""

    name: str
    judge: Judge


CHECKS = (
    Check("kernel", machine.kernel),
    Check("privileges", machine.privileges),
    Check("bpf", machine.bpf),
    Check("BTF", machine.btf),
    Check("JIT", machine.jit),
    Check("bpffs", machine.bpffs),
    Check("cgroup2", machine.cgroup2),
    Check("programs", machine.programs),
    Check("socket programs", machine.socket_programs),
    Check("XDP", machine.xdp),
    Check("bpf_sk_assign", machine.sk_assign),
    Check("bpf_redirect_peer", machine.redirect_peer),
    Check("memory of maps", machine.memory),
    Check("bcc", machine.bcc),
    Check("Envoy", machine.envoy),
    Check("clock", machine.clock),
    Check("state directory", machine.state_dir),
    Check("WireGuard", machine.wireguard),
    Check("sysctls", network.sysctls),
    Check("devices", network.devices),
    Check("MTU", network.mtu),
    Check("VXLAN", network.vxlan),
    Check("BIG TCP", network.big_tcp),
    Check("proxy ports", network.proxy_ports),
    Check("node ports", network.node_ports),
    Check("healthz port", network.healthz),
    Check("metrics port", network.metrics),
    Check("tunnel port", network.tunnel_port),
    Check("encryption port", network.encryption_port),
    Check("kube-proxy", network.kube_proxy),
    Check("other agents", network.others),
    Check("CNI configuration", network.cni_configuration),
    Check("CNI plugin", network.cni_plugin),
    Check("API server", network.api_server),
)


def judged(facts: Facts, resolved: Resolved) -> Iterator[Row]:
    """A row for the settings, and one for each check that concerns them."""
    yield _row("settings", settings(resolved))
    for one in CHECKS:
        finding = one.judge(facts, resolved.config)
        if finding is not None:
            yield _row(one.name, finding)


def settings(resolved: Resolved) -> Finding:
    try:
        check(resolved)
    except ConfigError as error:
        return Finding(Result.FAIL, str(error), "an agent would not start with them: see `gatehouse config`")
    given = sum(origin != "default" for origin in resolved.origins.values())
    return Finding(Result.OK, f"{given} given, {len(resolved.origins) - given} as by default")


def _row(name: str, finding: Finding) -> Row:
    return Row(name, finding.result, finding.found, finding.advice)
