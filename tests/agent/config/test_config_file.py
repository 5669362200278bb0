"""A file of settings, and what of it is in force where environment and flags say something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.config import Config, ConfigError, Given, build, check, merge, settings
from agent.config.file import parse, read

MINIMAL = "manifests: /m\n"


def of_file(text: str, *others: dict[str, Given]) -> Config:
    resolved = merge(parse(text, "f"), *others)
    check(resolved)
    return resolved.config


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("mtu: 1400", "mtu", 1400),
        ("mtu: '1400'", "mtu", 1400),
        ("api_wait_s: 2.5", "api_wait_s", 2.5),
        ("pod_cidrs: [10.1.0.0/24, 'fd00::/64']", "pod_cidrs", ("10.1.0.0/24", "fd00::/64")),
        ("pod_cidrs: 10.1.0.0/24, fd00::/64", "pod_cidrs", ("10.1.0.0/24", "fd00::/64")),
        ("pod_cidrs:\n- 10.1.0.0/24\n", "pod_cidrs", ("10.1.0.0/24",)),
        ("labels_exclude: ['a{1,2}', b]", "labels_exclude", ("a{1,2}", "b")),
        ("node_addresses: []", "node_addresses", ()),
        ("timeouts: {tcp: 100, udp: 1.5}", "timeouts", {"tcp": 100.0, "udp": 1.5}),
        ("timeouts: tcp=100,udp=1.5", "timeouts", {"tcp": 100.0, "udp": 1.5}),
        ("map_sizes: {conntrack: 1000}", "map_sizes", {"conntrack": 1000}),
        ("node_sysctls: true", "node_sysctls", True),
        ("node_sysctls: no", "node_sysctls", False),
        ("node_sysctls: 'yes'", "node_sysctls", True),
        # YAML 1.1 reads these as false, true, 1025 and a date
        ("routing: off", "routing", "off"),
        ("l7_proxy: on", "l7_proxy", "on"),
        ("node: 17:05", "node", "17:05"),
        ("zone: 2026-01-02", "zone", "2026-01-02"),
        ("node_ports: 30000-30100", "node_ports", "30000-30100"),
        ('{"mtu": 1400}', "mtu", 1400),
        ("mtu: &a 1400", "mtu", 1400),
    ],
)
def test_values_are_yaml_or_as_flags_have_them(text: str, field: str, value: Any) -> None:
    file = parse(text, "f")
    assert getattr(merge(file, {"manifests": Given("/m", "--manifests")}).config, field) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mtu: 12", "f:2: mtu: 12 is below 1280"),
        ("mtu: wide", "f:2: mtu: 'wide' is not a whole number"),
        ("mtu: 70000", "f:2: mtu: expected `int` <= 65535"),
        ("mtu: 0x600", "f:2: mtu: '0x600' is not a whole number"),
        ("\nxdp: fast", "f:3: xdp: invalid enum value 'fast'"),
        ("mtu: [1400]", "f:2: mtu: a list is given where one value is meant"),
        ("mtu: {a: 1}", "f:2: mtu: a map is given where one value is meant"),
        ("timeouts: [tcp]", "f:2: timeouts: a list is given where a map is meant"),
        ("devices: {eth0: 1}", "f:2: devices: a map is given where a list is meant"),
        ("node_sysctls: 2", "f:2: node_sysctls: '2' is neither true nor false"),
        ("devices: [auto, eth0]", "f:2: devices: give either `auto` or names"),
        ("devices: [auto, '']", "f:2: an element of devices is empty"),
        ("devices: [[a]]", "f:2: an element of devices is a list or a map"),
        ("timeouts:\n  tcp: [1]", "f:3: timeouts.tcp is a list or a map"),
        ("timeouts:\n  icmp: 1", "f:2: timeouts: 'icmp' is none of tcp"),
        ("timeouts:\n  tcp: 1\n  tcp: 2", "f:4: timeouts.tcp stands there twice: already on line 3"),
        ("mtu: 1400\nmtu: 1400", "f:3: mtu stands there twice: already on line 2"),
        ("zone:", 'f:2: zone has no value: remove the line, or write ""'),
        ("zone: ~", "f:2: zone has no value"),
        ("podCIDRs: a", "f:2: podCIDRs is not a setting of Gatehouse; did you mean pod_cidrs?"),
        ("pod-cidrs: a", "f:2: pod-cidrs is not a setting of Gatehouse; did you mean pod_cidrs?"),
        ("polocy_enforcement: always", "f:2: polocy_enforcement is not a setting of Gatehouse; did you mean policy_"),
        ("xyzzy: a", "f:2: xyzzy is not a setting of Gatehouse; see `gatehouse agent --help`"),
        ("config: a", "f:2: config is not a setting"),
        ("? [a]\n: b", "f:2: a name is a list or a map"),
        ("<<: {mtu: 1400}", "f:2: << is not a setting"),
        ("mtu: [", "f:3: it is not YAML"),
        ("a\tb: c: d", "f:2: it is not YAML"),
        ("---\nmtu: 1400", "f:2: it is not YAML"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        of_file(MINIMAL + text)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}"])
def test_a_file_without_settings_is_one(text: str) -> None:
    assert parse(text, "f") == {}


def test_a_file_that_is_a_list_is_none() -> None:
    with pytest.raises(ConfigError, match=r"^f:1: settings are NAME: VALUE lines"):
        parse("- mtu: 1", "f")


def test_flag_wins_over_variable_over_file_over_default() -> None:
    file = parse("manifests: /m\nmtu: 1401\nzone: f\nnode: f\nmap_sizes: {nat: 1, conntrack: 2}", "f")
    variables = {"zone": Given("v", "GATEHOUSE_ZONE"), "node": Given("v", "GATEHOUSE_NODE")}
    flags = {"node": Given("w", "--node"), "map_sizes": Given("nat=5", "--map-sizes")}
    resolved = merge(file, variables, flags)
    check(resolved)
    config, origins = resolved.config, resolved.origins
    assert (config.mtu, config.zone, config.node, config.routing) == (1401, "v", "w", "native")
    assert config.map_sizes == {"nat": 5}  # replaced whole
    assert [origins[field] for field in ("mtu", "zone", "node", "routing")] == [
        "f:2",
        "GATEHOUSE_ZONE",
        "--node",
        "default",
    ]
    assert list(origins) == list(Config.__struct_fields__)


def test_the_place_of_a_variable_is_its_name() -> None:
    with pytest.raises(ConfigError, match=r"^GATEHOUSE_MTU: 12 is below"):
        check(merge(parse(MINIMAL, "f"), {"mtu": Given("12", "GATEHOUSE_MTU")}))


def test_each_setting_can_stand_in_a_file() -> None:
    """As text and as YAML has it, with the same result as the flag."""
    for setting in settings():
        if not setting.default:
            continue
        text = setting.default
        if setting.shape == "list":
            text = ",".join(map(str, text))
        flagged = build({"manifests": "m", setting.field: str(text)})
        shown = list(setting.default) if setting.shape == "list" else setting.default
        for spelling in (str(text), shown):
            of = merge(parse(f"{setting.field}: {spelling!r}", "f"), {"manifests": Given("m", "--manifests")})
            assert getattr(of.config, setting.field) == getattr(flagged, setting.field)


def test_paths_are_relative_to_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("manifests: m\nstate_dir: /s\nkubeconfig: ''")
    config = merge(read(tmp_path / "a.yaml"), {"cni_bin_dir": Given("bin", "--cni-bin-dir", "/here")}).config
    assert (config.manifests, config.state_dir) == (str(tmp_path / "m"), "/s")
    assert (config.kubeconfig, config.cni_bin_dir) == ("", "/here/bin")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml: the file of settings cannot be read \(No such file"):
        read(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read(tmp_path / "b.yaml")
