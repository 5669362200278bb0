"""Values for the chart: installations as people have them, and for each value one that makes a difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[1] / "charts" / "gatehouse"
DIGEST = "sha256:" + "0123456789abcdef" * 4

POOL = {
    "mode": "pool",
    "pool": [{"cidr": "10.0.0.0/16", "blockBits": 24}, {"cidr": "fd00:10::/48", "blockBits": 64}],
}
METRICS = {"observability": {"metrics": {"enabled": True}}}
MONITORED = {"observability": {"metrics": {"enabled": True}, "serviceMonitor": {"enabled": True}}}
ENCRYPTED = {"encryption": {"enabled": True}}
CHAINED = {"cni": {"chain": "10-other.conflist"}, "routingMode": "off"}

INSTALLATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "vxlan-pool": {"routingMode": "vxlan", "ipam": POOL, "mtu": 1400},
    "ipv6-only": {
        "ipv4": {"enabled": False},
        "clusterCIDRs": ["fd00:10::/48"],
        "serviceCIDRs": ["fd00:96::/112"],
        "k8sServiceHost": "fd00::1",
    },
    "load-balancer": {
        "loadBalancer": {
            "algorithm": "maglev",
            "maglev": {"tableSize": 65521, "seed": "s3cret: 'quoted'"},
            "mode": "hybrid",
            "acceleration": "native",
            "externalIPs": True,
            "nodePortAddresses": ["192.0.2.0/24"],
        },
        "devices": ["eth0", "eth1"],
    },
    "encrypted": ENCRYPTED,
    "encrypted-by-the-kernel": {
        "encryption": {
            "enabled": True,
            "implementation": "kernel",
            "port": 51900,
            "nodeEncryption": True,
            "strictMode": True,
            "keepaliveSeconds": 25,
            "keyRotationDays": 0.5,
        },
        "clusterCIDRs": ["10.244.0.0/16"],
        "routingMode": "vxlan",
    },
    "big-tcp": {"bigTCP": {"enabled": True}},
    "chained": CHAINED | {"masquerade": {"enabled": False}},
    "monitored": MONITORED | {"policyEnforcementMode": "always"},
    "no-proxies": {"l7Proxy": {"enabled": False}, "dnsProxy": {"enabled": False}},
    "private-registry": {
        "image": {"repository": "images.example/net/gatehouse", "digest": DIGEST},
        "imagePullSecrets": ["pull"],
        "k8sServiceHost": "api.example",
        "k8sServicePort": 443,
        "tlsSecretNamespaces": ["shop", "web"],
        "extraConfig": {"map_sizes": {"conntrack": 1000000}, "timeouts": {"udp": 30}, "labels_include": ["app"]},
    },
    "cri-dockerd-no-systemd": {"hostPID": True, "bpffs": {"mount": True}, "cni": {"install": False}},
    "cleanup": {"cleanup": {"enabled": True}},
}
"""Of these the manifests are kept as golden files."""

REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    # Not in this version.
    ("kube-proxy", {"kubeProxyReplacement": False}, "kubeProxyReplacement: false cannot be honoured"),
    ("audit", {"audit": {"enabled": True}}, "audit.enabled: this version of Gatehouse writes no audit records"),
    # Not together.
    (
        "nodes alone encrypted",
        {"encryption": {"nodeEncryption": True}},
        "encryption.nodeEncryption is nothing without encryption.enabled: set that, too, or leave it false",
    ),
    (
        "strict about nothing",
        {"encryption": {"strictMode": True}},
        "encryption.strictMode is nothing without encryption.enabled",
    ),
    (
        "strict about nobody knows whom",
        {"encryption": {"enabled": True, "strictMode": True}},
        "encryption.strictMode: which addresses are pods' of nodes that were not heard of is not known",
    ),
    ("chained, encrypted", CHAINED | ENCRYPTED, "encryption.enabled: the plugin before Gatehouse (cni.chain) gives"),
    (
        "encrypted nowhere",
        ENCRYPTED | {"devices": [], "masquerade": {"enabled": False}},
        "encryption.enabled: it is done at the nodes' devices",
    ),
    ("large and encrypted", ENCRYPTED | {"bigTCP": {"enabled": True}}, "bigTCP.enabled: WireGuard takes no such"),
    (
        "large in a tunnel",
        {"routingMode": "vxlan", "bigTCP": {"enabled": True}},
        "bigTCP.enabled: VXLAN takes no such packets: leave it false, or set routingMode to native",
    ),
    *(
        (f"WireGuard at {port}", {"encryption": {"enabled": True, "port": port}, "routingMode": "vxlan"}, says)
        for port, says in (
            (30001, "encryption.port (30001-30001) and loadBalancer.nodePortRange (30000-32767) have a port in common"),
            (61001, "encryption.port (61001-61001) and loadBalancer.snatPortRange (61000-65535) have a port in common"),
            (16384, "encryption.port (16384-16384) and proxyPortRange (16384-20479) have a port in common"),
            (8472, "encryption.port (8472-8472) and tunnelPort (8472-8472) have a port in common"),
        )
    ),
    (
        "services of two blocks",
        {"serviceCIDRs": ["10.0.0.0/16", "10.1.0.0/16"]},
        "serviceCIDRs: give at most one block",
    ),
    ("no family", {"ipv4": {"enabled": False}, "ipv6": {"enabled": False}}, "enable at least one"),
    ("no pool", {"ipam": {"mode": "pool"}}, "ipam.pool is empty: give the block"),
    (
        "pool of nobody",
        {"ipam": POOL | {"mode": "kubernetes"}},
        "ipam.pool is for ipam.mode pool, and ipam.mode",
    ),
    (
        "two of a family",
        {"ipam": {"mode": "pool", "pool": [{"cidr": f"10.{n}.0.0/16", "blockBits": 24} for n in (1, 2)]}},
        "ipam.pool: give at most one block for each of IPv4 and IPv6",
    ),
    (
        "block as large as the pool",
        {"ipam": {"mode": "pool", "pool": [{"cidr": "10.0.0.0/24", "blockBits": 24}]}},
        "blockBits 24 is no part of 10.0.0.0/24 for a node: choose 25 to 30",
    ),
    (
        "block too small",
        {"ipam": {"mode": "pool", "pool": [{"cidr": "10.0.0.0/24", "blockBits": 31}]}},
        "blockBits 31 is no part of 10.0.0.0/24 for a node: choose 25 to 30",
    ),
    ("pool without its family", {"ipam": POOL, "ipv6": {"enabled": False}}, "has a block of ipv6, and ipv6.enabled is"),
    ("chained, native", {"cni": {"chain": "10-a.conflist"}}, 'set routingMode to "off" (it is native)'),
    ("chained, pool", CHAINED | {"ipam": POOL}, "gives pods their addresses: leave ipam.mode at kubernetes"),
    ("chained, not installed", CHAINED | {"cni": {"chain": "a.conf", "install": False}}, "cni.chain needs cni.install"),
    ("auto and names", {"devices": ["auto", "eth0"]}, "devices: give either auto or names"),
    ("masquerade nowhere", {"devices": []}, "masquerade.enabled: it is done at the nodes' devices"),
    (
        "DSR nowhere",
        {"devices": [], "masquerade": {"enabled": False}, "loadBalancer": {"mode": "dsr"}},
        "loadBalancer.mode: dsr is done at the nodes' devices",
    ),
    (
        "XDP nowhere",
        {"devices": [], "masquerade": {"enabled": False}, "loadBalancer": {"acceleration": "auto"}},
        "XDP is done at the nodes' devices",
    ),
    (
        "no prime",
        {"loadBalancer": {"maglev": {"tableSize": 16383}}},
        "16383 is not a prime number; 16381",
    ),
    ("square of a prime", {"loadBalancer": {"maglev": {"tableSize": 359 * 359}}}, "128881 is not a prime number"),
    (
        "node ports given out",
        {"loadBalancer": {"nodePortRange": "30000-61000"}},
        "(30000-61000) and loadBalancer.snatPortRange (61000-65535) have a port in common: keep them apart",
    ),
    (
        "health of a proxy",
        {"proxyPortRange": "10000-14095"},
        "healthPort (10256-10256) and proxyPortRange (10000-",
    ),
    ("downwards", {"proxyPortRange": "9-8"}, "proxyPortRange: 9-8 does not go upwards within 1-65535"),
    ("no ports", {"loadBalancer": {"snatPortRange": "61000-65536"}}, "61000-65536 does not go upwards within 1-65535"),
    ("tunnel of node ports", {"routingMode": "vxlan", "tunnelPort": 30001}, "and tunnelPort (30001-30001) have a port"),
    (
        "metrics at the health port",
        {"observability": {"metrics": {"enabled": True, "port": 10256}}},
        "healthPort (10256-10256) and observability.metrics.port (10256-10256) have a port in common",
    ),
    (
        "nothing to scrape",
        {"observability": {"serviceMonitor": {"enabled": True}}},
        "set observability.metrics",
    ),
    # Not what they may be.
    ("misspelt", {"kubeProxyReplacment": True}, "additional properties 'kubeProxyReplacment' not allowed"),
    ("misspelt inside", {"loadBalancer": {"algoritm": "maglev"}}, "additional properties 'algoritm' not allowed"),
    ("setting of a value", {"extraConfig": {"routing": "off"}}, "additional properties 'routing' not allowed"),
    ("unknown setting", {"extraConfig": {"mtuu": 1}}, "additional properties 'mtuu' not allowed"),
    ("not of this kind", {"encryption": {"type": "ipsec"}}, "/encryption/type"),
    ("no such WireGuard", {"encryption": {"implementation": "boringtun"}}, "/encryption/implementation"),
    ("a key of the future", {"encryption": {"keyRotationDays": -1}}, "/encryption/keyRotationDays"),
    ("half a second", {"encryption": {"keepaliveSeconds": 0.5}}, "/encryption/keepaliveSeconds"),
    ("unknown mode", {"policyEnforcementMode": "never"}, "value must be one of 'default', 'always'"),
    ("off without quotes", {"routingMode": False}, "got boolean, want string"),
    ("latest", {"image": {"tag": "latest"}}, "/image/tag"),
    ("half a digest", {"image": {"digest": "sha256:12"}}, "/image/digest"),
    ("text for a switch", {"ipv6": {"enabled": "yes"}}, "got string, want boolean"),
    ("MTU below IPv6's", {"mtu": 1279}, "/mtu"),
    ("port above all", {"healthPort": 65536}, "/healthPort"),
    ("not a block", {"clusterCIDRs": ["10.244.0.0"]}, "/clusterCIDRs/0"),
    ("no such address", {"clusterCIDRs": ["10.256.0.0/16"]}, "/clusterCIDRs/0"),
    ("no such length", {"masquerade": {"exclude": ["fd00::/129"]}}, "/masquerade/exclude/0"),
    ("relative", {"stateDir": "gatehouse"}, "/stateDir"),
    ("root of the node", {"stateDir": "/gatehouse"}, "/stateDir"),
    ("upwards", {"cni": {"binDir": "/opt/../etc"}}, "/cni/binDir"),
    ("path for a name", {"cni": {"chain": "/etc/cni/net.d/10-a.conflist"}}, "/cni/chain"),
    ("no namespace", {"tlsSecretNamespaces": ["Shop"]}, "/tlsSecretNamespaces/0"),
    ("nobody may be away", {"updateStrategy": {"maxUnavailable": 0}}, "/updateStrategy/maxUnavailable"),
    ("no quantity", {"resources": {"limits": {"memory": "much"}}}, "/resources/limits/memory"),
    ("group taken away", {"image": None}, "missing property 'image'"),
    ("value taken away", {"cni": {"confDir": None}}, "missing property 'confDir'"),
    ("every namespace", {"tlsSecretNamespaces": ["*"]}, "/tlsSecretNamespaces/0"),
)
"""Name, values, what Helm says."""

CHANGES: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "image.repository": ("images.example/gatehouse", {}),
    "image.tag": ("1.2.3", {}),
    "image.digest": (DIGEST, {}),
    "image.pullPolicy": ("Always", {}),
    "imagePullSecrets": (["pull"], {}),
    "k8sServiceHost": ("api.example", {}),
    "k8sServicePort": (443, {"k8sServiceHost": "api.example"}),
    "kubeProxyReplacement": (False, {}),
    "policyEnforcementMode": ("always", {}),
    "encryption.enabled": (True, {}),
    "encryption.implementation": ("kernel", ENCRYPTED),
    "encryption.port": (51900, ENCRYPTED),
    "encryption.nodeEncryption": (True, ENCRYPTED),
    "encryption.strictMode": (True, ENCRYPTED | {"clusterCIDRs": ["10.244.0.0/16"]}),
    "encryption.keepaliveSeconds": (25, ENCRYPTED),
    "encryption.keyRotationDays": (90, ENCRYPTED),
    "encryption.resources.requests.cpu": ("2", ENCRYPTED),
    "encryption.resources.requests.memory": ("1Gi", ENCRYPTED),
    "routingMode": ("vxlan", {}),
    "tunnelPort": (4789, {}),
    "ipam.mode": ("pool", {"ipam": {"pool": POOL["pool"]}}),
    "ipam.pool": (POOL["pool"], {"ipam": {"mode": "pool"}}),
    "ipv4.enabled": (False, {}),
    "ipv6.enabled": (False, {}),
    "clusterCIDRs": (["10.0.0.0/8"], {}),
    "serviceCIDRs": (["10.96.0.0/12"], {}),
    "masquerade.enabled": (False, {}),
    "masquerade.exclude": (["192.0.2.0/24"], {}),
    "devices": (["eth0"], {}),
    "mtu": (9000, {}),
    "loadBalancer.algorithm": ("maglev", {}),
    "loadBalancer.maglev.tableSize": (65521, {}),
    "loadBalancer.maglev.seed": ("secret", {}),
    "loadBalancer.mode": ("dsr", {}),
    "loadBalancer.acceleration": ("generic", {}),
    "loadBalancer.socketLB": ("host", {}),
    "loadBalancer.nodePortRange": ("32000-32767", {}),
    "loadBalancer.nodePortAddresses": (["192.0.2.0/24"], {}),
    "loadBalancer.snatPortRange": ("62000-65535", {}),
    "loadBalancer.externalIPs": (True, {}),
    "bigTCP.enabled": (True, {}),
    "l7Proxy.enabled": (False, {}),
    "l7Proxy.startup": ("always", {}),
    "l7Proxy.threads": (2, {}),
    "l7Proxy.resources.requests.cpu": ("2", {}),
    "l7Proxy.resources.requests.memory": ("1Gi", {}),
    "dnsProxy.enabled": (False, {}),
    "dnsProxy.startup": ("always", {}),
    "dnsProxy.denied": ("nxdomain", {}),
    "dnsProxy.minTTL": (0, {}),
    "dnsProxy.maxAddresses": (10, {}),
    "dnsProxy.resources.requests.cpu": ("2", {}),
    "dnsProxy.resources.requests.memory": ("1Gi", {}),
    "proxyPortRange": ("20000-20999", {}),
    "observability.log.format": ("text", {}),
    "observability.log.level": ("debug", {}),
    "observability.flows.ringSize": (1000, {}),
    "observability.flows.l7Unredacted": (True, {}),
    "observability.flows.resources.requests.cpu": ("2", {}),
    "observability.flows.resources.requests.memory": ("1Gi", {}),
    "observability.metrics.enabled": (True, {}),
    "observability.metrics.port": (9966, METRICS),
    "observability.serviceMonitor.enabled": (True, METRICS),
    "observability.serviceMonitor.interval": ("10s", MONITORED),
    "observability.serviceMonitor.labels": ({"prometheus": "main"}, MONITORED),
    "audit.enabled": (True, {}),
    "cni.install": (False, {}),
    "cni.binDir": ("/usr/lib/cni", {}),
    "cni.confDir": ("/etc/cni", {}),
    "cni.chain": ("10-other.conflist", {"routingMode": "off"}),
    "tlsSecretNamespaces": (["shop"], {}),
    "healthPort": (10257, {}),
    "stateDir": ("/var/lib/other", {}),
    "cgroup.hostRoot": ("/sys/fs/cgroup/unified", {}),
    "bpffs.mount": (True, {}),
    "hostPID": (True, {}),
    "extraConfig": ({"api_wait_s": 3}, {}),
    "resources.requests.cpu": ("2", {}),
    "resources.requests.memory": ("1Gi", {}),
    "updateStrategy.maxUnavailable": (1, {}),
    "priorityClassName": ("network-critical", {}),
    "tolerations": ([], {}),
    "nodeSelector.kubernetes.io/os": ("none", {}),
    "affinity": ({"nodeAffinity": {}}, {}),
    "podAnnotations": ({"a": "b"}, {}),
    "podLabels": ({"a": "b"}, {}),
    "serviceAccount.annotations": ({"a": "b"}, {}),
    "seLinuxOptions.level": ("s1", {}),
    "seLinuxOptions.type": ("other_t", {}),
    "cleanup.enabled": (True, {}),
}
"""Value → another, and with which others it makes a difference."""

ONE_CHOICE = ("encryption.type",)
"""Values that may be but one thing yet."""


def defaults() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What is no map of values, or an empty one."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, name))
        else:
            yield (*above, name), value


def changed(values: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *rest = path
    inner = changed(values.get(name, {}), tuple(rest), value) if rest else value
    return {**values, name: inner}
