"""The demo's requests and DNS names: what is asked on one connection, what must come back, and which rule decided."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import msgspec
import yaml

from agent.api import client
from agent.demo.box import HERE, Box
from agent.demo.probes import ANSWER_S, Ask, Outcome, Verdicts, describe
from agent.flows.flow import Flow, FlowType
from l7proxy.records import Dns, Http


class Asks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "destination": "to"}):
    """One row of asks.yaml. `asks`: path or name → status or code."""

    source: str
    destination: str
    port: int
    protocol: Literal["HTTP", "DNS"]
    asks: dict[str, str]


def load() -> list[Asks]:
    return msgspec.convert(yaml.load((HERE / "asks.yaml").read_bytes(), yaml.CSafeLoader), list[Asks])


def run(box: Box, verdicts: Verdicts) -> Iterator[Outcome]:
    pods = {f"{e['namespace']}/{e['name']}": e for e in client.call(box.state_dir / "agent.sock", "endpoints")}
    for row in load():
        source_port, answers = _send(row, pods)
        transport = "UDP" if row.protocol == "DNS" else "TCP"
        found = verdicts.flows(source_port, transport, FlowType.L7, partial(_are_all, len(answers)))
        rules = {_asked(flow): describe(flow) for flow in found}
        for (what, expected), got in zip(row.asks.items(), answers, strict=True):
            ask = Ask(row.source, row.destination, row.port, row.protocol, expected, what)
            yield Outcome(ask, got, rules.get(what, verdicts.problem))


def _are_all(count: int, flows: list[Flow]) -> bool:
    return len(flows) >= count


def _send(row: Asks, pods: Mapping[str, Any]) -> tuple[int, list[str]]:
    target = next(ip for ip in pods[row.destination]["ips"] if ":" not in ip)
    command = ["/usr/bin/python3", "-I", str(HERE / "ask.py"), row.protocol.lower(), target, str(row.port)]
    done = subprocess.run(
        ["nsenter", f"--net={pods[row.source]['netns']}", *command, str(ANSWER_S), *row.asks],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    return said["source_port"], said["answers"]


def _asked(flow: Flow) -> str:
    match flow.l7:
        case Http(path=path):
            return path
        case Dns(query=query):
            return query
    return ""
