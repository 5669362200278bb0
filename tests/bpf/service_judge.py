"""Packets through a node with drawn services (drawn_node.py), and whether what becomes of them is what
agent.services.trace says: of new flows, of live ones, of answers, and while services change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec
import strategies as drawn
import worlds
from drawn_node import DEVICE, PORTS, DrawnNode, Ends, Fate, frame
from frames import ADDRESSES, SCTP, TCP, UDP
from planned import compile_dirty, trace_in

from agent.datapath.abi import be16
from agent.datapath.testrun import Action
from agent.plan.ids import NUMBERS
from agent.plan.parts import SERVICE_KEY
from agent.plan.plan import Plan
from agent.plan.pools import SERVICE_VALUE
from agent.plan.state import SERVICES
from agent.plan.step import Transition
from agent.plan.tracing import WorldView
from agent.services.model import Backend, Frontend
from agent.services.trace import SCTP_PORT, Delivery, Outcome, Packet, Source, Trace, View
from agent.services.trace import trace as trace_packet
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import is_v4, parse_address
from policies.model import ObjectRef

SEED = 0x5EED
"""Of Maglev tables."""

HAIRPIN = tuple(map(parse_address, ADDRESSES["hairpin"]))
BETWEEN = 40
"""Packets to the old services, and to the new ones, while one becomes the other."""

STRANGERS = tuple(map(parse_address, (*drawn.OUTSIDE, *drawn.UNMANAGED)))
SHARED_PORTS = (40000, 40001)
"""Source ports of many flows: of clients that ask several services from one."""


def reason_of(trace: Trace) -> str:
    """Why nobody gets the packet; "" where somebody does."""
    return {
        Outcome.REFUSED: "DROP_NO_BACKEND",
        Outcome.DROPPED: f"DROP_{trace.reason}",
    }.get(trace.outcome, "")


class AnyOfPool(WorldView):
    """Without Maglev, which only says where a client goes that keeps no backend."""

    def frontend(self, address: bytes, port: int, protocol: int) -> tuple[ObjectRef, Frontend] | None:
        found = super().frontend(address, port, protocol)
        return found and (found[0], msgspec.structs.replace(found[1], maglev=False))


class Known(msgspec.Struct, frozen=True):
    """A live flow: its packets before and after this node, and whether answers come by it, too."""

    asked: Ends
    became: Ends
    answered: bool = False


class Judge:
    """One cluster in the maps, and what became of the flows in it."""

    def __init__(self, node: DrawnNode, given: NodeConfig, seed: int) -> None:
        self.node = node
        self.random = Random(seed)
        self.world, self.plan = World(given, derive), Plan()
        self.scene: worlds.Scene | None = None
        self.interfaces: dict[bytes, int] = {}
        self.known: dict[Ends, Known] = {}
        self.kept: dict[tuple[ObjectRef, str, int, bytes], Backend | None] = {}
        self.direct: set[tuple[object, ...]] = set()  # tuples of flows whose backends answer directly
        self.seen: Counter[str] = Counter()
        self.compared = 0
        self.next_port = 1024

    def load(self, scene: worlds.Scene) -> None:
        """Into the maps, whatever they hold."""
        self.move(scene)
        self.node.start(self.plan, SEED)

    def move(self, scene: worlds.Scene) -> Transition:
        """World and plan, not the maps."""
        worlds.change_world(self.world, self.scene, scene)
        self.scene = scene
        self.interfaces = worlds.interfaces_of(scene.cluster)
        return compile_dirty(self.world, self.plan)

    def change(self, scene: worlds.Scene) -> None:
        """To other services by a transition, with a packet between any two writes."""
        old = World(self.world.config, derive)
        old.allocations.restore(self.world.allocations.snapshot())
        assert self.scene is not None
        worlds.change_world(old, None, self.scene)
        asked = list(self.packets(BETWEEN, shared=False))
        steps = self.move(scene)
        asked += self.packets(BETWEEN, shared=False)
        self.random.shuffle(asked)
        for ends, _ in zip(asked, self.node.writes(steps), strict=False):
            self.judge_between(ends, AnyOfPool(old), AnyOfPool(self.world))

    # ---- packets

    def packets(self, count: int, *, shared: bool = True) -> Iterator[Ends]:
        """To frontends, most of them, and next to them; most of them from where the frontend is served. `shared`: some
        have a source port that others have, too."""
        frontends = self.frontends()
        assert self.scene is not None
        pods = [parse_address(text) for pod in self.scene.cluster.pods for text in pod.addresses]
        places = sorted({*(one.address for one, _ in frontends), *pods})
        for _ in range(count):
            local = self.random.random() < 0.4
            if frontends and self.random.random() < 0.9:
                one, cluster_ip = self.random.choice(frontends)
                address, port, protocol = one.address, be16(one.port_be), one.protocol
                local = local or (cluster_ip and self.random.random() < 0.9)
                if self.random.random() < 0.1:
                    port, protocol = self.random.choice(((port, TCP), (port, UDP), (port + 1, protocol)))
            else:
                address = self.random.choice(places or [worlds.CONFIG.addresses[0]])
                port, protocol = self.random.choice((53, 80, 8080, 30001)), self.random.choice((TCP, UDP, SCTP))
            source = self.client(local, pods, address)
            self.next_port += 1
            shares = shared and protocol != SCTP and self.random.random() < 0.3
            yield Ends(source, self.random.choice(SHARED_PORTS) if shares else self.next_port, address, port, protocol)

    def frontends(self) -> list[tuple[Any, bool]]:
        """Key, and whether it is a cluster address; more often those that serve outside, too. To loopback addresses no
        packets are sent, so these stand back."""
        found = []
        for key, value in sorted(self.plan.state.tables[SERVICES].items()):
            flags = SERVICE_VALUE.unpack(value).flags
            cluster_ip = bool(flags & NUMBERS.SERVICE_CLUSTER_IP)
            times = 1 if flags & NUMBERS.SERVICE_LOOPBACK else 4 if cluster_ip else 8
            found += [(SERVICE_KEY.unpack(key), cluster_ip)] * times
        return found

    def client(self, local: bool, pods: list[bytes], address: bytes) -> bytes:
        """Somebody of the address's family: a pod here, if there is one, or not."""
        here = [a for a in self.interfaces if is_v4(a) is is_v4(address)]
        others = [a for a in (*pods, *STRANGERS) if is_v4(a) is is_v4(address) and a not in self.interfaces]
        return self.random.choice(here if local and here else others)

    def sent(self, ends: Ends, flags: str = "S") -> Fate:
        """From where its source is."""
        if ends.source in self.interfaces:
            return self.node.send("from_pod", self.interfaces[ends.source], frame(ends, flags))
        return self.node.comes_in(frame(ends, flags), xdp=self.random.random() < 0.5)

    # ---- judgements

    def judge(self, ends: Ends) -> None:
        """A client's packet: of a live flow, or the first of one."""
        known = self.known.get(ends)
        trace = trace_in(self.world, Packet(ends.source, ends.destination, ends.port, ends.protocol, ends.source_port))
        fate = self.sent(ends)
        self.compared += 1
        note = f"{ends}\n{fate}\n{known}\n{trace}"
        if known is not None:
            assert fate.action != Action.SHOT and not fate.reasons, note
            assert fate.ends[:5] == known.became[:5], note
            self.seen["live"] += 1
        elif trace.outcome is Outcome.DELIVERED:
            self.check_delivery(ends, fate, trace, note)
        elif trace.outcome is Outcome.NO_SERVICE:
            self.check_unserved(ends, fate, note)
        else:
            self.check_drop(ends, fate, trace, note)

    def check_unserved(self, ends: Ends, fate: Fate, note: str) -> None:
        """It goes on as it is; a pod's from another port, where answers would be taken for those of a service."""
        may_change = ends.source in self.interfaces and ends.source_port in SHARED_PORTS
        may_change = may_change and fate.ends.source_port in PORTS
        wanted = ends._replace(source_port=fate.ends.source_port) if may_change else ends
        assert fate.action != Action.SHOT and fate.ends == wanted and not fate.reasons, note
        self.seen["no service"] += 1
        if ends.source in self.interfaces:
            self.known[ends] = Known(ends, fate.ends)

    def check_drop(self, ends: Ends, fate: Fate, trace: Trace, note: str) -> None:
        refused = trace.outcome is Outcome.REFUSED
        assert fate.reasons == (reason_of(trace),), note
        assert fate.action == (Action.REDIRECT if refused else Action.SHOT), note
        if refused:
            assert (fate.ends.source, fate.ends.destination) == (ends.destination, ends.source), note
        self.seen[reason_of(trace)] += 1
        if trace.reason == SCTP_PORT and (keeper := self.keeper(ends, trace)):
            self.kept[keeper] = None

    def check_delivery(self, ends: Ends, fate: Fate, trace: Trace, note: str) -> None:
        assert fate.action in (Action.OK, Action.REDIRECT) and not fate.reasons, note
        became, backend = fate.ends, (fate.ends.destination, fate.ends.port)
        expected = self.expected(ends, trace)
        assert backend in expected, f"{expected} only\n{note}"
        delivery = expected[backend]
        own = became.source in self.world.config.addresses
        told = {
            Source.CLIENT: became.source == ends.source,
            Source.NODE: own and (became.source_port in PORTS or ends.protocol == SCTP),
            Source.HAIRPIN: became.source in HAIRPIN,
        }
        # Of two flows with one tuple the backend could not tell which frontend it is to answer for.
        direct = delivery.direct and (ends.source, ends.source_port, *backend, ends.protocol) not in self.direct
        source = Source.NODE if delivery.direct and not direct else delivery.source
        assert told[source] and became.direct == direct, note
        if direct:
            self.direct.add(became[:5])
        self.seen[f"{source}{', here' * delivery.local}{', direct' * direct}"] += 1
        self.seen["by XDP"] += fate.by_xdp
        self.known[ends] = Known(ends, became, answered=not direct)
        if keeper := self.keeper(ends, trace):
            self.kept[keeper] = backend

    def expected(self, ends: Ends, trace: Trace) -> dict[Backend, Delivery]:
        """The backends a new flow may get. A client that keeps its backend does so as long as that is in the pool."""
        new = {one.backend: one for one in trace.deliveries}
        keeper = self.keeper(ends, trace)
        if keeper is None or keeper not in self.kept:
            return new
        kept = self.kept[keeper]
        packet = Packet(ends.source, ends.destination, ends.port, ends.protocol)
        pool = {one.backend: one for one in trace_packet(AnyOfPool(self.world), packet).deliveries}
        self.seen["kept"] += kept in pool
        return pool if kept is None else {kept: pool[kept]} if kept in pool else new

    def keeper(self, ends: Ends, trace: Trace) -> tuple[ObjectRef, str, int, bytes] | None:
        """Under what a client's backend is remembered."""
        if trace.service is None or trace.frontend is None or not trace.frontend.affinity_timeout_s:
            return None
        return trace.service, trace.frontend.port_name, ends.protocol, ends.source

    def judge_between(self, ends: Ends, *views: View) -> None:
        """Sent between two writes: it gets what the old services say, or the new ones."""
        packet = Packet(ends.source, ends.destination, ends.port, ends.protocol, ends.source_port)
        traces = [trace_packet(view, packet) for view in views]
        fate = self.sent(ends)
        self.compared += 1
        said = {one.backend for trace in traces for one in trace.deliveries}
        said |= {(ends.destination, ends.port) for trace in traces if trace.outcome is Outcome.NO_SERVICE}
        drops = {reason_of(trace) for trace in traces} - {""}
        note = f"{ends}\n{fate}\n{traces}"
        if fate.reasons:
            assert set(fate.reasons) <= drops, note
        else:
            assert fate.action != Action.SHOT and (fate.ends.destination, fate.ends.port) in said, note
        for trace in traces:
            if keeper := self.keeper(ends, trace):
                self.kept[keeper] = None
        self.seen["between"] += 1

    def answer(self, known: Known) -> None:
        """What the backend says comes to the client from where the client asked."""
        asked, said = known.asked, known.became.turned()
        packet = frame(said, "SA")
        fate = Fate(Action.OK, said)
        if said.source in self.interfaces:
            fate = self.node.send("from_pod", self.interfaces[said.source], packet)
        elif said.source not in self.world.config.addresses:
            fate = self.node.comes_in(packet, xdp=self.random.random() < 0.5)
        self.check_passes(known, fate)
        via = 0 if said.source in self.world.config.addresses else self.interfaces.get(said.source, DEVICE)
        if fate.action == Action.OK and fate.ends.destination in self.interfaces:
            fate = self.node.send("to_pod", self.interfaces[fate.ends.destination], frame(fate.ends, "SA"), via)
        elif fate.action == Action.OK:
            fate = self.node.send("to_network", DEVICE, frame(fate.ends, "SA"), via)
        self.check_passes(known, fate)
        assert fate.ends == asked.turned(), f"{known}\n{fate}"
        self.compared += 1
        self.seen["answered"] += 1

    def check_passes(self, known: Known, fate: Fate) -> None:
        assert fate.action != Action.SHOT and not fate.reasons, f"answer to {known}\n{fate}"
