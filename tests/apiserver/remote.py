"""The API server in a process of its own, for what is measured: it takes no time of the interpreter under test."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from apiserver.handlers import Seen
from apiserver.server import Object, write_kubeconfig

_TESTS = Path(__file__).resolve().parents[1]
_BATCH = 1000


class RemoteApi:
    """Started at once; `close` or `with` ends it. `call` does what ApiServer can: call("faults.refuse", 503). Threads
    may share it."""

    def __init__(
        self, *, host: str = "127.0.0.1", netns_path: str = "", token: str | None = None, without: Iterable[str] = ()
    ) -> None:
        command = ["nsenter", f"--net={netns_path}"] if netns_path else []
        command += [sys.executable, "-m", "apiserver", "--host", host]
        command += ["--token", token] if token is not None else []
        command += ["--without", *without]
        path = os.pathsep.join([str(_TESTS), str(_TESTS.parent)])
        environment = os.environ | {"PYTHONPATH": path}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._calls = threading.Lock()
        self.token = token
        self.url: str = self.call("url")

    def __enter__(self) -> RemoteApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def call(self, name: str, *args: Any, **named: Any) -> Any:
        """What that method or attribute of ApiServer gives, as JSON has it. Raises RuntimeError with its error."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._calls:
            self._process.stdin.write(msgspec.json.encode({"name": name, "args": args, "named": named}) + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the API server's process ended; its error is above")
        answer = msgspec.json.decode(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def load(self, objects: Iterable[Object]) -> int:
        """See ApiServer.load."""
        rest, count = iter(objects), 0
        while batch := list(itertools.islice(rest, _BATCH)):
            count += self.call("load", batch)
        return count

    def put(self, given: Object) -> Object:
        """See ApiServer.put."""
        made: Object = self.call("put", given)
        return made

    def delete(self, plural: str, name: str, namespace: str = "") -> None:
        """See ApiServer.delete. Raises RuntimeError where it is not there."""
        self.call("delete", plural, name, namespace)

    @property
    def requests(self) -> list[Seen]:
        return msgspec.convert(self.call("requests"), list[Seen])

    def kubeconfig(self, path: Path, token_file: Path | None = None) -> Path:
        """See ApiServer.kubeconfig."""
        user = {} if self.token is None else {"token": self.token}
        if self.token is not None and token_file is not None:
            token_file.write_text(self.token)
            user = {"tokenFile": str(token_file)}
        write_kubeconfig(path, {"server": self.url}, user)
        return path
