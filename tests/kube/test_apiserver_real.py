"""What only a real kube-apiserver can show. Where there is none, this is what says so: the tests that ask both servers
then ask the in-test one alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from apiserver import TABLE, ApiServer
from apiserver.client import Client
from apiserver.real import RealServer, definitions

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def client(real_api: RealServer) -> Client:
    return real_api.client()


def test_the_charts_definitions_are_taken_whole(client: Client) -> None:
    """Structural, and no rule of theirs costs too much."""
    with client:
        for definition in definitions():
            kept = client.ask("GET", f"{DEFINITIONS}/{definition['metadata']['name']}", expect=200).json()
            conditions = {each["type"]: each["status"] for each in kept["status"]["conditions"]}
            assert conditions["Established"] == conditions["NamesAccepted"] == "True"
            assert conditions.get("NonStructuralSchema", "False") == "False", kept["status"]
            asked = [each["schema"] for each in definition["spec"]["versions"]]
            assert [each["schema"] for each in kept["spec"]["versions"]] == asked


def test_discovery_is_that_of_the_in_test_server(client: Client) -> None:
    with client, ApiServer() as api, api.client() as by_hand:
        paths = sorted({resource.root(version) for resource in TABLE for version in resource.versions})
        for path in paths:
            ours, theirs = (
                {each["name"]: (each["kind"], each["namespaced"]) for each in one.ask("GET", path).json()["resources"]}
                for one in (by_hand, client)
            )
            assert ours.items() <= theirs.items(), path


def test_its_kubeconfig_and_its_token(real_api: RealServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    text = real_api.kubeconfig(tmp_path / "config", token).read_text()
    assert real_api.url in text and token.read_text() == real_api.token and real_api.token not in text
    with Client(real_api.url, "another", real_api.authority) as stranger:
        assert stranger.ask("GET", "/api/v1/pods").json()["reason"] == "Unauthorized"
