"""What monitoring is told of encryption."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import exposition
from agent.status import (
    DatapathView,
    EncryptionPeerView,
    EncryptionView,
    FlowsView,
    ProcessView,
    Revision,
    StatusView,
)

STATUS = StatusView(
    state="ready", reasons=(), version="0", pid=1, node="n1", state_dir="/s", started="", uptime_s=1.0,
    resident_bytes=1, kernel="6", revision=Revision(1, 1),
    datapath=DatapathView(pins="", abi_hash="", source_hash="", programs=(), maps=()), endpoints={}, namespaces=0,
    policies=0, services=0, services_by_type={}, identities=0, problems=(), drops={}, tallies={}, rejudged=0,
    map_full=0,
    flows=FlowsView(process=ProcessView(state="running", pid=2, restarts=0, problem=""), events_lost=0, records_lost=0),
)  # fmt: skip
PEER = EncryptionPeerView(
    node="n2", endpoint="192.0.2.12:51871", public_key="k", last_handshake_s=42.5, received_bytes=10, sent_bytes=20,
    ready=True, problem="",
)  # fmt: skip
NEW = msgspec.structs.replace(PEER, node="n3", last_handshake_s=None, received_bytes=0, sent_bytes=0, ready=False)
VIEW = EncryptionView(mode="wireguard", key_age_s=7.0, plaintext_packets=3, peers=(PEER, NEW))
N2, N3 = ("node", "n2"), ("node", "n3")
SAMPLES: dict[tuple[str, Any], float] = {
    ("gatehouse_encryption_peers", ("state", "ready")): 1,
    ("gatehouse_encryption_peers", ("state", "not ready")): 1,
    ("gatehouse_encryption_handshake_age_seconds", N2): 42.5,
    ("gatehouse_encryption_received_bytes_total", N2): 10,
    ("gatehouse_encryption_received_bytes_total", N3): 0,
    ("gatehouse_encryption_sent_bytes_total", N2): 20,
    ("gatehouse_encryption_sent_bytes_total", N3): 0,
    ("gatehouse_encryption_plaintext_packets_total", None): 3,
    ("gatehouse_encryption_key_age_seconds", None): 7,
}


@pytest.mark.parametrize(("view", "samples"), [(VIEW, SAMPLES), (None, {})])
def test_encryption(view: EncryptionView | None, samples: dict[tuple[str, Any], float]) -> None:
    told = exposition(msgspec.structs.replace(STATUS, encryption=view)).body.decode()
    found = {
        (sample.name, next(iter(sample.labels.items()), None)): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
        if "encryption" in sample.name
    }
    assert found == samples
