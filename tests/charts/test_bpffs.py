"""The init container that sees to the folder of pins, run as it stands in the manifest."""

from __future__ import annotations

import subprocess

import pytest
from chart_objects import capabilities, container
from helm_process import Helm

COUNT = "grep -c ' /sys/fs/bpf ' /proc/self/mountinfo"


@pytest.mark.parametrize(("kind", "status"), [("bpf", 0), ("tmpfs", 1)])
def test_a_node_without_bpffs_is_refused(helm: Helm, root: None, kind: str, status: int) -> None:
    init = container(helm.objects({}), "bpffs")
    found = _in_mounts(f'mount -t {kind} test /sys/fs/bpf && exec "$@"', [*init["command"], *init["args"]])
    assert found.returncode == status
    assert ("set bpffs.mount of the chart" in found.stderr) is bool(status)


@pytest.mark.parametrize(("kind", "mounts"), [("bpf", 1), ("tmpfs", 2)])
def test_bpffs_is_mounted_on_the_node(helm: Helm, root: None, kind: str, mounts: int) -> None:
    """Once, and in the mount namespace of the node; here that of the shell that waits."""
    objects = helm.objects({"bpffs": {"mount": True}})
    init = container(objects, "bpffs")
    may = "".join(f",+{name.lower()}" for name in capabilities(objects, "bpffs"))
    program, *words = (word for word in init["command"] if not word.startswith("--mount="))
    script = (
        f"mount -t {kind} test /sys/fs/bpf && "
        f"unshare --mount setpriv --bounding-set=-all{may} --inh-caps=-all{may} -- "
        f'{program} --mount=/proc/$$/ns/mnt {" ".join(words)} "$1" && '
        f"stat -f -c %T /sys/fs/bpf && {COUNT}"
    )
    before = _in_mounts(f"{COUNT}; true", []).stdout
    found = _in_mounts(script, init["args"])
    assert (found.stdout, found.returncode) == (f"bpf_fs\n{int(before) + mounts}\n", 0), found.stderr


def _in_mounts(script: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run with mounts of its own, which end with it."""
    command = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
