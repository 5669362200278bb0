"""The flows process, run as the agent runs it: on pinned maps, with events from the kernel."""

from __future__ import annotations

import asyncio
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import datetime
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from access_log_entries import REFUSED, http_entry, message, send
from conntrack_entries import FLOWS, Flow
from flow_events import NAMES, RULE, C, drop
from flow_feed import Feed
from l7_records import LISTENER, QUERY, record

from agent.api import client
from agent.api.protocol import ApiError, UnreachableError
from agent.api.server import serve
from agent.datapath import bpf
from agent.datapath.maps import Maps, possible_cpus
from agent.datapath.pins import Pins
from agent.flows.sweeper import SHORTEST_S
from agent.privileges import USER
from l7proxy.logname import LogName

HOUR = 3600 * 10**9


class Process:
    """A running flows process, known to be up by its log."""

    def __init__(self, state_dir: Path, pin_dir: Path, *options: str) -> None:
        self.socket = state_dir / "flows.sock"
        command = [
            sys.executable,
            "-m",
            "agent.flows.process",
            "--state-dir",
            str(state_dir),
            "--pin-dir",
            str(pin_dir),
        ]
        self.child = subprocess.Popen([*command, "--node", "n1", *options], stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        for text in self.child.stderr:
            with self._grown:
                self.log.append(text)
                self._grown.notify_all()
        with self._grown:
            self.log.append("(end of log)")
            self._grown.notify_all()

    def logged(self, text: str, times: int = 1) -> None:
        """Wait until the log has had `text` so many times."""
        with self._grown:
            found = self._grown.wait_for(lambda: sum(text in entry for entry in self.log) >= times, timeout=30)
        assert found, f"{text!r} not in the log:\n{''.join(self.log)}"

    def ask(self, op: str, **arguments: Any) -> Any:
        return client.call(self.socket, op, **arguments)

    def observe(self, **arguments: Any) -> list[dict[str, Any]]:
        return list(client.stream(self.socket, "observe", timeout_s=30, **arguments))

    def ended(self) -> int:
        status = self.child.wait(30)
        self._reader.join()
        return status

    def close(self) -> None:
        self.child.kill()
        self.ended()
        assert self.child.stderr is not None
        self.child.stderr.close()


Starter = Callable[..., Process]


def taken(stats: dict[str, Any]) -> int:
    """Events that came out of the ring or did not get into it."""
    return int(stats["events_seen"] + stats["events_lost"])


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def start(state_dir: Path, maps: Maps, pins: Pins) -> Iterator[Starter]:
    started: list[Process] = []

    def start(*options: str) -> Process:
        process = Process(state_dir, pins.maps, *options)
        started.append(process)
        process.logged("flows process runs")
        return process

    yield start
    for process in started:
        process.close()


class FakeAgent:
    """What the agent does for flows: names, from a socket of its own, in a thread of its own."""

    def __init__(self, state_dir: Path, lines: list[dict[str, Any]]) -> None:
        self._path = state_dir / "agent.sock"
        self._lines = lines
        self._more: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    async def _run(self) -> None:
        async with await serve(self._path, {"names": self._names}):
            self._up.set()
            await self._stop.wait()

    async def _names(self, _arguments: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        for line in self._lines:
            yield line
        while True:
            yield await self._more.get()

    def say(self, line: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._more.put_nowait, line)

    def __enter__(self) -> FakeAgent:
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


def eventually(condition: Callable[[], bool], what: str) -> None:
    """For state that only asking shows."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_ping_says_who_answers(start: Starter, pins: Pins) -> None:
    process = start()
    answer = process.ask("ping")
    assert answer["pid"] == process.child.pid
    assert (answer["pin_dir"], answer["node"]) == (str(pins.maps), "n1")
    assert answer["version"]


def test_events_of_the_kernel_become_records_with_names(start: Starter, state_dir: Path, feed: Feed) -> None:
    with FakeAgent(state_dir, NAMES) as agent:
        process = start()
        eventually(lambda: process.ask("stats")["names"]["pods"] == 2, "no names came")
        feed.put(ingress_judged=0, rule_ingress=0)
        eventually(lambda: process.ask("stats")["events_seen"] == 1, "the event was not taken in")
        (record,) = process.observe(last=10)
        assert record["source"]["pod"] == "client-1"
        assert record["destination"]["labels"] == ["app=web"]
        assert record["policy"] == {"kind": "NetworkPolicy", "namespace": "shop", "name": "client", "rule": "egress[1]"}
        assert abs(time.time() - _seconds(record["time"])) < 30
        assert record["node"] == "n1"

        watching = client.stream(process.socket, "observe", timeout_s=30, follow=True, last=1)
        assert next(watching) == record
        feed.put(**drop())
        followed = next(watching)
        assert (followed["verdict"], followed["drop_reason"]) == ("DROPPED", "POLICY_INGRESS")
        assert [r["verdict"] for r in process.observe(filters={"verdict": ["DROPPED"]})] == ["DROPPED"]

        agent.say(RULE | {"id": 555, "name": "late", "rule": "ingress[3]"})
        agent.say({"t": "node", "name": "n2"})
        eventually(lambda: process.ask("ping")["node"] == "n2", "the delta did not come")
        feed.put(rule_ingress=555, egress_judged=0, rule_egress=0)
        assert next(watching)["policy"]["name"] == "late"
        watching.close()  # type: ignore[attr-defined]
        eventually(lambda: process.ask("stats")["observers"] == 0, "an observer that left is still there")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text[:26] + "+00:00").timestamp()


def test_it_lives_through_restarts_of_the_agent(start: Starter, state_dir: Path, feed: Feed) -> None:
    process = start()
    feed.put(ingress_judged=0, rule_ingress=0)
    eventually(lambda: process.ask("stats")["events_seen"] == 1, "")
    assert process.observe()[0]["source"]["pod"] is None
    for turn in range(1, 4):
        with FakeAgent(state_dir, [*NAMES[:-2], NAMES[-1]]):
            process.logged("names come from the agent", times=turn)
            eventually(lambda: process.ask("stats")["names"]["services"] == 0, "the last snapshot is not all there is")
            assert process.ask("stats")["agent_connected"]
            assert process.observe()[0]["source"]["pod"] == "client-1"
        process.logged("no more names", times=turn)
        assert process.observe()[0]["source"]["pod"] == "client-1", "names last while no agent runs"
        assert not process.ask("stats")["agent_connected"]


def test_a_name_that_makes_no_sense_harms_nothing(start: Starter, state_dir: Path) -> None:
    with FakeAgent(state_dir, [{"t": "comet"}, {"t": "pod", "ip": "nowhere"}, *NAMES]):
        process = start()
        process.logged("not understood", times=2)
        eventually(lambda: process.ask("stats")["names"]["pods"] == 2, "the names after it were lost")


@pytest.mark.parametrize("how", ["stop", "SIGTERM", "state directory removed"])
def test_it_ends_when_it_should(start: Starter, state_dir: Path, how: str) -> None:
    process = start()
    if how == "stop":
        assert process.ask("stop") == {}
    elif how == "SIGTERM":
        process.child.send_signal(signal.SIGTERM)
    else:
        shutil.rmtree(state_dir)
    assert process.ended() == 0
    assert not process.socket.exists()
    with pytest.raises(UnreachableError, match="no flows process answers"):
        process.ask("ping")


def test_there_is_one_for_a_state_directory(start: Starter, state_dir: Path, pins: Pins) -> None:
    process = start()
    second = Process(state_dir, pins.maps)
    assert second.ended() == 1
    second.close()
    assert "another process answers" in "".join(second.log)
    assert process.ask("ping")["pid"] == process.child.pid
    process.child.kill()  # and leaves its socket behind
    process.ended()
    assert process.socket.exists()
    assert start().ask("ping")["pid"] != process.child.pid


def test_without_maps_it_says_what_to_do(state_dir: Path, pins: Pins) -> None:
    process = Process(state_dir, pins.root / "maps-none")
    assert process.ended() == 1
    process.close()
    text = "".join(process.log)
    assert "opening" in text
    assert "is the agent of this --pin-dir running" in text
    assert "Traceback" not in text


def test_what_proxies_judged_is_shown_with_the_rest(start: Starter, state_dir: Path, maps: Maps, feed: Feed) -> None:
    flow = FLOWS["plain"]
    expires_ns = time.monotonic_ns() + HOUR
    maps["conntrack"].update_many(flow.entries(expires_ns=expires_ns, listener=LISTENER, rule_ingress=0))
    with FakeAgent(state_dir, NAMES):
        process = start()
        eventually(lambda: process.ask("stats")["names"]["pods"] == 2, "no names came")
        assert not (state_dir / "envoy" / "accesslog.sock").exists()
        path = Path(process.ask("access_log")["path"])
        assert process.ask("access_log") == {"path": str(state_dir / "envoy" / "accesslog.sock")}
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, USER), "Envoy's alone"
        feed.put(verdict=C.VERDICT_REDIRECT, ingress_judged=0)
        log = LogName(LISTENER, "egress")
        asyncio.run(send(path, [message(http_entry({"path": "/x?token=s3cret"}, REFUSED), log=log)]))
        dns = record(QUERY, transport="UDP", destination_port=53)
        assert process.ask("l7", records=[msgspec.to_builtins(dns)]) == {"taken": 1}
        new, http, name = process.observe()
        assert (new["verdict"], new["policy"]["name"]) == ("REDIRECTED", "client")
        assert (http["verdict"], http["drop_reason"], http["policy"]["name"]) == ("DROPPED", "PROXY_DENIED", "client")
        assert (http["l7"]["path"], http["l7"]["status"]) == ("/x?…", 403)
        assert name["l7"]["query"] == "db.example.com"
        assert [r["seq"] for r in process.observe(filters={"http_status": ["4xx"]})] == [http["seq"]]
        assert process.observe(filters={"http_status": ["5xx"]}) == []
        stats = process.ask("stats")
        assert (stats["l7_records"], stats["l7_records_lost"]) == (2, 0)
        with pytest.raises(ApiError, match="l7: "):
            process.ask("l7", records=[{"listener": 1}])


def test_the_access_log_is_there_again_in_the_next_process(start: Starter, state_dir: Path) -> None:
    path = state_dir / "envoy" / "accesslog.sock"
    for number in range(3):
        process = start("--l7-unredacted")
        if number == 0:
            process.ask("access_log")
        asyncio.run(send(path, [message(http_entry({"path": "/x?a=b"}), log=LogName(LISTENER))]))
        eventually(partial(_has_a_request, process), "no record came")
        assert process.observe()[0]["l7"]["path"] == "/x?a=b"
        process.child.send_signal(signal.SIGTERM if number else signal.SIGKILL)
        process.ended()
    assert sorted(p.name for p in (state_dir / "envoy").iterdir() if "accesslog" in p.name) == ["accesslog.sock"]


def _has_a_request(process: Process) -> bool:
    return bool(process.ask("stats")["l7_records"] == 1)


DNS = {"ip": "10.0.0.1", "port": 53, "protocol": "UDP"}
RETIRE = {"until_ns": 1}
BAD_REQUESTS: list[tuple[str, dict[str, Any], str]] = [
    ("observe", {"filters": {"verdict": ["MAYBE"]}}, "--verdict MAYBE: give one of"),
    ("observe", {"last": -1}, "Expected `int` >= 0"),
    ("observe", {"colour": "red"}, "unknown field `colour`"),
    ("forget", {"ips": ["nowhere"]}, "forget: 'nowhere' is not an IP address"),
    ("forget", {}, "missing required field `ips`"),
    (
        "retire",
        RETIRE | {"frontends": [DNS | {"backends": [["nowhere", 53]]}]},
        "retire: 'nowhere' is not an IP address",
    ),
    ("retire", RETIRE | {"frontends": [DNS | {"port": 0, "backends": []}]}, "Expected `int` >= 1"),
    (
        "retire",
        RETIRE | {"frontends": [DNS | {"protocol": "TLS", "backends": []}]},
        "'TLS' is no protocol of a service",
    ),
    ("retire", {"frontends": []}, "missing required field `until_ns`"),
    (
        "explode",
        {},
        "no operation 'explode' at flows.sock: access_log, backends, forget, l7, observe, ping, retire, stats, stop",
    ),
]


def test_what_cannot_be_answered_is_an_error_that_says_why(start: Starter) -> None:
    process = start()
    for op, arguments, text in BAD_REQUESTS:
        with pytest.raises(ApiError) as caught:
            process.ask(op, **arguments)
        assert text in str(caught.value)


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
    _raise_tally(maps, C.TALLY_CONNTRACK_FULL, 1)
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
    _raise_tally(maps, tally, 1)
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


def _raise_tally(maps: Maps, tally: int, value: int) -> None:
    """As if the datapath had counted that."""
    cells = struct.pack("=Q", value) + bytes(8 * (possible_cpus() - 1))
    bpf.map_update(maps["tallies"].fd, struct.pack("=I", tally), cells)


def test_losses_of_the_kernel_are_shown_where_they_happened(start: Starter, maps: Maps, feed: Feed) -> None:
    process = start()
    watching = client.stream(process.socket, "observe", timeout_s=30, follow=True)
    feed.put(ingress_judged=0, rule_ingress=0)
    assert next(watching)["type"] == "new"
    _raise_tally(maps, C.TALLY_EVENTS_LOST, 41)
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
    assert stats["events_seen"] > total / 2
    assert stats["events_held"] == 32768
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
