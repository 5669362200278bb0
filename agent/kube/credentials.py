"""How the API server is reached and as whom: by a kubeconfig, or by the service account of the agent's own pod.

What kubeconfigs and service accounts mean is left to the kubernetes package, which is imported on first use: it takes
0.7 s and, on top of aiohttp, 21 MB.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import yaml

if TYPE_CHECKING:
    from kubernetes.aio.client.configuration import Configuration
    from kubernetes.aio.config.kube_config import KubeConfigLoader

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class NoCredentials(Exception):
    """They cannot be had; the message is one sentence that says what to do."""


class File(msgspec.Struct, frozen=True):
    """A file of a certain content: a new one has another time or size."""

    path: str
    written_ns: int
    size: int

    @classmethod
    def of(cls, path: str | None) -> File | None:
        """Raises OSError."""
        if not path:
            return None
        status = Path(path).stat()
        return cls(path, status.st_mtime_ns, status.st_size)


class Tls(msgspec.Struct, frozen=True):
    """What a connection needs. Equal ones need no new connection."""

    ca: File | None = None
    certificate: File | None = None
    key: File | None = None
    verify: bool = True
    server_name: str = ""  # "": the host's

    def context(self) -> ssl.SSLContext:
        """Raises OSError (ssl.SSLError is one)."""
        context = ssl.create_default_context(cafile=self.ca.path if self.ca else None)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate is not None:
            context.load_cert_chain(self.certificate.path, self.key.path if self.key else None)
        return context


class Access(msgspec.Struct, frozen=True):
    server: str  # https://10.96.0.1:443
    authorization: str = ""  # of the header; "": none
    tls: Tls = Tls()
    proxy: str = ""

    def __repr__(self) -> str:
        return f"Access({self.server!r})"


Load = Callable[[bool], Awaitable[Access]]
"""Reads the credentials again. True: those given last were refused. Raises NoCredentials."""


def credentials(kubeconfig: str) -> Load:
    """Those of a kubeconfig file; "": of the service account that the agent's pod runs under."""
    return KubeconfigCredentials(kubeconfig) if kubeconfig else in_cluster()


def in_cluster(folder: Path = SERVICE_ACCOUNT, environ: Mapping[str, str] = os.environ) -> Load:
    """The kubelet replaces the token in `folder` before it expires."""

    async def load(refused: bool) -> Access:
        del refused  # the file is read each time
        from kubernetes.aio.client.configuration import Configuration  # noqa: PLC0415  # see above
        from kubernetes.aio.config import ConfigException  # noqa: PLC0415
        from kubernetes.aio.config.incluster_config import InClusterConfigLoader  # noqa: PLC0415

        found = Configuration()
        files = str(folder / "token"), str(folder / "ca.crt")
        try:
            loader = InClusterConfigLoader(*files, environ=environ)  # type: ignore[no-untyped-call]
            loader.load_and_set(found)  # type: ignore[no-untyped-call]
            return _access(found)
        except (ConfigException, OSError) as error:
            hint = "run the agent as a pod with a service account, or give --kubeconfig"
            raise NoCredentials(f"no service account to reach the API server with ({error}): {hint}") from error

    return load


class KubeconfigCredentials:
    """Tokens, token files, client certificates and exec plugins, as the current context of the file names them.

    A plugin is run again when what it gave expires, was refused, or when the file has changed.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: File | None = None
        self._loader: KubeConfigLoader | None = None
        self._found: Configuration | None = None

    async def __call__(self, refused: bool) -> Access:
        from kubernetes.aio.config import ConfigException  # noqa: PLC0415  # see above

        try:
            await self._load(refused)
            assert self._found is not None
            return _access(self._found)
        except (ConfigException, OSError, ValueError, TypeError, yaml.YAMLError) as error:
            self._loader = None
            raise NoCredentials(f"--kubeconfig {self._path}: {' '.join(str(error).split())}") from error

    async def _load(self, refused: bool) -> None:
        from kubernetes.aio.client.configuration import Configuration  # noqa: PLC0415
        from kubernetes.aio.config import ConfigException  # noqa: PLC0415
        from kubernetes.aio.config.kube_config import KubeConfigLoader, KubeConfigMerger  # noqa: PLC0415

        file = File.of(self._path)
        if self._loader is None or refused or file != self._file:
            merged = KubeConfigMerger(self._path).config  # type: ignore[no-untyped-call]
            self._loader, self._file = KubeConfigLoader(merged), file  # type: ignore[no-untyped-call]
        elif self._runs_plugin() and not hasattr(self._loader, "exec_plugin_expiry"):
            return  # what it gave is good until it is refused
        found = Configuration()
        await self._loader.load_and_set(found)  # type: ignore[no-untyped-call]
        if self._runs_plugin() and not (found.api_key or found.cert_file):
            raise ConfigException("its exec plugin gave no credentials: run the plugin by hand to see why")
        self._found = found

    def _runs_plugin(self) -> bool:
        return self._loader is not None and "exec" in (self._loader._user or ())


def _access(found: Configuration) -> Access:
    """Raises OSError for a file that is not there."""
    tls = Tls(
        File.of(found.ssl_ca_cert),
        File.of(found.cert_file),
        File.of(found.key_file),
        bool(found.verify_ssl),
        found.tls_server_name or "",
    )
    authorization = str(found.api_key.get("BearerToken", "")).strip()
    return Access(found.host.rstrip("/"), authorization, tls, found.proxy or "")
