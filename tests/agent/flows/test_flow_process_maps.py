"""The flows process on maps of flows: what is over goes, and full ones are swept often."""

from __future__ import annotations

import time
from operator import itemgetter

import msgspec
import pytest
from conntrack_entries import FLOWS, Flow
from flow_events import C
from flow_processes import HOUR, Starter, eventually, raise_tally

from agent.api import client
from agent.datapath.maps import Maps
from agent.flows.sweeper import SHORTEST_S


def test_flows_that_are_over_are_removed_and_reported(start: Starter, maps: Maps) -> None:
    table = maps["conntrack"]
    over, live = FLOWS["service"], FLOWS["plain"]
    table.update_many(over.entries(expires_ns=1) | live.entries(expires_ns=time.monotonic_ns() + HOUR))
    process = start()  # sweeps at once
    eventually(lambda: process.ask("stats")["conntrack"]["sweeps"] > 0, "it did not sweep")
    assert {key for key, _ in table.items()} == {live.forward_key, live.reply_key}
    egress, ingress = process.observe()
    assert [egress["direction"], ingress["direction"]] == ["egress", "ingress"]
    assert (egress["type"], egress["packets"], egress["bytes"]) == ("end", 5, 500)
    assert (egress["service"]["ip"], egress["destination"]["ip"]) == ("10.96.0.9", "10.0.0.2")
    stats = process.ask("stats")["conntrack"]
    assert (stats["entries"], stats["capacity"]) == (2, maps["conntrack"].spec.max_entries)
    assert process.ask("forget", ips=["10.0.0.2", "fd00::77"]) == {"entries": 2}
    assert not list(table.items())
    assert process.ask("stats")["conntrack"]["entries"] == 0
    assert process.ask("forget", ips=[]) == {"entries": 0}


def test_a_map_without_room_is_swept_at_once(start: Starter, maps: Maps) -> None:
    process = start()
    eventually(lambda: process.ask("stats")["conntrack"]["sweeps"] == 1, "it did not sweep")
    assert process.ask("stats")["conntrack"]["interval_s"] == 15
    flow = FLOWS["plain"]
    maps["conntrack"].update_many(flow.entries(expires_ns=1))
    raise_tally(maps, C.TALLY_CONNTRACK_FULL, 1)
    started = time.monotonic()
    eventually(lambda: process.ask("stats")["conntrack"]["sweeps"] == 2, "it did not sweep")
    assert time.monotonic() - started < 10
    assert not list(maps["conntrack"].items())
    assert process.ask("stats")["tallies"]["conntrack_full"] == 1


def test_flows_of_backends_that_are_gone_are_ended(start: Starter, maps: Maps) -> None:
    expires_ns = time.monotonic_ns() + HOUR
    udp = msgspec.structs.replace(FLOWS["service"], protocol=17)
    for flow in (udp, FLOWS["service"]):
        maps["conntrack"].update_many(flow.entries(expires_ns=expires_ns))
    maps["nat"].update_many(udp.nat_entries(expires_ns=expires_ns))
    process = start()
    used = sorted(client.stream(process.socket, "backends"), key=itemgetter("protocol"))
    frontend = {"ip": "10.96.0.9", "port": 80, "backends": [["10.0.0.2", 8080]]}
    assert used == [frontend | {"protocol": "TCP"}, frontend | {"protocol": "UDP"}]
    tcp, udp_too, now_ns = used[:1], used[1:], time.monotonic_ns()
    nothing = {"entries": 0, "sockets": 0}
    assert process.ask("retire", frontends=used, until_ns=0) == nothing, "younger ones chose it anew"
    assert process.ask("retire", frontends=udp_too, until_ns=now_ns) == {"entries": 4, "sockets": 0}
    assert {key for key, _ in maps["conntrack"].items()} == FLOWS["service"].keys
    assert not list(maps["nat"].items())
    refused = process.ask("retire", frontends=tcp, until_ns=now_ns, namespaces=["/run/netns/none"])
    assert refused == {"entries": 2, "sockets": 0}
    assert list(client.stream(process.socket, "backends")) == [], "what is refused is not in use"
    assert process.ask("retire", frontends=used, until_ns=now_ns) == nothing


@pytest.mark.parametrize(("name", "tally"), [("nat", C.TALLY_NAT_FULL), ("affinity", C.TALLY_AFFINITY_FULL)])
def test_the_other_maps_are_swept_and_counted(start: Starter, maps: Maps, name: str, tally: int) -> None:
    process = start()
    eventually(lambda: process.ask("stats")["conntrack"]["sweeps"] == 1, "it did not sweep")
    live_ns = time.monotonic_ns() + HOUR
    flow, client_key = FLOWS["service"], bytes(maps["affinity"].spec.key_size)
    if name == "nat":
        maps["nat"].update_many(flow.nat_entries(expires_ns=1) | FLOWS["plain"].nat_entries(expires_ns=live_ns))
    else:
        maps["affinity"].update(client_key, bytes(maps["affinity"].spec.value_size))
    raise_tally(maps, tally, 1)
    expected = {"entries": 2, "expired": 2} if name == "nat" else {"entries": 0, "expired": 1}
    capacity = maps[name].spec.max_entries
    eventually(lambda: process.ask("stats")["maps"][name] == expected | {"capacity": capacity}, "it was not swept")


def test_a_full_map_is_swept_often(start: Starter, maps: Maps) -> None:
    room = maps["nat"].spec.max_entries
    live_ns = time.monotonic_ns() + HOUR
    flows = [Flow((f"10.1.{n >> 8}.{n & 255}", 1000), ("10.0.0.2", 80)) for n in range(room * 3 // 8)]
    maps["nat"].update_many({k: v for flow in flows for k, v in flow.nat_entries(expires_ns=live_ns).items()})
    process = start()
    eventually(lambda: process.ask("stats")["conntrack"]["interval_s"] == SHORTEST_S, "it takes its time")
