"""Nothing is open while an agent starts, and an agent that cannot enforce does not go on without."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import probes
import rig
from agents import RunningAgent, allow_from, pod, policy

ECHO = (
    "exec python3 -c 'import socket\n"
    's = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 9000))\n'
    "while True: s.sendto(*s.recvfrom(100))'"
)
ADDRESS = "10.244.0.77"
SETTLED_PROBES = 50


def closed_pod() -> str:
    """A pod with a known address that answers every datagram, and a policy that lets nobody in."""
    web = pod("shop/web", command=ECHO, app="web")
    web["status"] = {"podIP": ADDRESS}
    return json.dumps(web)


class Knocking(threading.Thread):
    """Datagrams to the pod without a pause, from before it exists; `answers` counts what comes back."""

    def __init__(self, where: rig.Netns) -> None:
        super().__init__(daemon=True)
        self.socket = where.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(0.001)
        self.sent = self.answers = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self.socket.sendto(b"knock", (ADDRESS, 9000))
                self.sent += 1
                self.socket.recv(100)
                self.answers += 1
            except TimeoutError:
                continue
            except OSError:  # no route yet, or an ICMP error: nobody answered
                time.sleep(0.001)


@contextmanager
def knocking(where: rig.Netns) -> Iterator[Knocking]:
    thread = Knocking(where)
    thread.start()
    try:
        yield thread
    finally:
        thread.over.set()
        thread.join()
        thread.socket.close()


def await_more(thread: Knocking) -> None:
    wanted = thread.sent + SETTLED_PROBES
    rig.wait_until(lambda: thread.sent >= wanted, what="more probes")


def test_lesson_02_a_denied_pod_is_closed_from_its_first_moment(agent: RunningAgent, outside: rig.Outside) -> None:
    """The first start of all: programs are compiled, the pod is made, its server starts; knocked at all the while."""
    agent.write("all.yaml", closed_pod(), policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
    with knocking(outside) as thread:
        agent.start()
        await_more(thread)
        assert thread.answers == 0
        # The probes would have been answered, had it been open: it is now, and they are.
        agent.write("policy.yaml", policy("shop/open", {"app": "web"}, ingress=[{}]))
        rig.wait_until(lambda: thread.answers > 0, what="an answer once a policy allows it")


def test_lesson_01_a_restart_detaches_nothing(agent: RunningAgent, outside: rig.Outside) -> None:
    """Knocked at through three restarts, after kills and an orderly stop; the filters never go."""
    agent.write("all.yaml", closed_pod(), policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
    agent.start()
    interface = agent.endpoint("shop/web")["interface"]
    watch = agent.node.popen("tc", "monitor", stdout=-1)
    with knocking(outside) as thread:
        for how in (agent.kill, agent.stop, agent.kill):
            how()
            agent.start()
        await_more(thread)
        assert thread.answers == 0
    watch.terminate()
    output = watch.communicate()[0].decode()
    assert not re.search(rf"deleted .*dev {interface}\b", output), output


def test_lesson_14_what_cannot_be_enforced_ends_the_agent(agent: RunningAgent, outside: rig.Outside) -> None:
    """Maps that are not as they must be: the agent says so and ends; it makes no pod, and what is in force stays."""
    agent.write("all.yaml", closed_pod(), policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
    agent.start()
    assert agent.stop() == 0
    agent.write("more.yaml", pod("shop/late", app="late"))
    agent.start("--map-sizes", "policy_class=1000", settle=False)
    assert agent.process is not None
    assert agent.process.wait(30) != 0
    last = agent.log().splitlines()[-1]
    assert "policy_class" in last, last
    assert "max_entries" in last, last
    assert not probes.udp(outside, ADDRESS, 9000, timeout_s=0.3)
    agent.start()
    assert {e["name"]: e["state"] for e in agent.json("endpoints")} == {"web": "ready", "late": "ready"}
