"""What an agent without L7 rules does without."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"grpc", "google.protobuf"}


def imported(what: str) -> set[str]:
    program = f"import sys, {what}; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_an_agent_imports_no_grpc_before_a_rule_asks_for_envoy() -> None:
    assert not imported("agent.loop") & HEAVY
    assert imported("agent.proxy.xds") >= HEAVY
