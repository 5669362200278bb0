"""The child that compiles, loads and pins the programs; the one module that imports bcc.

    python -m agent.datapath.compile SOURCE MAPS_DIR PROGRAMS_DIR NAME=TYPE:ATTACH_TYPE…

Compiler and verifier write to stderr. On failure stdout has one sentence and the exit status is 1.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from agent.datapath import bpf
from agent.datapath.maps import Maps
from agent.datapath.mounts import INCLUDE, arch_include
from agent.datapath.programs import CFLAGS

ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64", "riscv64": "riscv", "ppc64le": "powerpc", "s390x": "s390"}
"""The kernel tree's folder names, by `uname -m`."""


def main(arguments: list[str]) -> str:
    """Empty, or what went wrong in one sentence."""
    source, maps_dir, programs_dir = map(Path, arguments[:3])
    wanted = {name: _types(types) for name, _, types in (a.partition("=") for a in arguments[3:])}
    with tempfile.TemporaryDirectory(prefix="gatehouse-headers-") as headers, Maps.open_pinned(maps_dir) as maps:
        assemble_headers(Path(headers), source.parent / "include")
        os.environ["BCC_KERNEL_SOURCE"] = headers
        numbers = tuple(f"-DFD_{name}={opened.fd}" for name, opened in maps.items())
        return _compile(source, numbers, programs_dir, wanted)


def _types(text: str) -> tuple[int, int]:
    kind, _, attach_type = text.partition(":")
    return int(kind), int(attach_type)


def assemble_headers(tree: Path, own: Path, installed: Path = INCLUDE) -> None:
    """Build the kernel source tree bcc wants out of `own` (bpf/include) and the installed user-space headers.

    bcc looks in the architecture's folder first: there `own` hides what must not be seen of the installed headers.
    """
    include, arch = tree / "include", tree / "arch" / ARCHITECTURES[platform.machine()]
    (include / "uapi").mkdir(parents=True)
    arch.mkdir(parents=True)
    links = {
        arch / "include": own,
        include / "linux": own / "linux",
        include / "asm": own / "asm",
        include / "uapi" / "linux": installed / "linux",
        include / "uapi" / "asm": arch_include(installed),
        include / "uapi" / "asm-generic": installed / "asm-generic",
    }
    for link, target in links.items():
        link.symlink_to(target.resolve())


def _compile(source: Path, numbers: tuple[str, ...], programs_dir: Path, wanted: dict[str, tuple[int, int]]) -> str:
    from bcc import BPF  # noqa: PLC0415  # only once BCC_KERNEL_SOURCE is set

    cflags = [*CFLAGS, *numbers, f"-I{source.parent}"]
    try:
        module = BPF(text=source.read_bytes(), cflags=cflags)
    except Exception as error:  # noqa: BLE001  # bcc raises nothing more specific
        return f"{source} did not compile: {error}"
    functions = {}
    for name, (kind, attach_type) in wanted.items():
        attach = {"attach_type": attach_type} if attach_type else {}
        try:
            functions[name] = module.load_func(name.encode(), kind, **attach).fd
        except Exception as error:  # noqa: BLE001  # bcc raises nothing more specific
            return f"{source}: the kernel refused {name}: {error}"
    _pin_all(functions, programs_dir)
    return ""


def _pin_all(functions: dict[str, int], programs_dir: Path) -> None:
    """Pin under another name first: a folder called `programs_dir` is always complete."""
    partial = programs_dir.with_name(f"partial-{os.getpid()}")
    partial.mkdir(parents=True)
    for name, fd in functions.items():
        bpf.pin(fd, partial / name)
    if programs_dir.exists():  # programs that use maps which are no more
        shutil.rmtree(programs_dir)
    partial.rename(programs_dir)


if __name__ == "__main__":
    problem = main(sys.argv[1:])
    sys.stdout.write(problem)
    sys.stdout.flush()
    os._exit(1 if problem else 0)  # bcc's clean-up at exit may crash after a failed load
