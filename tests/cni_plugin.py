"""The CNI plugin as a runtime runs it: built once for these sources, and run as a process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.cni.build import FLAGS, SOURCE, build

BUILD = Path(__file__).parents[1] / "build" / "cni"


def plugin(flags: tuple[str, ...] = FLAGS) -> Path:
    """Path of the plugin of these sources and flags."""
    content = b"".join(path.read_bytes() for path in sorted(SOURCE.parent.glob("*.[ch]")))
    digest = hashlib.sha256(content + " ".join(flags).encode()).hexdigest()[:16]
    binary = BUILD / digest / "gatehouse-cni"
    return binary if binary.exists() else build(binary, flags)


@dataclass(frozen=True)
class Run:
    status: int
    output: bytes
    errors: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.output)
        return found


def environment(command: str, container: str = "c1", **more: str) -> dict[str, str]:
    """What a runtime sets, under the kubelet. `more`: variables by name without CNI_; "" leaves one out."""
    given = {
        "COMMAND": command,
        "CONTAINERID": container,
        "NETNS": "/run/netns/none",
        "IFNAME": "eth0",
        "PATH": "/opt/cni/bin",
        "ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1",
    } | {name.upper(): value for name, value in more.items()}
    return {f"CNI_{name}": value for name, value in given.items() if value}


def config(socket: Path | str, version: str = "1.1.0", **more: Any) -> bytes:
    return json.dumps(
        {"cniVersion": version, "name": "gatehouse", "type": "gatehouse-cni", "socket": str(socket), **more}
    ).encode()


def run(env: Mapping[str, str], stdin: bytes, binary: Path | None = None, timeout_s: float = 60) -> Run:
    done = subprocess.run(
        [binary or plugin()], env=dict(env), input=stdin, capture_output=True, timeout=timeout_s, check=False
    )
    return Run(done.returncode, done.stdout, done.stderr)


async def start(env: Mapping[str, str]) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(plugin(), env=dict(env), stdin=pipe, stdout=pipe, stderr=pipe)


async def ask(env: Mapping[str, str], stdin: bytes) -> Run:
    process = await start(env)
    output, errors = await process.communicate(stdin)
    assert process.returncode is not None
    return Run(process.returncode, output, errors)


def queued_names(state_dir: Path) -> list[str]:
    folder = state_dir / "cni-queue"
    return sorted(os.listdir(folder)) if folder.exists() else []  # noqa: PTH208
