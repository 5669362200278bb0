"""Values as the agent's own settings: its parser reads them, and would start with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from chart_objects import layers, pod
from chart_values import CHART, ENCRYPTED, INSTALLATIONS, changed
from helm_process import NAMESPACE, Helm

from agent.config import check, merge, settings


def test_settings_are_the_agents(working: list[dict[str, Any]]) -> None:
    """It would start with them."""
    resolved = merge(*layers(working))
    check(resolved)
    config = resolved.config
    assert (config.source, config.pods, config.helpers) == ("kubernetes", "cni", "containers")
    assert config.node_sysctls
    assert not config.remove_on_exit, "an update of the chart must leave the datapath as it is"
    assert (config.node, config.namespace) == ("node-1", NAMESPACE)


SETTINGS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("default", {}, {"ipam": "node", "l7_proxy": "auto", "xdp": "off", "healthz": "0.0.0.0:10256", "metrics": ""}),
    ("always", {"policyEnforcementMode": "always"}, {"policy_enforcement": "always"}),
    ("routing by others", {"routingMode": "off"}, {"routing": "off"}),
    (
        "pool",
        INSTALLATIONS["vxlan-pool"],
        {
            "routing": "vxlan",
            "ipam": "pool",
            "pool": ("10.0.0.0/16", "fd00:10::/48"),
            "pool_block_bits": (24, 64),
            "cluster_cidrs": ("10.0.0.0/16", "fd00:10::/48"),
            "mtu": 1400,
        },
    ),
    (
        "pool in a larger cluster",
        INSTALLATIONS["vxlan-pool"] | {"clusterCIDRs": ["10.0.0.0/8"]},
        {"cluster_cidrs": ("10.0.0.0/8",)},
    ),
    ("IPv6", {"ipv4": {"enabled": False}}, {"families": ("ipv6",), "healthz": "[::]:10256"}),
    ("IPv4", {"ipv6": {"enabled": False}}, {"families": ("ipv4",)}),
    (
        "proxies",
        {"l7Proxy": {"startup": "always"}, "dnsProxy": {"startup": "always"}},
        {"l7_proxy": "on", "dns_proxy": "on"},
    ),
    ("no proxies", INSTALLATIONS["no-proxies"], {"l7_proxy": "off", "dns_proxy": "off"}),
    ("packets alone", {"loadBalancer": {"socketLB": "off"}}, {"socket_lb": "off", "cgroup": ""}),
    ("sockets of nodes", {"loadBalancer": {"socketLB": "host"}}, {"socket_lb": "host", "cgroup": "/sys/fs/cgroup"}),
    (
        "load balancer",
        INSTALLATIONS["load-balancer"],
        {
            "algorithm": "maglev",
            "maglev_size": 65521,
            "maglev_seed": "s3cret: 'quoted'",
            "forwarding": "hybrid",
            "xdp": "native",
            "external_ips": True,
            "devices": ("eth0", "eth1"),
            "node_port_addresses": ("192.0.2.0/24",),
        },
    ),
    ("not encrypted", {"encryption": {"port": 51900, "keyRotationDays": 90}}, {"encryption": "off", "big_tcp": False}),
    (
        "encrypted",
        INSTALLATIONS["encrypted"],
        {"encryption": "wireguard", "wireguard": "auto", "encryption_port": 51871, "strict_encryption": False},
    ),
    (
        "encrypted by the kernel",
        INSTALLATIONS["encrypted-by-the-kernel"],
        {
            "wireguard": "kernel",
            "encryption_port": 51900,
            "node_encryption": True,
            "strict_encryption": True,
            "keepalive_s": 25,
            "key_rotation_days": 0.5,
        },
    ),
    ("seldom another key", changed(ENCRYPTED, ("encryption", "keyRotationDays"), 30000), {"key_rotation_days": 30000}),
    ("large packets", INSTALLATIONS["big-tcp"], {"big_tcp": True, "encryption": "off"}),
    ("chained", INSTALLATIONS["chained"], {"cni_chain": "10-other.conflist", "routing": "off", "masquerade": False}),
    ("not installed", {"cni": {"install": False}}, {"cni_conf_dir": "", "cni_bin_dir": ""}),
    ("monitored", INSTALLATIONS["monitored"], {"metrics": "0.0.0.0:9965"}),
    ("elsewhere", {"stateDir": "/mnt/disk/gatehouse"}, {"state_dir": "/mnt/disk/gatehouse"}),
    (
        "what has no value",
        INSTALLATIONS["private-registry"],
        {
            "map_sizes": {"conntrack": 1000000},
            "timeouts": {"udp": 30.0},
            "labels_include": ("app",),
            "secret_namespaces": ("shop", "web"),
        },
    ),
)


@pytest.mark.parametrize(("values", "wanted"), [row[1:] for row in SETTINGS], ids=[row[0] for row in SETTINGS])
def test_values_become_settings(helm: Helm, values: dict[str, Any], wanted: dict[str, Any]) -> None:
    config = merge(*layers(helm.objects(values))).config
    assert {field: getattr(config, field) for field in wanted} == wanted


def test_a_secret_is_in_no_config_map(helm: Helm) -> None:
    objects = helm.objects({"loadBalancer": {"maglev": {"seed": "very-secret"}}})
    assert [one["kind"] for one in objects if "very-secret" in str(one)] == ["Secret"]


@pytest.mark.parametrize(
    "values",
    [
        ENCRYPTED,
        {"bigTCP": {"enabled": True}},
        {"mtu": 1400},
        {"loadBalancer": {"maglev": {"seed": "other"}}},
        {"extraConfig": {"api_wait_s": 1}},
    ],
)
def test_changed_settings_replace_pods(helm: Helm, values: dict[str, Any]) -> None:
    before, after = (pod(helm.objects(one))["metadata"]["annotations"] for one in ({}, values))
    assert before.keys() == after.keys()
    assert before["gatehouse.io/config-checksum"] != after["gatehouse.io/config-checksum"]


def test_a_release_of_another_name(helm: Helm) -> None:
    """Whatever its objects are called, settings and Lease are the agent's."""
    texts = helm.render({}, release="net", namespace="networking")
    objects = [one for path, text in texts.items() if path.endswith(".yaml") for one in yaml.safe_load_all(text) if one]
    assert {one["metadata"]["name"] for one in objects} == {"net"}
    (lease,) = (rule for one in objects for rule in one.get("rules", ()) if "resourceNames" in rule)
    assert lease["resourceNames"] == ["gatehouse"]
    merge(*layers(objects))


NOT_OF_CLUSTERS = {
    "manifests": "for --source directory",
    "pod_cidrs": "for --ipam cidrs: each node has others",
    "kubeconfig": "the agent has a service account",
    "node_addresses": "each node has others",
    "node_files": "for --source directory",
    "zone": "the Node object says it",
    "envoy": "the image's",
    "wireguard_program": "the image's",
    "remove_on_exit": "an update would take policy off the node: cleanup.enabled is for that",
}
"""Settings that the chart does not have, and why."""


def test_every_setting_can_be_given(helm: Helm) -> None:
    """By a value, or in extraConfig: whoever adds one decides which, and where it has no place."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    given = {field for values in INSTALLATIONS.values() for field in _given(helm, values)}
    extra = set(schema["properties"]["extraConfig"]["properties"])
    assert not NOT_OF_CLUSTERS.keys() & (given | extra)
    assert given | extra | NOT_OF_CLUSTERS.keys() == {one.field for one in settings()}


def _given(helm: Helm, values: dict[str, Any]) -> set[str]:
    if values == INSTALLATIONS["cleanup"]:
        return set()
    file, variables = layers(helm.objects(values))
    return {*file, *variables}
