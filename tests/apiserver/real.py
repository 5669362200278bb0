"""A real kube-apiserver over a real etcd, both of loopback, from the binaries in KUBEBUILDER_ASSETS (as envtest has
them)."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from certificates import Authority

from apiserver.client import Client
from apiserver.relay import Relay
from apiserver.resources import GATEHOUSE, TABLE, Resource
from apiserver.schemas import CHART
from apiserver.server import Inside, Object, write_kubeconfig

VARIABLE = "KUBEBUILDER_ASSETS"
BINARIES = ("etcd", "kube-apiserver")
TOKEN = "a-token-of-the-tests"
MERGE = "application/merge-patch+json"
_START_S = 90.0


def missing() -> str:
    """Why there can be no real one; "" if there can."""
    assets = os.environ.get(VARIABLE, "")
    if not assets:
        return f"{VARIABLE} is not set: no kube-apiserver and etcd to check against"
    absent = [name for name in BINARIES if not os.access(Path(assets, name), os.X_OK)]
    return f"{VARIABLE} has no {' and no '.join(absent)}" if absent else ""


class RealServer:
    """`url` and `token` as ApiServer has them; `authority`: the PEM that its certificate is checked by."""

    def __init__(self, directory: Path, netns: Inside | None = None, host: str = "127.0.0.1") -> None:
        """Starts it, with the chart's definitions and bare ones of TABLE's other groups. `directory` is its own. With
        `netns` it answers at `host` in there, too, which is where kubeconfigs say that it is."""
        self._directory, self._netns, self._host = directory, netns, host
        self._relay: Relay | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        authority = Authority("real")
        pair = authority.pair("localhost", "127.0.0.1", host)
        self.token = TOKEN
        self.authority = authority.pem
        for name, content in {
            "tls.crt": pair.certificate,
            "tls.key": pair.private_key,
            "ca.crt": authority.pem,
            "tokens": f'{TOKEN},admin,admin,"system:masters"\n'.encode(),
        }.items():
            (directory / name).write_bytes(content)
        with _ports(3) as (client, peer, port):
            self._etcd, self._peer, self._port = client, peer, port
        self.url = f"https://127.0.0.1:{self._port}"
        try:
            self._start_all()
            if netns is not None:
                self._relay = Relay(netns.call(socket.create_server, (host, self._port)), self._port)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RealServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def client(self) -> Client:
        return Client(self.url, self.token, self.authority)

    def kubeconfig(self, path: Path, token_file: Path | None = None) -> Path:
        user = {"token": self.token}
        if token_file is not None:
            token_file.write_text(self.token)
            user = {"tokenFile": str(token_file)}
        cluster = {
            "server": f"https://{self._host}:{self._port}",
            "certificate-authority": str(self._directory / "ca.crt"),
        }
        write_kubeconfig(path, cluster, user)
        return path

    def load(self, objects: Iterable[Object]) -> int:
        """See ApiServer.load; what a schema refuses is an AssertionError here."""
        return sum(1 for given in objects if self.put(given))

    def put(self, given: Object) -> Object:
        """As it is now; its namespace is made."""
        resource, version = _of_kind(given)
        metadata = dict(given["metadata"])
        namespace = metadata.setdefault("namespace", "default") if resource.namespaced else ""
        path = resource.path(namespace, metadata["name"], version)
        with self.client() as client:
            if namespace:
                made = client.ask("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
                assert made.code in (201, 409), made
            found = client.ask("GET", path)
            if found.code == 404:
                client.ask("POST", path.rpartition("/")[0], {**given, "metadata": metadata}, expect=201)
            elif resource.plural == "pods":  # most of its spec cannot change
                client.ask("PATCH", path, given, content_type=MERGE, expect=200)
            else:
                metadata["resourceVersion"] = found.json()["metadata"]["resourceVersion"]
                client.ask("PUT", path, {**given, "metadata": metadata}, expect=200)
            if resource.status and "status" in given:
                client.ask("PATCH", f"{path}/status", {"status": given["status"]}, content_type=MERGE, expect=200)
            now: Object = client.ask("GET", path, expect=200).json()
        return now

    def get(self, plural: str, name: str, namespace: str = "") -> Object | None:
        with self.client() as client:
            answer = client.ask("GET", _of_plural(plural).path(namespace, name))
        assert answer.code in (200, 404), answer
        return answer.json() if answer.code == 200 else None

    def objects(self, plural: str) -> list[Object]:
        with self.client() as client:
            items: list[Object] = client.ask("GET", _of_plural(plural).path(), expect=200).json()["items"]
        return items

    def delete(self, plural: str, name: str, namespace: str = "") -> None:
        with self.client() as client:
            path = _of_plural(plural).path(namespace, name)
            client.ask("DELETE", path, {"gracePeriodSeconds": 0}, expect=200)

    def stop(self) -> None:
        """The API server is killed; etcd stays."""
        self._end(self._processes.pop())

    def start(self) -> None:
        """After `stop`. It has the same objects, and no history: 410 for a watch from a version before the newest."""
        self._start_server()
        self._await_resources()

    def close(self) -> None:
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        while self._processes:
            self._end(self._processes.pop())

    def _start_all(self) -> None:
        etcd, peer = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{self._peer}"
        self._run(
            "etcd",
            data_dir=self._directory / "etcd",
            listen_client_urls=etcd,
            advertise_client_urls=etcd,
            listen_peer_urls=peer,
            initial_advertise_peer_urls=peer,
            initial_cluster=f"default={peer}",
        )
        self._start_server()
        with self.client() as client:
            for definition in definitions():
                client.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition, expect=201)
        self._await_resources()

    def _await_resources(self) -> None:
        """Definitions take a moment to be served, also by a server that starts again (429 until then)."""
        with self.client() as client:
            for resource in TABLE:
                _await(lambda r=resource: client.ask("GET", r.path() + "?limit=1").code == 200, resource.plural)

    def _start_server(self) -> None:
        directory = self._directory
        server = self._run(
            "kube-apiserver",
            etcd_servers=f"http://127.0.0.1:{self._etcd}",
            bind_address="127.0.0.1",
            advertise_address="127.0.0.1",
            secure_port=self._port,
            tls_cert_file=directory / "tls.crt",
            tls_private_key_file=directory / "tls.key",
            cert_dir=directory,
            token_auth_file=directory / "tokens",
            authorization_mode="AlwaysAllow",
            disable_admission_plugins="ServiceAccount",  # no controller makes accounts
            service_account_issuer="https://tests.invalid",
            service_account_key_file=directory / "tls.crt",
            service_account_signing_key_file=directory / "tls.key",
            service_cluster_ip_range="10.96.0.0/16,fd00:10:96::/112",
            endpoint_reconciler_type="none",
            profiling="false",
        )
        with self.client() as client:
            _await(lambda: _ready(client, server), "kube-apiserver")

    def _run(self, name: str, **flags: object) -> subprocess.Popen[bytes]:
        command = ["setpriv", "--pdeathsig", "KILL", str(Path(os.environ[VARIABLE], name))]
        command += [f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()]
        with (self._directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._directory)
        self._processes.append(process)
        return process

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()


def definitions() -> Iterator[dict[str, Any]]:
    """CustomResourceDefinitions: the chart's, and bare ones for the groups that others define."""
    for file in sorted(CHART.glob("*.yaml")):
        yield yaml.safe_load(file.read_text())
    for resource in TABLE:
        if resource.custom and resource.group != GATEHOUSE:
            yield _bare(resource)


def _of_plural(plural: str) -> Resource:
    """Raises StopIteration."""
    return next(resource for resource in TABLE if resource.plural == plural)


def _of_kind(given: Object) -> tuple[Resource, str]:
    """And the version that it is written in."""
    group, _, version = given["apiVersion"].rpartition("/")
    return next(one for one in TABLE if (one.group, one.kind) == (group, given["kind"])), version


def _bare(resource: Resource) -> dict[str, Any]:
    names = {"plural": resource.plural, "singular": resource.kind.lower(), "kind": resource.kind}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    versions = [
        {"name": version, "served": True, "storage": position == 0, "schema": schema}
        | ({"subresources": {"status": {}}} if resource.status else {})
        for position, version in enumerate(resource.versions)
    ]
    # Groups of *.k8s.io and *.kubernetes.io want to know where their API was approved; networking.k8s.io is one.
    approved = {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/network-policy-api"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{resource.group}", "annotations": approved},
        "spec": {
            "group": resource.group,
            "names": names,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "versions": versions,
        },
    }


def _ready(client: Client, server: subprocess.Popen[bytes]) -> bool:
    if server.poll() is not None:
        raise RuntimeError("kube-apiserver ended; its log is beside its certificates")
    try:
        return client.ask("GET", "/readyz").code == 200
    except OSError:
        return False


def _await(done: Any, what: str) -> None:
    until = time.monotonic() + _START_S
    while not done():
        if time.monotonic() > until:
            raise RuntimeError(f"{what} is not ready after {_START_S:.0f} s")
        time.sleep(0.1)


@contextmanager
def _ports(count: int) -> Iterator[Iterable[int]]:
    """Free ones of loopback; held until the end, so that they are different."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        yield [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()
