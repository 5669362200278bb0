"""The flows process: its life, what it answers, and names for what the kernel tells."""

from __future__ import annotations

import asyncio
import shutil
import signal
import stat
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from access_log_entries import REFUSED, http_entry, message, send
from conntrack_entries import FLOWS
from flow_events import NAMES, RULE, C, drop
from flow_feed import Feed
from flow_processes import HOUR, FakeAgent, Process, Starter, eventually
from l7_records import LISTENER, QUERY, record

from agent.api import client
from agent.api.protocol import ApiError, UnreachableError
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.privileges import USER
from l7proxy.logname import LogName


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
