"""What the flows process says of events it did not get, and of floods of them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flow_events import C, drop
from flow_feed import Feed
from flow_processes import Starter, eventually, raise_tally, taken

from agent.api import client
from agent.datapath.maps import Maps


def test_losses_of_the_kernel_are_shown_where_they_happened(start: Starter, maps: Maps, feed: Feed) -> None:
    process = start()
    watching = client.stream(process.socket, "observe", timeout_s=30, follow=True)
    feed.put(ingress_judged=0, rule_ingress=0)
    assert next(watching)["type"] == "new"
    raise_tally(maps, C.TALLY_EVENTS_LOST, 41)
    lost = next(watching)
    assert (lost["type"], lost["where"], lost["count"]) == ("lost", "kernel", 41)
    assert process.ask("stats")["events_lost"] == 41


def test_events_of_before_its_start_are_not_lost(start: Starter, feed: Feed) -> None:
    feed.put(1000, ingress_judged=0, rule_ingress=0)
    process = start()
    eventually(lambda: process.ask("stats")["events_seen"] == 1000, "the ring was not drained")


def test_a_flood_is_taken_in_and_summarised(start: Starter, feed: Feed, record_property: Callable[..., None]) -> None:
    """300,000 events at 100,000 a second: each is kept, or counted as lost; an observer that wants little sees all of
    that, one that wants everything is told what it missed, and questions are answered meanwhile."""
    bursts, burst = 30, 10_000
    process = start("--records", "32768")
    seldom: list[dict[str, Any]] = []
    everything: list[dict[str, Any]] = []
    done = threading.Event()

    def watch(into: list[dict[str, Any]], until: Callable[[dict[str, Any]], bool], **arguments: Any) -> None:
        for value in client.stream(process.socket, "observe", timeout_s=60, follow=True, last=0, **arguments):
            into.append(value)
            if until(value):
                break

    readers = [
        threading.Thread(target=watch, args=(seldom, lambda v: v.get("protocol") == "SCTP"),
                         kwargs={"filters": {"protocol": ["UDP", "SCTP"]}}),
        threading.Thread(target=watch, args=(everything, lambda v: v.get("protocol") == "SCTP")),
    ]  # fmt: skip
    for reader in readers:
        reader.start()
    eventually(lambda: process.ask("stats")["observers"] == 2, "the observers did not come")

    waits: list[float] = []

    def ask() -> None:
        while not done.is_set():
            asked = time.monotonic()
            process.ask("ping")
            waits.append(time.monotonic() - asked)
            done.wait(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    one_sided: dict[str, Any] = {"egress_judged": 0, "rule_egress": 0}
    started = time.monotonic()
    for number in range(bursts):
        feed.put(burst - 1, **drop())
        feed.put(1, protocol=17, type=C.EVENT_END, packets=number, **one_sided)
        time.sleep(max(0.0, started + (number + 1) * burst / 100_000 - time.monotonic()))  # the rate that is promised
    fed_s = time.monotonic() - started
    total = bursts * burst
    eventually(lambda: taken(process.ask("stats")) == total, "not all were taken in")
    taken_s = time.monotonic() - started
    while any(reader.is_alive() for reader in readers):  # a mark may be among what an observer passes over
        feed.put(1, protocol=132, **one_sided)
        readers[0].join(0.1)
        readers[1].join(0.1)
    done.set()
    asking.join()

    stats = process.ask("stats")
    assert stats["events_held"] == 32768  # how many more it takes in at this rate, a busy machine decides
    missed = sum(v["count"] for v in everything if v["type"] == "lost" and v["where"] == "observer")
    shown = [v["seq"] for v in everything if v["type"] != "lost"]
    assert len(shown) + missed == shown[-1] + 1
    assert stats["records_lost"] >= missed
    rare = [v["packets"] for v in seldom if v["type"] == "end"]
    missed_rare = sum(v["summary"].get("end", 0) for v in seldom if v["type"] == "lost")
    if not stats["events_lost"]:
        assert len(rare) + missed_rare == bursts
    assert rare == sorted(set(rare))
    resident = int(Path(f"/proc/{process.child.pid}/statm").read_text().split()[1]) * 4096
    assert resident < 120 << 20
    assert max(waits) < 5.0
    figures = {
        "events_per_s": round(total / taken_s), "fed_per_s": round(total / fed_s), "resident_mb": resident >> 20,
        "shown": len(shown), "missed": missed, "rare_missed": missed_rare,
        "lost": stats["events_lost"], "slowest_ping_s": max(waits),
    }  # fmt: skip
    for name, value in figures.items():
        record_property(name, value)
    sys.stdout.write(f"{figures}\n")
