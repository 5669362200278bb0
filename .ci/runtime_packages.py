"""The part of requirements.lock an agent needs at run time, hashes and all, to stdout: what the image installs.

A package is needed if pyproject.toml names it outside of the extras, or if one that is needed brought it ("# via" in
the lock). Run in the folder of both files.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def runtime(lock: str, project: str) -> dict[str, str]:
    """Name → its lines in the lock. Raises KeyError for a dependency that is not locked: run `make lock`."""
    blocks = {_name(block): block for block in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]}
    via = {name: {_name(line) for line in _via(block)} for name, block in blocks.items()}
    needed = {_name(text) for text in tomllib.loads(project)["project"]["dependencies"]}
    found: dict[str, str] = {}
    while needed:
        found |= {name: blocks[name] for name in needed}
        needed = {name for name in blocks if name not in found and via[name] & found.keys()}
    return dict(sorted(found.items()))


def _name(text: str) -> str:
    """PEP 503's spelling of the package a requirement begins with."""
    match = re.match(r"[A-Za-z0-9._-]+", text)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def _via(block: str) -> list[str]:
    _, _, after = block.partition("# via")
    return [line.strip(" #") for line in after.splitlines() if line.strip(" #")]


if __name__ == "__main__":
    found = runtime(Path("requirements.lock").read_text(), Path("pyproject.toml").read_text())
    sys.stdout.write("".join(found.values()))
