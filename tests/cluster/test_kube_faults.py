"""All that can be wrong with an API server, while pods of two nodes talk: what is allowed goes on, what is denied never
gets through, nobody storms the server, and in the end all is as it has it."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import rig
from agents import START_S, Document, allow_from, policy
from kube_cluster import KubeAgent, KubeCluster, KubePod, namespace_document, node_document
from patience import SLOWER
from probes import STREAM, Connection, Server, tcp

from agent.identity.labels import identity_key, key_digest

PORT = 8080
DENIED_S = 0.1
"""How long one try of the denied lasts: rounds of traffic are what time is counted by here."""
LOST_S = 10.0 * SLOWER
"""An answer that takes longer is none: more than a machine stands still for."""
FAR, FAR_PODS = "n3", 8
"""A node that is only told of."""
REQUESTS_A_SECOND = 2.0
"""For one resource by one agent, on average: a watch that ends at once is tried again after half a second or more."""


class Traffic:
    """From n1 to a pod on n2, without a pause: by connections that are allowed, by one that lasts, and by a pod that
    may not. `wrong`: what should not have been."""

    def __init__(self, allowed: KubePod, denied: KubePod, web: KubePod) -> None:
        self.wrong: list[str] = []
        self._allowed, self._denied, self._web = allowed, denied, web
        self._over = threading.Event()
        self._round = 0
        self._turn = threading.Condition()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._go_on, self._try_in_vain)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def rounds(self, number: int) -> None:
        """Until the denied have tried so often again."""
        with self._turn:
            until = self._round + number
            while self._round < until:
                assert self._turn.wait(START_S)

    def _go_on(self) -> None:
        """A packet that is lost is sent again; what does not get through for a while is an answer that fails."""
        for family in ("v4", "v6"):
            assert tcp(self._allowed.netns, self._web.ip(family), PORT)
        with Connection(self._allowed.netns, STREAM, self._web.ip("v4"), PORT) as lasting:
            while not self._over.wait(0.01):
                for family in ("v4", "v6"):
                    got = tcp(self._allowed.netns, self._web.ip(family), PORT, LOST_S)
                    self._check(bool(got), f"a new one by {family}")
                self._check(bool(lasting.exchange(LOST_S)), "the one that lasts")

    def _try_in_vain(self) -> None:
        while not self._over.is_set():
            for family in ("v4", "v6"):
                got = tcp(self._denied.netns, self._web.ip(family), PORT, DENIED_S)
                self._check(not got, f"the denied got an answer by {family}")
            with self._turn:
                self._round += 1
                self._turn.notify_all()

    def _check(self, good: bool, what: str) -> None:
        if not good and not self._over.is_set():
            self.wrong.append(f"{what}, in round {self._round}")


class Churn:
    """Objects that come, change and go, whatever else happens; drawn, so that the policies of both pods take part."""

    def __init__(self, cluster: KubeCluster, rng: random.Random) -> None:
        self._api, self._rng = cluster.api, rng
        for number in range(FAR_PODS):
            self._api.put(identity(number))
        self._api.put(node_document(FAR, 3))

    def step(self) -> None:
        rng = self._rng
        name = f"churn-{rng.randrange(6)}"
        if rng.random() < 0.3 and self._api.get("networkpolicies", name, "shop") is not None:
            self._api.delete("networkpolicies", name, "shop")
        else:
            app, peer = rng.choice(["web", "far-1"]), rng.choice(["client", "far-2", "nobody"])
            self._api.put(policy(f"shop/{name}", {"app": app}, ingress=allow_from(app=peer) * rng.randrange(1, 4)))
        self._api.put(far_endpoints(rng.sample(range(FAR_PODS), rng.randrange(FAR_PODS))))


def far_labels(number: int) -> dict[str, str]:
    return {"app": f"far-{number}"}


def identity(number: int) -> Document:
    spec = {"namespace": "shop", "serviceAccount": "default", "labels": far_labels(number)}
    metadata = {"name": str(65000 + number)}
    return {"apiVersion": "gatehouse.io/v1alpha1", "kind": "SecurityIdentity", "metadata": metadata, "spec": spec}


def far_endpoints(numbers: list[int]) -> Document:
    endpoints = [
        {
            "pod": f"shop/far-{number}",
            "ips": [f"10.244.3.{10 + number}"],
            "identity": 65000 + number,
            "digest": key_digest(identity_key("shop", far_labels(number), "default")),
        }
        for number in sorted(numbers)
    ]
    spec = {"addresses": ["192.0.2.13"], "podCIDRs": ["10.244.3.0/24"], "endpoints": endpoints}
    return {"apiVersion": "gatehouse.io/v1alpha1", "kind": "NodeEndpoints", "metadata": {"name": FAR}, "spec": spec}


@pytest.fixture(scope="module")
def cluster(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeCluster]:
    with KubeCluster(tmp_path_factory.mktemp("kube"), "n1", "n2") as cluster:
        cluster.start()
        cluster.apply(policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
        yield cluster


@pytest.fixture(scope="module")
def traffic(cluster: KubeCluster) -> Iterator[Traffic]:
    pods = [
        cluster.add(where, app=where.rpartition("/")[2]) for where in ("n1/shop/client", "n1/shop/other", "n2/shop/web")
    ]
    with Server(pods[2].netns, "tcp", PORT, "web"), Traffic(*pods) as traffic:
        traffic.rounds(1)
        yield traffic


def dropped(cluster: KubeCluster, pod: str = "shop/client") -> list[Document]:
    """Packets of the pod that may, as the nodes saw them: TCP sends them again, and all is answered."""
    command = ("observe", "-o", "json", "--type", "drop", "--pod", pod, "--since", "1h")
    return [json.loads(line) for agent in cluster.agents.values() for line in agent.cli(*command).stdout.splitlines()]


def watches_end_every_second(cluster: KubeCluster, traffic: Traffic, churn: Churn) -> None:
    for _ in range(4):
        cluster.api.drop_watches()
        churn.step()
        traffic.rounds(5)


def history_is_gone_again_and_again(cluster: KubeCluster, traffic: Traffic, churn: Churn) -> None:
    for turn in range(6):
        cluster.api.faults.gone_as_status = turn % 2 == 0
        churn.step()
        cluster.api.compact()
        traffic.rounds(2)


def too_many_requests(cluster: KubeCluster, traffic: Traffic, churn: Churn) -> None:
    for status, retry_after_s in ((429, 1), (503, 0), (500, 0)):
        rule = cluster.api.faults.refuse(status, retry_after_s=retry_after_s)
        cluster.api.drop_watches()
        churn.step()
        traffic.rounds(8)
        cluster.api.faults.remove(rule)
        traffic.rounds(2)


def answers_break_off(cluster: KubeCluster, traffic: Traffic, churn: Churn) -> None:
    for after in (0, 40, 700):
        cluster.api.faults.reset(after, verbs=["list", "watch"], times=20)
        cluster.api.compact()
        churn.step()
        traffic.rounds(5)


def answers_are_slow(cluster: KubeCluster, traffic: Traffic, churn: Churn) -> None:
    rule = cluster.api.faults.slow(delay_s=0.2, bytes_per_s=2000, verbs=["list", "watch"])
    cluster.api.compact()
    for _ in range(4):
        churn.step()
        traffic.rounds(3)
    cluster.api.faults.remove(rule)


def nobody_answers_and_then_it_starts_again(cluster: KubeCluster, traffic: Traffic, churn: Churn) -> None:
    """Half-open first: what is asked is taken, and then there is silence."""
    cluster.api.faults.hang()
    cluster.api.faults.stall()
    cluster.api.drop_watches("pods", "networkpolicies", "nodeendpoints")
    churn.step()
    traffic.rounds(8)
    cluster.api.stop()
    churn.step()
    traffic.rounds(8)
    cluster.api.faults.clear()
    cluster.api.start()


def the_way_to_it_is_cut(cluster: KubeCluster, traffic: Traffic, churn: Churn) -> None:
    """Nobody is told that connections are dead; they go on where they were."""
    cluster.cut(True)
    for _ in range(4):
        churn.step()
        traffic.rounds(3)
    cluster.cut(False)


WRONGS: list[Callable[[KubeCluster, Traffic, Churn], None]] = [
    watches_end_every_second,
    history_is_gone_again_and_again,
    too_many_requests,
    answers_break_off,
    answers_are_slow,
    the_way_to_it_is_cut,
    nobody_answers_and_then_it_starts_again,
]


def has_fewer_namespaces(agent: KubeAgent, number: int) -> bool:
    return int(agent.status()["namespaces"]) < number


def test_deletes_in_any_order(cluster: KubeCluster, traffic: Traffic) -> None:
    """A namespace before what is in it, a Node before its NodeEndpoints, numbers before the pods that have them."""
    before = dropped(cluster)
    Churn(cluster, random.Random(1)).step()
    cluster.api.put(far_endpoints([1, 2]))
    cluster.apply(namespace_document("gone", team="a"), policy("gone/all", {"app": "gone"}, ingress=[]))
    gone = cluster.add("n1/gone/pod", app="gone")
    await_all_stored(cluster)
    known = {name: agent.status()["namespaces"] for name, agent in cluster.agents.items()}
    api = cluster.api
    api.faults.stall("pods", "networkpolicies", "nodeendpoints")
    api.delete("pods", "pod", "gone")
    api.delete("networkpolicies", "all", "gone")
    api.delete("nodeendpoints", FAR)
    for plural, name in (("namespaces", "gone"), ("nodes", FAR), ("securityidentities", "65001")):
        api.delete(plural, name)
    for name, agent in cluster.agents.items():
        fewer = partial(has_fewer_namespaces, agent, known[name])
        rig.wait_until(fewer, START_S, "the namespace is gone")
        assert {one["name"] for one in agent.json("nodes")} == {"n1", "n2", FAR}, "it is still told of"
    traffic.rounds(2)
    for plural in ("nodeendpoints", "networkpolicies", "pods"):
        api.faults.flow(plural)
        traffic.rounds(2)
    gone.detach()
    del cluster.pods["n1/gone/pod"]
    gone.netns.close()
    await_all_stored(cluster)
    for agent in cluster.agents.values():
        assert {one["name"] for one in agent.json("nodes")} == {"n1", "n2"}
    assert traffic.wrong == []
    assert [flow for flow in dropped(cluster) if flow not in before] == []


@pytest.mark.parametrize("wrong", WRONGS, ids=lambda wrong: wrong.__name__)
def test_enforcement_goes_on_and_all_ends_well(
    cluster: KubeCluster, traffic: Traffic, wrong: Callable[[KubeCluster, Traffic, Churn], None]
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    churn, before = Churn(cluster, random.Random(seed)), dropped(cluster)
    cluster.api.forget_requests()
    began_s = time.monotonic()
    wrong(cluster, traffic, churn)
    cluster.api.faults.clear()
    churn.step()
    await_all_stored(cluster)
    took_s = time.monotonic() - began_s
    assert traffic.wrong == []
    assert [flow for flow in dropped(cluster) if flow not in before] == []
    assert dropped(cluster, "shop/other"), "it would be seen"
    asked = Counter((seen.verb, seen.resource) for seen in cluster.api.requests)
    most = len(cluster.agents) * (REQUESTS_A_SECOND * took_s + 4)
    assert {what: number for what, number in asked.items() if number > most} == {}


def stored(cluster: KubeCluster, agent: KubeAgent) -> dict[str, Any]:
    """Pods that nodes tell of, with the labels that their numbers stand for; and policies: how many rules they have,
    and whom they select of the agent's pods."""
    numbers = {one["metadata"]["name"]: one["spec"] for one in cluster.api.objects("securityidentities")}
    found: dict[str, Any] = {}
    apps: dict[str, list[str]] = {}
    for node in cluster.api.objects("nodeendpoints"):
        for one in node["spec"].get("endpoints") or ():
            labels = numbers[str(one["identity"])].get("labels", {})
            found[one["pod"]] = [node["metadata"]["name"], sorted(one["ips"]), one["identity"], labels]
            if node["metadata"]["name"] == agent.name:
                apps.setdefault(labels["app"], []).append(one["pod"])
    for one in cluster.api.objects("networkpolicies"):
        spec, meta = one["spec"], one["metadata"]
        selected = apps.get(spec["podSelector"]["matchLabels"]["app"], [])
        found[f"policy {meta['namespace']}/{meta['name']}"] = [len(spec["ingress"]), sorted(selected)]
    return found


def in_force(agent: KubeAgent) -> dict[str, Any]:
    """The same, as the commands show it."""
    found: dict[str, Any] = {}
    for one in agent.json("endpoints"):
        found[f"{one['namespace']}/{one['name']}"] = [one["node"], sorted(one["ips"]), one["identity"], one["labels"]]
    for one in agent.json("policies"):
        found[f"policy {one['namespace']}/{one['name']}"] = [one["rules"], one["endpoints"]]
    return found


def await_all_stored(cluster: KubeCluster) -> None:
    """Until every agent has in force what the server has, and calls itself ready."""
    for agent in cluster.agents.values():
        both: list[dict[str, Any]] = []

        def same(agent: KubeAgent = agent, both: list[dict[str, Any]] = both) -> bool:
            both[:] = [stored(cluster, agent), in_force(agent)]
            return both[0] == both[1] and agent.status()["state"] == "ready"

        try:
            rig.wait_until(same, START_S)
        except AssertionError:
            raise AssertionError(f"{agent.name}: {both[1]} is not {both[0]}; {agent.status()['reasons']}") from None
