"""HTTP rules that change under load: no request is judged by anything weaker than the rules of its time, or denied by
anything stronger."""

from __future__ import annotations

import random
import time

import pytest
from agents import Document, RunningAgent, pod
from l7_load import PATHS, Load, Version, judge
from l7_policies import CLIENT, PORT, WEB, cnp, egress, ingress
from web import WebServer

CHANGES = 200

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_no_request_sees_other_rules_than_those_of_its_time(agent: RunningAgent, side: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    drawn = random.Random(seed)
    agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"))
    versions = [Version(frozenset({"/a"}), 0.0)]
    agent.write("policies.yaml", policy(side, versions[0].allowed))
    agent.start()
    agent.await_listeners()
    addresses = list(agent.endpoint(WEB)["ips"])
    with WebServer(agent.netns(WEB), PORT) as web:
        load = Load(agent.netns(CLIENT), addresses, seed)
        with load.running():
            for _ in range(CHANGES):
                allowed = frozenset(path for path in PATHS[:-1] if drawn.random() < 0.5)
                versions.append(Version(allowed, time.monotonic()))
                agent.write("policies.yaml", policy(side, allowed))
                agent.settle()
                versions[-2].ends = time.monotonic()
        reached = {seen.path for seen in web.seen}
    assert reached == set(PATHS[:-1])
    assert judge(load.asked, versions) == []
    assert len(load.asked) > CHANGES


def policy(side: str, paths: frozenset[str]) -> Document:
    rules = [{"path": path} for path in sorted(paths)]
    if side == "ingress":
        return cnp(
            "shop/web", {"app": "web"}, ingress=ingress(*rules) if rules else _nothing("fromEndpoints", "client")
        )
    return cnp("shop/client", {"app": "client"}, egress=egress(*rules) if rules else _nothing("toEndpoints", "web"))


def _nothing(side: str, app: str) -> list[Document]:
    """A rule set that lets nobody through, at the same port: still requests are answered."""
    port = {"ports": [{"port": str(PORT), "protocol": "TCP"}], "rules": {"http": [{"path": "/nothing"}]}}
    return [{side: [{"matchLabels": {"app": app}}], "toPorts": [port]}]
