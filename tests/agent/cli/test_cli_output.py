"""Tables and the description of an agent: what people read."""

from __future__ import annotations

import json

import msgspec
import pytest

from agent.cli.listings import _describe, _policy_revision
from agent.cli.output import Column, Format, duration, emit, labels, table
from agent.status import (
    DatapathView,
    EncryptionPeerView,
    EncryptionView,
    EndpointView,
    FlowsView,
    MapView,
    ProblemView,
    ProcessView,
    ProgramView,
    Revision,
    StatusView,
)

ENDPOINT = EndpointView(
    id=7,
    namespace="shop",
    name="web-0",
    ips=("10.244.0.5", "fd00:10:244::5"),
    identity=300,
    labels={"app": "web"},
    netns="/run/netns/x",
    interface="gh1",
    state="ready",
    policy_revision=Revision(4, 3),
    node="a",
    host_network=False,
    isolated=("ingress",),
    problem="",
)

STATUS = StatusView(
    state="degraded",
    reasons=("map policy_row is full: 3 writes are waiting for room",),
    version="0.1.0",
    pid=12,
    node="a",
    state_dir="/s",
    started="2026-01-01T00:00:00Z",
    uptime_s=3700.0,
    resident_bytes=60 << 20,
    kernel="6.1.0",
    revision=Revision(9, 8),
    datapath=DatapathView(
        pins="/sys/fs/bpf/gatehouse/x",
        abi_hash="aa",
        source_hash="bb",
        programs=(ProgramView(name="from_pod", id=5, instructions=3000, attached=2),),
        maps=(MapView(name="policy_row", entries=10, capacity=10, full=3),),
    ),
    endpoints={"ready": 2},
    namespaces=1,
    policies=3,
    services=1,
    services_by_type={"ClusterIP": 1},
    identities=2,
    problems=(
        ProblemView(file="m/a.yaml", line=3, subject="Pod a/b", path="spec", message="is missing", warning=False),
    ),
    drops={"policy_ingress": 4},
    tallies={"nat_full": 0, "xdp_forwarded": 7},
    rejudged=1,
    map_full=3,
    flows=FlowsView(
        process=ProcessView(state="running", pid=13, restarts=0, problem=""), events_lost=0, records_lost=0
    ),
)


def test_columns_line_up_and_empty_cells_show() -> None:
    assert table(["A", "LONGER"], [["wide cell", ""], ["x", "y"]]) == "A          LONGER\nwide cell  -\nx          y"


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.9, "5s"), (190, "3m10s"), (18120, "5h02m"), (12 * 86400 + 3 * 3600, "12d3h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_labels_are_sorted() -> None:
    assert labels({"b": "2", "a": "1"}) == "a=1,b=2"


def test_json_listing_has_the_documented_fields(capsys: pytest.CaptureFixture[str]) -> None:
    emit([ENDPOINT], Format.JSON, [], "none")
    (found,) = json.loads(capsys.readouterr().out)
    assert found["ips"] == ["10.244.0.5", "fd00:10:244::5"]
    assert found["policy_revision"] == {"desired": 4, "realized": 3}
    assert {"id", "namespace", "name", "identity", "labels", "netns", "interface", "state"} <= set(found)


def test_empty_listing_keeps_stdout_for_the_listing(capsys: pytest.CaptureFixture[str]) -> None:
    emit([], Format.TABLE, [Column("ID", str)], "no pods")
    assert capsys.readouterr() == ("", "no pods\n")
    emit([], Format.JSON, [], "no pods")
    assert capsys.readouterr() == ("[]\n", "")


def test_a_policy_that_is_not_yet_in_force_shows() -> None:
    assert _policy_revision(ENDPOINT) == "3 (wanted 4)"
    assert _policy_revision(msgspec.structs.replace(ENDPOINT, policy_revision=Revision(4, 4))) == "4"


def test_status_says_what_is_wrong() -> None:
    text = _describe(STATUS)
    for line in (
        "! map policy_row is full: 3 writes are waiting for room",
        "policy_row: 10 of 10, refused 3 for want of room",
        "m/a.yaml:3: Pod a/b: spec: is missing",
        "4 policy_ingress",
        "8 realized, 9 desired",
        "up 1h01m, 60 MB",
        "1 ClusterIP",
        "Counted    7 xdp_forwarded",
    ):
        assert line in text


def test_status_says_whether_it_encrypts() -> None:
    assert not any(line.startswith("Encryption") for line in _describe(STATUS).splitlines())
    peers = [
        EncryptionPeerView(
            node=name, endpoint="", public_key="", last_handshake_s=None, received_bytes=0, sent_bytes=0, ready=ready,
            problem="",
        )
        for name, ready in (("n2", True), ("n3", False))
    ]  # fmt: skip
    view = EncryptionView(mode="wireguard", strict=True, plaintext_packets=5, peers=tuple(peers))
    shown = _describe(msgspec.structs.replace(STATUS, encryption=view)).splitlines()
    (line,) = (line for line in shown if line.startswith("Encryption"))
    words = "wireguard, strict, 1 of 2 nodes, 5 packets in plaintext"
    assert line.split(maxsplit=1)[1] == words
    view = msgspec.structs.replace(view, process=ProcessView(state="running", pid=7, restarts=2, problem="it ended"))
    shown = _describe(msgspec.structs.replace(STATUS, encryption=view)).splitlines()
    (line,) = (line for line in shown if line.startswith("Encryption"))
    assert line.split(maxsplit=1)[1] == f"{words}; program running, pid 7, restarted 2 times: it ended"
