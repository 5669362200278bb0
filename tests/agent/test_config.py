"""Settings: texts in, a checked value or one sentence out."""

from __future__ import annotations

import pytest

from agent.config import Config, ConfigError, build, environment, settings


def test_defaults_are_dual_stack() -> None:
    config = build({"manifests": "m"})
    assert config.pod_cidrs == ("10.244.0.0/24", "fd00:10:244::/64")
    assert config.node


def test_texts_become_types() -> None:
    config = build(
        {
            "manifests": "m",
            "mtu": "1400",
            "map_sizes": "conntrack=1000, services=10",
            "timeouts": "tcp=1.5",
            "node_addresses": "10.0.0.1,fd00::1",
            "remove_on_exit": "true",
            "node_sysctls": "true",
        }
    )
    assert (config.mtu, config.map_sizes, config.timeouts) == (1400, {"conntrack": 1000, "services": 10}, {"tcp": 1.5})
    assert config.node_addresses == ("10.0.0.1", "fd00::1")
    assert (config.remove_on_exit, config.node_sysctls) == (True, True)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({}, "--manifests is missing"),
        ({"mtu": "12"}, "--mtu"),
        ({"mtu": "wide"}, "--mtu"),
        ({"pod_cidrs": "10.1.2"}, "--pod-cidrs: '10.1.2' is not a block"),
        ({"pod_cidrs": ""}, "--pod-cidrs: give at least one"),
        ({"pod_cidrs": "10.1.0.0/24,10.2.0.0/24"}, "--pod-cidrs: give at most one block for each"),
        ({"pod_cidrs": "10.1.0.0/24", "service_cidrs": "10.0.0.0/8"}, "--service-cidrs: 10.0.0.0/8 overlaps"),
        ({"node_addresses": "host"}, "--node-addresses: 'host' is not an IP address"),
        ({"timeouts": "icmp=3"}, "--timeouts: 'icmp' is none of tcp"),
        ({"timeouts": "tcp=0"}, "--timeouts: tcp must be above 0"),
        ({"timeouts": "tcp"}, "--timeouts: 'tcp' is not NAME=NUMBER"),
        ({"map_sizes": "conntrack=-1"}, "--map-sizes: conntrack must be above 0"),
        ({"source": "etcd"}, "--source"),
        ({"colour": "red"}, "colour is not a setting"),
    ],
)
def test_what_cannot_be_used_is_said(texts: dict[str, str], says: str) -> None:
    given = texts if not texts else {"manifests": "m", **texts}
    with pytest.raises(ConfigError) as error:
        build(given)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_environment_takes_only_settings() -> None:
    assert environment({"GATEHOUSE_STATE_DIR": "/s", "PATH": "/bin"}) == {"state_dir": "/s"}
    with pytest.raises(ConfigError, match="GATEHOUSE_STATEDIR"):
        environment({"GATEHOUSE_STATEDIR": "/s"})


@pytest.mark.parametrize(
    "name", ["GATEHOUSE_SERVICE_HOST", "GATEHOUSE_PORT", "GATEHOUSE_UI_PORT_80_TCP_ADDR", "GATEHOUSE_SERVICE_PORT_HTTP"]
)
def test_service_links_of_kubernetes_are_no_settings(name: str) -> None:
    assert environment({name: "tcp://10.96.0.9:80"}) == {}


def test_every_setting_is_described() -> None:
    assert [s.field for s in settings()] == list(Config.__struct_fields__)
    assert all(s.description.endswith(".") for s in settings())
