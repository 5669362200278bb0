"""How the API server is reached: kubeconfigs of each sort, and what becomes of them as they change."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
import yaml
from apiserver import ApiServer

from agent.kube.client import ApiClient, Timeouts
from agent.kube.credentials import KubeconfigCredentials, NoCredentials
from agent.kube.errors import ApiServerError, ApiUnreachable

PATIENT = Timeouts(connect_s=60, read_s=60, whole_s=60, stall_s=60)


def written(path: Path, server: str, user: dict[str, object], cluster: dict[str, object] | None = None) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))
    return path


async def version(client: ApiClient) -> dict[str, str]:
    found: dict[str, str] = json.loads(await client.get("/version"))
    return found


def test_tls_and_a_token_file_that_rotates(tmp_path: Path) -> None:
    with ApiServer(tls=True, token="one") as api:
        token = tmp_path / "token"
        kubeconfig = api.kubeconfig(tmp_path / "config", token)

        async def run() -> None:
            client = ApiClient(kubeconfig=str(kubeconfig), timeouts=PATIENT)
            await client.get("/api/v1/nodes")
            api.set_token("two")
            token.write_text("two\n")
            await client.get("/api/v1/nodes")
            await client.close()

        asyncio.run(run())


def test_a_server_that_is_not_who_it_should_be(tmp_path: Path) -> None:
    with ApiServer(tls=True) as api, ApiServer(tls=True) as other:
        kubeconfig = api.kubeconfig(tmp_path / "config")
        kubeconfig.write_text(kubeconfig.read_text().replace(f":{api.port}", f":{other.port}"))

        async def run() -> None:
            client = ApiClient(kubeconfig=str(kubeconfig), timeouts=PATIENT)
            with pytest.raises(ApiUnreachable, match="certificate"):
                await client.get("/api/v1/nodes")
            await client.close()

        asyncio.run(run())


def plugin(folder: Path, token: str, expires: str = "") -> dict[str, object]:
    """An exec plugin that gives `token`, and notes each of its runs."""
    status = {"token": token} | ({"expirationTimestamp": expires} if expires else {})
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    script = folder / "plugin"
    script.write_text(f"#!/bin/sh\necho run >> {folder}/runs\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
    script.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script)}}


@pytest.mark.parametrize(("expires", "runs"), [("", 2), ("2999-01-01T00:00:00Z", 2), ("2000-01-01T00:00:00Z", 3)])
def test_an_exec_plugin(tmp_path: Path, expires: str, runs: int) -> None:
    """It is run at first, again where what it gave has expired, and when that is refused."""
    with ApiServer(token="one") as api:
        kubeconfig = written(tmp_path / "config", api.url, plugin(tmp_path, "one", expires))

        async def run() -> None:
            client = ApiClient(kubeconfig=str(kubeconfig), timeouts=PATIENT)
            await client.get("/api/v1/nodes")
            await client.get("/api/v1/nodes")
            client._loaded_s -= 61.0  # time to look again
            await client.get("/api/v1/nodes")
            api.set_token("two")
            plugin(tmp_path, "two", expires)
            await client.get("/api/v1/nodes")
            await client.close()

        asyncio.run(run())
    assert len((tmp_path / "runs").read_text().splitlines()) == runs


def test_an_exec_plugin_that_fails(tmp_path: Path) -> None:
    user: dict[str, object] = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}}
    kubeconfig = written(tmp_path / "config", "http://127.0.0.1:1", user)

    async def run() -> None:
        with pytest.raises(NoCredentials, match="exec plugin gave no credentials: run the plugin by hand"):
            await KubeconfigCredentials(str(kubeconfig))(False)

    asyncio.run(run())


def test_a_kubeconfig_that_changes(tmp_path: Path) -> None:
    path = written(tmp_path / "config", "https://one:6443", {"token": "a"})

    async def run() -> None:
        load = KubeconfigCredentials(str(path))
        assert (await load(False)).authorization == "Bearer a"
        written(path, "https://two:6443", {"token": "longer"})
        found = await load(False)
        assert (found.server, found.authorization) == ("https://two:6443", "Bearer longer")
        assert "longer" not in repr(found)

    asyncio.run(run())


def test_a_certificate_that_is_replaced_is_another_connection(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_text("c")
    key.write_text("k")
    user: dict[str, object] = {"client-certificate": str(certificate), "client-key": str(key)}
    path = written(tmp_path / "config", "https://one:6443", user, {"tls-server-name": "kubernetes"})

    async def run() -> None:
        load = KubeconfigCredentials(str(path))
        before = await load(False)
        assert before.tls.server_name == "kubernetes"
        assert (await load(False)).tls == before.tls
        os.utime(certificate, ns=(1, 1))
        assert (await load(False)).tls != before.tls

    asyncio.run(run())


@pytest.mark.parametrize("text", [None, "", "a: [", "kind: Config\n", "current-context: x\ncontexts: []\n"])
def test_a_kubeconfig_that_cannot_be_used(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)

    async def run() -> None:
        client = ApiClient(kubeconfig=str(path), timeouts=PATIENT)
        with pytest.raises(ApiUnreachable, match=f"--kubeconfig {path}"):
            await client.get("/version")
        await client.close()

    asyncio.run(run())


def test_no_token_where_one_is_needed(tmp_path: Path) -> None:
    with ApiServer(token="one") as api:
        path = written(tmp_path / "config", api.url, {})

        async def run() -> None:
            client = ApiClient(kubeconfig=str(path), timeouts=PATIENT)
            with pytest.raises(ApiServerError, match="401"):
                await client.get("/api/v1/nodes")
            await client.close()

        asyncio.run(run())
