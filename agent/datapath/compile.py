"""The child that compiles a C file; the one module that imports bcc.

    python -m agent.datapath.compile SOURCE OUTPUT PROGRAM…

Writes agent.datapath.bytecode.Bytecode. The compiler writes to stderr. On failure stdout has one sentence and the exit
status is 1.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

import msgspec

from agent.datapath.abi import load
from agent.datapath.bytecode import PLACE
from agent.datapath.mounts import INCLUDE, arch_include
from agent.datapath.programs import CFLAGS

ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64", "riscv64": "riscv", "ppc64le": "powerpc", "s390x": "s390"}
"""The kernel tree's folder names, by `uname -m`."""


def main(arguments: list[str]) -> str:
    """Empty, or what went wrong in one sentence."""
    source, output, *programs = arguments
    with tempfile.TemporaryDirectory(prefix="gatehouse-headers-") as headers:
        assemble_headers(Path(headers), Path(source).parent / "include")
        os.environ["BCC_KERNEL_SOURCE"] = headers
        return _compile(Path(source), Path(output), programs)


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


def _compile(source: Path, output: Path, programs: list[str]) -> str:
    from bcc import BPF  # noqa: PLC0415  # only once BCC_KERNEL_SOURCE is set

    numbers = [f"-DFD_{name}={PLACE + place}" for place, name in enumerate(load().maps)]
    try:
        module = BPF(text=source.read_bytes(), cflags=[*CFLAGS, *numbers, f"-I{source.parent}"])
    except Exception as error:  # noqa: BLE001  # bcc raises nothing more specific
        return f"{source} did not compile: {error}"
    found = {}
    for name in programs:
        try:
            found[name] = module.dump_func(name.encode())
        except Exception:  # noqa: BLE001  # bcc raises nothing more specific
            return f"{source} has no program {name}"
    output.write_bytes(msgspec.msgpack.encode(found))
    return ""


if __name__ == "__main__":
    problem = main(sys.argv[1:])
    sys.stdout.write(problem)
    sys.stdout.flush()
    os._exit(1 if problem else 0)  # bcc's clean-up at exit may crash after a failure
