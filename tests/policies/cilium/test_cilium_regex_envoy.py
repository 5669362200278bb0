"""Envoy takes every regular expression that a policy may hold, and not only those RE2 finds small."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

from l7proxy.envoy import EnvoySettings, binary, bootstrap
from policies.cilium.regex import MAX_LENGTH, portable

PIECES = [
    *"ab/.*+?|()[]^$-{},3", "(?:", "(?i)", "(?P<n>", "{2,4}", "{900}", "[a-z]", "[[:punct:][:space:]]", r"\d", r"\S",
    "[^/]", r"\b", "(a|b)", "(x)*", "(?i:[acegikmoqsuwy])", "(.{30}){30}",
]  # fmt: skip
LARGEST = ["(?:.{900}){1}.{900}.{900}", "(?:[^acegikmoqsuwy]{50}){10}", "(?:a?b*){900}", "x" * MAX_LENGTH]
PATTERNS = 2000


def drawn(seed: int) -> list[str]:
    source = random.Random(seed)
    found = {portable(pattern) for pattern in LARGEST}
    while len(found) < PATTERNS:
        try:
            found.add(portable("".join(source.choices(PIECES, k=source.randrange(1, 14)))))
        except ValueError:
            continue
    return sorted(found - {""})


def test_envoy_takes_what_is_taken(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    settings = EnvoySettings("n", tmp_path / "xds", tmp_path / "log", tmp_path / "admin")
    routes = [{"match": {"safe_regex": {"regex": p}}, "direct_response": {"status": 200}} for p in drawn(seed)]
    api = "type.googleapis.com/envoy.extensions.filters"
    router = {"name": "router", "typed_config": {"@type": f"{api}.http.router.v3.Router"}}
    manager = {
        "@type": f"{api}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
        "http_filters": [router],
    }
    listener = {
        "name": "l",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    whole = {"layered_runtime": bootstrap(settings)["layered_runtime"], "static_resources": {"listeners": [listener]}}
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(whole))
    command = [str(binary()), "--mode", "validate", "-c", str(file), "-l", "error"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
