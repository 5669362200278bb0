"""Probes as tables: a cluster with a real agent, and rows that say who reaches whom, and who decided.

    cluster.check('''
    # from      to               port      expected  decided by
    blue/api    blue/web         TCP/8080  answered  NetworkPolicy blue/p ingress[0]
    outside     blue/web         TCP/8080  dropped
    ''')

A place is a pod (NAMESPACE/NAME), `service:NAMESPACE/NAME`, `node`, `outside`, or an address outside the node. A row is
tried in both families unless a place is an address, or the port says which: `TCP/8080/v6`; `ICMP` is an echo.
Expected is answered, refused or dropped. `decided by` is in the words of `gatehouse observe`: a rule of either side, or
a drop reason. A drop without one must be the policy's default deny (or, of ICMP, cannot be told from others).
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import probes
import rig
import yaml
from agents import Document, RunningAgent
from probes import Answer, Connection, Server

from agent.api import client
from agent.demo.probes import Verdicts, describe
from agent.flows.flow import Flow, FlowType
from agent.supervisor import listener_pid

EXTRA_V4 = ("198.51.100.10", "198.51.100.66", "198.51.100.130", "203.0.113.7")
EXTRA_V6 = ("2001:db8:100::10", "2001:db8:100::66", "2001:db8:200::10")
"""Addresses outside, besides those of the rig."""
DROPPED_S = 0.3
"""How long silence must last to be silence."""
ANSWERED_S = probes.TIMEOUT_S
"""How long an answer may take on a machine that now and then stands still for seconds."""
RESULTS = {"ok": "answered", "refused": "refused", "timeout": "dropped"}
DENY = "default-deny"
ROWS_AT_ONCE = 24
FAMILIES = ("v4", "v6")
_ports = itertools.count(10_000)
"""Every probe has a source port of its own, below the kernel's ephemeral ones, so that its flow can be found."""


@dataclass(frozen=True)
class Row:
    source: str
    destination: str
    protocol: str
    port: int
    family: str
    expected: str
    decided_by: str

    def __str__(self) -> str:
        return f"{self.source} → {self.destination} {self.protocol}/{self.port} {self.family}: {self.expected}"


class Cluster:
    """An agent that runs in a node of its own, with an outside, and servers in its pods."""

    def __init__(self, folder: Path, *flags: str, exposed: bool = False) -> None:
        """`exposed`: services are served to the outside, too."""
        with ExitStack() as stack:
            self.node = stack.enter_context(rig.Node())
            self.outside = stack.enter_context(rig.Outside(self.node, (*EXTRA_V4, *EXTRA_V6)))
            self.agent = stack.enter_context(RunningAgent(self.node, folder, *flags))
            self.agent.start(*(("--devices", self.outside.link) if exposed else ()))
            flows = self.agent.instance.flows_socket
            rig.wait_until(lambda: listener_pid(flows), 30, "the flows process")
            self.verdicts = Verdicts(flows)
            self._places: dict[str, tuple[rig.Netns, tuple[str, ...]]] = {}
            self._netns: dict[tuple[str, int], rig.Netns] = {}
            self._stack = stack.pop_all()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- manifests

    def write(self, file: str, *documents: Document | str) -> None:
        """Put manifests in force, in place of those that the file had."""
        self.agent.write(file, *documents)
        self.settle()

    def delete(self, *files: str) -> None:
        for file in files:
            if (self.agent.manifests / file).exists():
                self.agent.delete(file)
        self.settle()

    def settle(self) -> None:
        self.agent.settle()
        self._places.clear()

    @contextmanager
    def written(self, file: str, *documents: Document | str) -> Iterator[None]:
        self.write(file, *documents)
        try:
            yield
        finally:
            self.delete(file)

    # ---- places

    def place(self, name: str) -> tuple[rig.Netns, tuple[str, ...]]:
        """Where it is (of a service: nowhere in particular, the node) and its addresses."""
        if not self._places:
            self._look()
        if name in self._places:
            return self._places[name]
        return self.outside, (name,)

    def netns(self, name: str) -> rig.Netns:
        return self.place(name)[0]

    def ip(self, name: str, family: str = "v4") -> str:
        return next(a for a in self.place(name)[1] if family_of(a) == family)

    def _look(self) -> None:
        node = (self.node, (rig.NODE_V4, rig.NODE_V6))
        self._places |= {"node": node, "outside": (self.outside, (rig.OUTSIDE_V4, rig.OUTSIDE_V6))}
        for pod in client.call(self.agent.instance.agent_socket, "endpoints"):
            name = f"{pod['namespace']}/{pod['name']}"
            self._places[name] = (self._enter(pod["netns"]), tuple(pod["ips"])) if pod["netns"] else node
        for service in client.stream(self.agent.instance.agent_socket, "services"):
            self._places[f"service:{service['namespace']}/{service['name']}"] = self.node, tuple(service["ips"])

    def _enter(self, path: str) -> rig.Netns:
        key = path, Path(path).stat().st_ino
        if key not in self._netns:
            self._netns[key] = self._stack.enter_context(rig.Netns.at(path))
        return self._netns[key]

    # ---- servers and clients

    def serve(self, *specs: str, stack: ExitStack | None = None) -> None:
        """Servers as `blue/web TCP/8080`, that answer `blue/web:8080`; until the stack (or cluster) is closed."""
        for spec in specs:
            place, *ports = spec.split()
            for port in ports:
                protocol, _, number = port.partition("/")
                # A UDP socket of a place with many addresses would answer from any of them.
                many = protocol == "UDP" and "/" not in place
                for address in self.place(place)[1] if many else ("::",):
                    server = Server(self.netns(place), protocol.lower(), int(number), f"{place}:{number}", address)
                    (stack or self._stack).enter_context(server)

    def connect(self, row: Row) -> Connection:
        netns, addresses = self.place(row.source)
        kind = probes.STREAM if row.protocol == "TCP" else probes.DATAGRAM
        source = next(a for a in addresses if family_of(a) == row.family)
        return Connection(netns, kind, self.ip(row.destination, row.family), row.port, (source, 0))

    def probe(self, row: Row, timeout_s: float, source_port: int) -> Answer:
        netns, addresses = self.place(row.source)
        source = next((a for a in addresses if family_of(a) == row.family), "")
        target = self.ip(row.destination, row.family)
        if row.protocol == "ICMP":
            return probes.ping(netns, target, timeout_s, source=source)
        function = {"TCP": probes.tcp, "UDP": probes.udp, "SCTP": probes.sctp}[row.protocol]
        return function(netns, target, row.port, timeout_s, (source, source_port))

    # ---- tables

    def fill_in(self, text: str) -> str:
        """`<blue/api v4>` becomes that place's address."""
        return re.sub(r"<(\S+) (v[46])>", lambda found: self.ip(found[1], found[2]), text)

    def check(self, table: str) -> None:
        """Probe every row, many at once; AssertionError lists those that went otherwise."""
        rows = list(parse(table))
        self.place("node")  # looked up once, before the threads
        with ThreadPoolExecutor(ROWS_AT_ONCE) as pool:
            wrong = [problem for problem in pool.map(self._try, rows) if problem]
        assert rows, "no rows"
        assert not wrong, "\n".join(["", *wrong])

    def _try(self, row: Row) -> str:
        port = next(_ports)
        answer = self.probe(row, DROPPED_S if row.expected == "dropped" else ANSWERED_S, port)
        got = RESULTS[answer.result]
        if got != row.expected:
            seen = self.verdicts.flows(port, row.protocol, FlowType.DROP) if row.protocol != "ICMP" else []
            return f"{row}, but {got} ({', '.join(map(describe, seen)) or answer})"
        wanted = row.decided_by or (DENY if row.expected == "dropped" else "")
        if not wanted or row.protocol == "ICMP":
            return ""
        kind = FlowType.NEW if row.expected == "answered" else FlowType.DROP
        flows = self.verdicts.flows(port, row.protocol, kind, lambda flows: wanted in words(flows))
        return "" if wanted in words(flows) else f"{row} by {wanted}, but by {words(flows) or 'nothing that was seen'}"


def words(flows: list[Flow]) -> list[str]:
    """Who decided: a rule, or why there was none."""
    return [word for flow in flows for word in (describe(flow), flow.drop_reason) if word]


def parse(table: str) -> Iterator[Row]:
    for line in table.splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        source, destination, port, expected, *rest = text.split(maxsplit=4)
        assert expected in RESULTS.values(), line
        protocol, *details = port.split("/")
        number = int(details[0]) if details and details[0].isdigit() else 0
        families = {d for d in details if d in FAMILIES} or set(FAMILIES)
        for place in (source, destination):
            if "/" not in place and place[0].isalnum() and ("." in place or ":" in place):
                families &= {family_of(place)}
        assert families, f"no family: {line}"
        for family in sorted(families):
            yield Row(source, destination, protocol, number, family, expected, rest[0].strip() if rest else "")


def family_of(address: str) -> str:
    return "v6" if ":" in address else "v4"


def pods(text: str) -> list[Document]:
    """Pods as YAML: `NS/NAME: {labels: …, ports: [{name: dns, containerPort: 53, protocol: UDP}], …fields of spec}`."""
    found: list[Document] = []
    for name, fields in yaml.load(text, yaml.CSafeLoader).items():
        spec = dict(fields or {})
        container = {"name": "main", "ports": spec.pop("ports", [])}
        metadata = named(name, spec.pop("labels", {}))
        found.append(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], **spec}}
        )
    return found


def objects(kind: str, text: str) -> list[Document]:
    """Objects as YAML: `NS/NAME: spec`."""
    version = {"NetworkPolicy": "networking.k8s.io/v1"}.get(kind, "v1")
    specs = yaml.load(text, yaml.CSafeLoader) or {}
    return [{"apiVersion": version, "kind": kind, "metadata": named(n), "spec": spec} for n, spec in specs.items()]


def namespaces(**labels: dict[str, str]) -> list[Document]:
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": given}}
        for name, given in labels.items()
    ]


def named(name: str, labels: dict[str, str] | None = None) -> Document:
    namespace, _, short = name.partition("/")
    return {"namespace": namespace, "name": short, "labels": labels or {}}


class Pulse:
    """An exchange that goes on in the background: `lost` says which messages got no answer. Closed by `stop`."""

    def __init__(self, connection: Connection, every_s: float = 0.005) -> None:
        self.sent = 1
        self.lost: list[str] = []
        assert connection.exchange(ANSWERED_S), "no answer before anything has changed"
        self._every_s = every_s
        self._connection = connection
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._over.wait(self._every_s):
            self.sent += 1
            if not (answer := self._connection.exchange(ANSWERED_S)):
                self.lost.append(f"message {self.sent}: {answer}")
                return

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._connection.socket.close()

    def __enter__(self) -> Pulse:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
