"""`gatehouse services` and `gatehouse services trace` of a real agent."""

from __future__ import annotations

import re

import probes
from agents import Document, RunningAgent, pod, service
from probes import Server

CLIENT, FIRST, SECOND = "shop/client", "shop/a", "shop/b"


def sticky() -> Document:
    found = service("shop/web", {"app": "web"}, 80, 8080)
    found["spec"] |= {"type": "NodePort", "sessionAffinity": "ClientIP"}
    return found


def begin(agent: RunningAgent) -> None:
    agent.write("client.yaml", pod(CLIENT, app="client"))
    agent.write("a.yaml", pod(FIRST, app="web"))
    agent.write("services.yaml", sticky(), service("other/none", {"app": "none"}, 53, 53))
    agent.start()


def test_listing(agent: RunningAgent) -> None:
    begin(agent)
    agent.write("b.yaml", pod(SECOND, app="web"))
    agent.settle()
    web = next(s for s in agent.json("services") if s["name"] == "web")
    cluster_ip = next(f for f in web["frontends"] if f["kind"] == "ClusterIP" and ":" not in f["address"])
    assert {(b["pod"], b["node"], b["state"]) for b in cluster_ip["backends"]} == {
        (FIRST, "n1", "ready"),
        (SECOND, "n1", "ready"),
    }
    assert cluster_ip["affinity_timeout_s"] == 10800
    assert cluster_ip["last_change"]["text"] == f"backend {agent.ip(SECOND)}:8080 added"
    assert web["last_change"]["time"] >= cluster_ip["last_change"]["time"]
    table = agent.cli("services", check=True).stdout
    line = next(line for line in table.splitlines() if "ClusterIP" in line and " web " in line)
    assert re.search(r"affinity 3h00m +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ backend(s)? .* added", line)


def test_filters(agent: RunningAgent) -> None:
    begin(agent)

    def names(*options: str) -> set[str]:
        return {s["name"] for s in agent.json("services", *options)}

    assert names() == {"web", "none"}
    assert names("-n", "shop") == {"web"}
    assert names("--name", "n*") == {"none"}
    assert names("--problems") == {"none"}
    empty = agent.cli("services", "-n", "nowhere")
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, "", "no such services\n")


def test_trace(agent: RunningAgent) -> None:
    begin(agent)
    agent.write("b.yaml", pod(SECOND, app="web"))
    agent.settle()
    new = agent.json("services", "trace", CLIENT, "shop/web:80")
    assert (new["outcome"], {d["pod"] for d in new["deliveries"]}) == ("delivered", {FIRST, SECOND})
    client = agent.netns(CLIENT)
    address = new["destination"].rpartition(":")[0]
    with Server(agent.netns(FIRST), "tcp", 8080, FIRST), Server(agent.netns(SECOND), "tcp", 8080, SECOND):
        answer = probes.tcp(client, address, 80)
    assert answer
    again = agent.json("services", "trace", CLIENT, f"{address}:80")
    assert [d["pod"] for d in again["deliveries"]] == [answer.label]
    assert any("is kept at" in step for step in again["steps"])
    text = agent.cli("services", "trace", CLIENT, "shop/web:80", check=True).stdout
    assert f"({answer.label}, node n1), which sees the client's address" in text


NOT_SERVED = [
    ((CLIENT, "other/none:53"), 1, "refused"),
    ((CLIENT, "10.96.77.77:80"), 1, "no service"),
    ((CLIENT, "shop/nothing:80"), 2, "there is no service shop/nothing"),
    ((CLIENT, "fd00::1"), 2, "is not DST:PORT"),
    ((CLIENT, "shop/web"), 2, "is not DST:PORT"),
    (("shop/nobody", "shop/web:80"), 2, "there is no pod shop/nobody"),
]


def test_trace_of_what_is_not_served(agent: RunningAgent) -> None:
    begin(agent)
    for words, status, says in NOT_SERVED:
        result = agent.cli("services", "trace", *words)
        assert (result.returncode, says in result.stdout + result.stderr) == (status, True), (words, result)
