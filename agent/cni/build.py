"""The CNI plugin built: `python -m agent.cni.build [FILE]`. A node needs no compiler, as it comes with the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "plugin" / "gatehouse-cni.c"
BINARY = SOURCE.with_suffix("")
"""Where set-up and the image put it."""

FLAGS = (
    *("-std=gnu11", "-Os", "-static-pie", "-fPIE", "-s"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wformat-security", "-Werror"),
    *("-fstack-protector-strong", "-fstack-clash-protection", "-D_FORTIFY_SOURCE=2"),
    "-Wl,-z,relro,-z,now,-z,noexecstack",
)


def build(target: Path = BINARY, flags: tuple[str, ...] = FLAGS) -> Path:
    """Compile the plugin to `target`, in one step for whoever runs it meanwhile. Raises CalledProcessError, OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        subprocess.run(["gcc", *flags, "-o", str(fresh), str(SOURCE)], check=True)
        fresh.rename(target)
    finally:
        fresh.unlink(missing_ok=True)
    return target


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else BINARY)
