"""The demo's table of probes: what is sent from where, what must become of it, and which rule decided."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from agent.api import client
from agent.api.protocol import ApiError
from agent.demo.box import HERE, Box
from agent.flows.flow import Flow, FlowType, Lost
from agent.flows.record import INGRESS
from agent.flows.render import decode

SILENCE_S, ANSWER_S, DECIDED_S = 0.8, 15.0, 20.0
"""How long silence must last to be silence; how long what comes may take on a busy machine: an answer, its flow."""


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "destination": "to"}):
    """One row of probes.yaml, which explains the fields."""

    source: str
    destination: str
    port: int
    expect: Literal["answered", "dropped", "refused"]
    protocol: Literal["TCP", "UDP"] = "TCP"
    family: Literal["IPv4", "IPv6"] = "IPv4"
    rule: str = ""
    note: str = ""


class Ask(msgspec.Struct, frozen=True):
    """One request or DNS name (agent.demo.asks). `expect`: a status, or a code of DNS."""

    source: str
    destination: str
    port: int
    protocol: str
    expect: str
    note: str
    rule: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """`rule` is what decided, in the words of `observe`; "" where no flow told."""

    probe: Probe | Ask
    got: str
    rule: str

    @property
    def as_expected(self) -> bool:
        return self.got == self.probe.expect and (not self.probe.rule or self.rule == self.probe.rule)


def load() -> list[Probe]:
    return msgspec.convert(yaml.load((HERE / "probes.yaml").read_bytes(), yaml.CSafeLoader), list[Probe])


class Verdicts:
    """Listens to `observe` and tells which rule decided about the packets of one source port."""

    def __init__(self, flows_socket: Path) -> None:
        self.lines: list[Flow | Lost] = []
        self.problem = ""
        self._changed = threading.Condition()
        self._stream = client.stream(flows_socket, "observe", follow=True, last=0)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            for value in self._stream:
                with self._changed:
                    self.lines.append(decode(value))
                    self._changed.notify_all()
        except ApiError as error:  # the box is being removed, or flows can't be told
            self.problem = str(error)

    def deciding(self, source_port: int, protocol: str, got: str) -> str:
        """The rule of the flow from this port: of the side that said no, else of the destination's side."""
        kind = FlowType.NEW if got == "answered" else FlowType.DROP
        flows = self.flows(source_port, protocol, kind, lambda flows: any(map(_is_last_word, flows)))
        return describe(flows[-1]) if flows else self.problem

    def flows(
        self, source_port: int, protocol: str, kind: FlowType, enough: Callable[[list[Flow]], bool] = bool
    ) -> list[Flow]:
        """The records of this kind from this port; waits a while for `enough` of them."""
        with self._changed:
            self._changed.wait_for(lambda: enough(self._found(source_port, protocol, kind)), DECIDED_S)
            return self._found(source_port, protocol, kind)

    def _found(self, source_port: int, protocol: str, kind: FlowType) -> list[Flow]:
        return [
            line
            for line in self.lines
            if isinstance(line, Flow) and (line.type, line.source.port, line.protocol) == (kind, source_port, protocol)
        ]


def _is_last_word(flow: Flow) -> bool:
    """Of a flow between pods that is let pass, the record of the source's side comes first."""
    return flow.type is FlowType.DROP or flow.direction == INGRESS or flow.destination.pod is None


def describe(flow: Flow) -> str:
    """Who decided: the rule, or why there was none."""
    if flow.policy is not None and flow.policy.kind != "Built-in":
        return f"{flow.policy.kind} {flow.policy}"
    if flow.policy is not None:
        return str(flow.policy)
    return flow.drop_reason or ""


def run(box: Box, verdicts: Verdicts) -> Iterator[Outcome]:
    """Each probe in turn, as its flow is to be seen beside it."""
    pods = {f"{e['namespace']}/{e['name']}": e for e in client.call(box.state_dir / "agent.sock", "endpoints")}
    services = {f"{s['namespace']}/{s['name']}": s for s in client.stream(box.state_dir / "agent.sock", "services")}
    for probe in load():
        netns, source = _where(box, probe.source, pods)
        target = _address(probe, pods, services)
        seconds = SILENCE_S if probe.expect == "dropped" else ANSWER_S
        command = ["/usr/bin/python3", "-I", str(HERE / "probe.py"), probe.protocol.lower(), target, str(probe.port)]
        done = subprocess.run(
            ["nsenter", f"--net={netns}", *command, str(seconds), *([source] if source else [])],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        answer = json.loads(done.stdout)
        rule = verdicts.deciding(answer["source_port"], probe.protocol, answer["result"])
        yield Outcome(probe, answer["result"], rule)


def _where(box: Box, source: str, pods: Mapping[str, Any]) -> tuple[str, str]:
    """Namespace to send from, and the address to bind where it has several."""
    if source == "node":
        return f"/run/netns/{box.node}", ""
    if source.startswith("outside "):
        return f"/run/netns/{box.outside}", source.removeprefix("outside ")
    return pods[source]["netns"], ""


def _address(probe: Probe, pods: Mapping[str, Any], services: Mapping[str, Any]) -> str:
    kind, _, name = probe.destination.rpartition(" ")
    if kind == "outside":
        return name
    ips: list[str] = services[name]["ips"] if kind == "service" else pods[name]["ips"]
    source_v6 = ":" in probe.source or probe.family == "IPv6"
    return next(ip for ip in ips if (":" in ip) is source_v6)
