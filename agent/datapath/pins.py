"""Where maps and programs of an instance are pinned, and how its pins are removed.

<bpffs>/gatehouse/<instance>/maps-<ABI hash>/        one pin per map
<bpffs>/gatehouse/<instance>/programs-<source hash>/ one pin per program
<bpffs>/gatehouse/<instance>/links/                  one pin per program on a device that a link holds there
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from agent.datapath.abi import load
from agent.datapath.mounts import ensure_bpffs


def instance_name(state_dir: Path) -> str:
    """A name of letters, digits, `-` and `_` that only this state directory has: bpffs refuses dots."""
    resolved = str(state_dir.resolve())
    readable = re.sub(r"[^A-Za-z0-9]+", "-", state_dir.resolve().name).strip("-") or "root"
    return f"{readable[:40]}-{hashlib.sha256(resolved.encode()).hexdigest()[:8]}"


class Pins(msgspec.Struct, frozen=True):
    root: Path

    @classmethod
    def of(cls, instance: str) -> Pins:
        """Pins of an instance; bpffs is mounted if it is not. Raises mounts.Unmet."""
        return cls(ensure_bpffs() / "gatehouse" / instance)

    @property
    def maps(self) -> Path:
        return self.root / f"maps-{load().abi_hash}"

    @property
    def links(self) -> Path:
        return self.root / "links"

    def programs(self, source_hash: str) -> Path:
        return self.root / f"programs-{source_hash}"

    def remove_others(self, keep: Iterable[Path]) -> list[Path]:
        """Remove map and program folders of other versions, once nothing uses them. Returns what was removed."""
        kept = set(keep)
        stale = [folder for folder in self.root.glob("*-*") if folder not in kept]
        for folder in stale:
            shutil.rmtree(folder)
        return stale

    def remove(self) -> None:
        """Remove every pin. Programs that are still attached, and their maps, live on in the kernel without names."""
        if self.root.is_dir():
            shutil.rmtree(self.root)
