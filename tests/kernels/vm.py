#!/usr/bin/python3
"""Run a command as root under another Debian kernel, on a throw-away view of this machine's file system.

    vm.py --kernel 6.1 [--memory MIB] [--timeout SECONDS] [--directory DIR] -- COMMAND…

The machine is emulated by QEMU without KVM, so it runs anywhere and some ten times slower than the host. The host's
root is its root, shared read-only over 9p under a memory overlay: nothing the command writes is kept. There is no
network but lo. The exit status is the command's; 124 when it did not answer in time, 2 when the machine could not be
started or ended before the command.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("qemu-system-x86", "busybox-static", "cpio", "kmod")
META_PACKAGES = {"6.1": "linux-image-amd64", "6.12": "linux-image-6.12-amd64"}
# The root file system arrives over virtio 9p; everything else a program asks for is loaded on demand.
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
BUSYBOX_APPLETS = ("sh", "mount", "mkdir", "insmod", "switch_root", "cat")
EMPTY_THERE = ("/dev", "/proc", "/run", "/sys", "/tmp")  # of the guest's own
TIMED_OUT, NOT_RUN = 124, 2
BEGIN, END = "=== vm begin ===", "=== vm exit "

INIT = """\
#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module 2>/dev/null; done
opts=trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose
mount -t 9p -o $opts hostroot /lower || { echo 'vm: the root file system did not mount'; exit 1; }
mount -t tmpfs overlay /upper && mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work root /root
mkdir -p /root/lib/modules && mount -t 9p -o $opts modules /root/lib/modules
for d in proc sys dev; do mount --move /$d /root/$d; done
for d in run tmp dev/shm; do mkdir -p /root/$d; mount -t tmpfs tmp /root/$d; done
mkdir -p /root/dev/pts /root/run/netns; mount -t devpts pts /root/dev/pts
mount -t cgroup2 cgroup /root/sys/fs/cgroup
cat /start > /root/run/start
exec switch_root /root /bin/bash /run/start </root/dev/null
"""

START = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root GATEHOUSE_VM={kernel}
ln -s /proc/self/fd /dev/fd; ln -s fd/0 /dev/stdin; ln -s fd/1 /dev/stdout; ln -s fd/2 /dev/stderr
ip link set lo up
modprobe tun  # elsewhere udev makes its device node, and opening that loads it
# Code that the kernel changes as it runs, the emulator may meet half changed (Oops: int3): what tests would turn on and
# off again in the way of every packet, stays on.
tc qdisc add dev lo clsact
python3 -c 'import signal, socket; s = socket.socket(type=2); s.setsockopt(1, 29, 1); signal.pause()' &  # SO_TIMESTAMP
echo; echo '{begin}'
cd {directory} && {command}
echo "{end}$? ==="
sync; echo o > /proc/sysrq-trigger; sleep 60
"""


def run(*command: str, cwd: Path | None = None, stdin: bytes | None = None) -> bytes:
    return subprocess.run(command, cwd=cwd, input=stdin, check=True, stdout=subprocess.PIPE).stdout


def say(text: str) -> None:
    sys.stderr.write(f"vm: {text}\n")


def install_tools() -> None:
    missing = [p for p in PACKAGES if subprocess.run(["dpkg", "-s", p], capture_output=True, check=False).returncode]
    if missing:
        say(f"installing {' '.join(missing)}")
        run("apt-get", "-qq", "update")
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        run("apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing)


def fetch_kernel(kernel: str) -> Path:
    """The unpacked kernel package: <cache>/vmlinuz and <cache>/root/lib/modules/<version>."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = base / "gatehouse" / "kernels" / kernel
    if (cache / "vmlinuz").exists():
        return cache
    say(f"downloading Debian's kernel {kernel}")
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    run("apt-get", "-qq", "update")
    depends = run("apt-cache", "depends", META_PACKAGES[kernel]).decode()
    package = re.search(r"Depends: (linux-image-\d\S*)", depends)
    if package is None:
        raise SystemExit(
            f"vm: Debian has no kernel package for {kernel} here: {META_PACKAGES[kernel]} is unknown to apt"
        )
    run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package[1], cwd=cache)
    archive = next(cache.glob("*.deb"))
    run("dpkg", "-x", str(archive), str(cache / "root"))
    archive.unlink()
    run("depmod", "-b", str(cache / "root"), modules_version(cache))
    # Last, because its presence says that the cache is whole.
    shutil.copy(next((cache / "root/boot").glob("vmlinuz-*")), cache / "vmlinuz")
    return cache


def modules_version(cache: Path) -> str:
    return next((cache / "root/lib/modules").iterdir()).name


def boot_modules(cache: Path) -> list[Path]:
    """Files of the boot modules and what they depend on, in load order."""
    found: dict[Path, None] = {}
    for module in BOOT_MODULES:
        shown = subprocess.run(
            ["modprobe", "-d", str(cache / "root"), "-S", modules_version(cache), "--show-depends", module],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        found.update((Path(line.split()[1]), None) for line in shown.splitlines() if line.startswith("insmod "))
    return list(found)


def build_initrd(work: Path, cache: Path, start: str) -> Path:
    tree = work / "initrd"
    for name in ("bin", "proc", "sys", "dev", "root", "lower", "upper", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for applet in BUSYBOX_APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    for n, module in enumerate(boot_modules(cache)):
        shutil.copy(module, tree / "modules" / f"{n:02}-{module.name}")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    (tree / "start").write_text(start)
    names = "\0".join(str(p.relative_to(tree)) for p in sorted(tree.rglob("*")))
    image = work / "initrd.cpio"
    image.write_bytes(run("cpio", "-0", "-o", "-H", "newc", "--quiet", cwd=tree, stdin=names.encode()))
    return image


def qemu_command(cache: Path, initrd: Path, memory: int) -> list[str]:
    share, cpus = "local,security_model=none,readonly=on", min(os.cpu_count() or 1, 4)
    return [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(cpus), "-m", str(memory),
        "-nographic", "-nodefaults", "-no-reboot", "-vga", "none", "-serial", "stdio",
        "-kernel", str(cache / "vmlinuz"), "-initrd", str(initrd),
        "-append", "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off",
        "-fsdev", f"{share},id=root,path=/,multidevs=remap", "-device", "virtio-9p-pci,fsdev=root,mount_tag=hostroot",
        "-fsdev", f"{share},id=mods,path={cache}/root/lib/modules",
        "-device", "virtio-9p-pci,fsdev=mods,mount_tag=modules",
    ]  # fmt: skip


def boot(command: list[str], timeout: int) -> int:
    """Show what the guest prints between the marks; the command's exit status, or why there is none."""
    shown = False
    with subprocess.Popen(
        ["timeout", "-k", "5", str(timeout), *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace",
    ) as machine:  # fmt: skip
        assert machine.stdout is not None
        for raw in machine.stdout:
            line = raw.replace("\r", "").rstrip("\n")
            if line.startswith(END):
                return int(line.removeprefix(END).split()[0])
            if shown:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
            shown = shown or line == BEGIN
        ended = machine.wait()
    say(f"no answer within {timeout} s" if ended == TIMED_OUT else "the machine ended before the command: see above")
    return TIMED_OUT if ended == TIMED_OUT else NOT_RUN


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", required=True, choices=sorted(META_PACKAGES))
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB")
    parser.add_argument("--timeout", type=int, default=1200, metavar="SECONDS")
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    if os.geteuid():
        raise SystemExit("vm: run as root: the guest reads the host's file system as the user that starts it")
    directory = args.directory.resolve()
    if any(directory.is_relative_to(folder) for folder in EMPTY_THERE):
        parser.error(f"{directory} is not there in the guest, which has its own {', '.join(EMPTY_THERE)}: move it")
    install_tools()
    cache = fetch_kernel(args.kernel)
    start = START.format(
        kernel=args.kernel,
        begin=BEGIN,
        end=END,
        directory=shlex.quote(str(directory)),
        command=shlex.join(args.command),
    )
    with tempfile.TemporaryDirectory(prefix="gatehouse-vm-") as work:
        initrd = build_initrd(Path(work), cache, start)
        return boot(qemu_command(cache, initrd, args.memory), args.timeout)


if __name__ == "__main__":
    sys.exit(main())
