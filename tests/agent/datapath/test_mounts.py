"""What is asked of the host, on texts and folders that stand for hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.datapath import mounts

MOUNTINFO = """\
22 1 0:20 / /sys rw,relatime - sysfs sysfs rw
31 22 0:26 / /sys/fs/bpf rw,nosuid shared:9 master:1 - bpf bpf rw,mode=700
32 22 0:27 / /mnt/with\\040space rw - tmpfs tmpfs rw
33 22 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 22 0:29 / /covered rw - bpf bpf rw
35 34 0:30 / /covered rw - tmpfs tmpfs rw
"""


def test_mounts_are_read() -> None:
    points = dict(mounts.mounted(MOUNTINFO))
    assert points[Path("/sys/fs/bpf")] == "bpf"
    assert points[Path("/mnt/with space")] == "tmpfs"
    assert mounts.is_mounted(Path("/sys/fs/bpf"), "bpf", MOUNTINFO)
    assert not mounts.is_mounted(Path("/sys/fs/bpf"), "tmpfs", MOUNTINFO)
    assert not mounts.is_mounted(Path("/sys"), "bpf", MOUNTINFO)
    assert not mounts.is_mounted(Path("/covered"), "bpf", MOUNTINFO)
    assert not mounts.is_mounted(Path("/sys/fs/bpf"), "bpf", "")


@pytest.mark.parametrize("release", ["6.1.0-18-amd64", "6.12.1", "6.18.44-x", "10.0"])
def test_new_enough_kernels(release: str) -> None:
    assert mounts.check_kernel(release) == ""


@pytest.mark.parametrize("release", ["5.15.0-1-amd64", "6.0.19", "4.19", "strange"])
def test_kernels_that_are_too_old(release: str) -> None:
    assert f"This kernel is {release}" in mounts.check_kernel(release)
    assert "6.1 or newer: upgrade" in mounts.check_kernel(release)


def test_privileges() -> None:
    assert mounts.check_root(0) == ""
    assert "sudo" in mounts.check_root(1000)


def test_packages(tmp_path: Path) -> None:
    assert "apt-get install python3-bpfcc" in mounts.check_bcc(lambda _: None)
    assert mounts.check_bcc(lambda _: object()) == ""
    assert "apt-get install linux-libc-dev" in mounts.check_headers(tmp_path)
    for header in (tmp_path / "linux" / "pkt_cls.h", tmp_path / "asm" / "types.h"):
        header.parent.mkdir()
        header.touch()
    assert mounts.check_headers(tmp_path) == ""
    assert mounts.arch_include(tmp_path) == tmp_path / "asm"


def test_everything_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "check_root", lambda: "Be root.")
    monkeypatch.setattr(mounts, "check_kernel", lambda: "")
    monkeypatch.setattr(mounts, "check_bcc", lambda: "Get bcc.")
    monkeypatch.setattr(mounts, "check_headers", lambda: "")
    with pytest.raises(mounts.Unmet) as unmet:
        mounts.require_host()
    assert str(unmet.value) == "Be root.\nGet bcc."


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_file_systems_are_there_after_asking() -> None:
    for kind, ensure in {"bpf": mounts.ensure_bpffs, "cgroup2": mounts.ensure_cgroup2}.items():
        folder = ensure()
        assert ensure() == folder
        assert mounts.is_mounted(folder, kind, Path("/proc/self/mountinfo").read_text())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_who_starts_at_once_mounts_once() -> None:
    """Otherwise what one of them has pinned is hidden by the file system of the other."""
    ask = f"{sys.executable} -c 'from agent.datapath.mounts import ensure_bpffs; ensure_bpffs()'"
    start = f"for n in 1 2 3 4 5; do {ask} & done; wait"
    script = f"while umount /sys/fs/bpf 2>/dev/null; do :; done; {start}; cat /proc/self/mountinfo"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=True)
    found = [kind for folder, kind in mounts.mounted(done.stdout) if folder == mounts.BPFFS]
    assert found == ["bpf"]


SYSCTLS_IN_A_CONTAINER = """\
import sys
from pathlib import Path
from agent.datapath import mounts

key = Path("/proc/sys/net/ipv4/ip_forward")
try:
    key.write_text("1")
except OSError as error:
    print(error.strerror)
try:
    print(mounts.ensure_writable_sysctls(), mounts.ensure_writable_sysctls())
    key.write_text("1")
    print(key.read_text().strip())
except mounts.Unmet as unmet:
    print(unmet)
"""


@pytest.mark.parametrize(
    ("held", "said"),
    [("-sys_chroot", "Read-only file system\nTrue False\n1\n"), ("-sys_admin", "give the container CAP_SYS_ADMIN")],
)
def test_sysctls_in_a_container_that_is_not_privileged(held: str, said: str) -> None:
    """As runtimes mount /proc/sys (OCI runtime-spec, readonlyPaths)."""
    script = (
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro,nosuid,nodev,noexec /proc/sys && "
        f'exec setpriv --bounding-set={held} --inh-caps={held} -- "$@"'
    )
    command = ["unshare", "--net", "--mount", "--", "sh", "-c", script, "sh"]
    result = subprocess.run(
        [*command, sys.executable, "-c", SYSCTLS_IN_A_CONTAINER], capture_output=True, text=True, check=True, timeout=90
    )
    assert said in result.stdout
    assert not os.statvfs("/proc/sys").f_flag & os.ST_RDONLY
