"""The plugin and its configuration put where the container runtime looks for them, and taken away.

A runtime uses the first configuration of its folder by name, and is ready for pods once there is one: so ours is
written last, when the agent can serve. Every file is complete before it has its name. Where they are is noted in the
state directory, so that `gatehouse cleanup` finds them whatever it is started with.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from agent.cni.build import BINARY
from agent.cni.protocol import SUPPORTED_VERSIONS

NAME = "05-gatehouse.conflist"
PLUGIN = "gatehouse-cni"
NOTE = "cni.json"
_RUNTIMES_READ = (".conf", ".conflist", ".json")


class NotInstalled(Exception):
    """Plugin or configuration are not in place; the message says why and what to do."""


class Installed(msgspec.Struct, frozen=True):
    """Paths; "" for what was not asked for."""

    conflist: str = ""
    binary: str = ""


class Installer:
    """`conf_dir`, `bin_dir`: "" for nowhere; `chain`: a file in `conf_dir` behind whose plugins to stand, or ""."""

    def __init__(self, state_dir: Path, conf_dir: str, bin_dir: str, chain: str = "", binary: Path = BINARY) -> None:
        self._state_dir = state_dir
        self._conf_dir = Path(conf_dir) if conf_dir else None
        self._bin_dir = Path(bin_dir) if bin_dir else None
        self._chain = chain
        self._binary = binary

    def install(self) -> bool:
        """Put both in place; False where they were there just so. Blocks. Raises NotInstalled."""
        content = self._conflist() if self._conf_dir else b""
        where = Installed(
            str(self._conf_dir / NAME) if self._conf_dir else "", str(self._bin_dir / PLUGIN) if self._bin_dir else ""
        )
        changed = False
        try:
            if where != Installed():
                _write(self._state_dir / NOTE, msgspec.json.encode(where), 0o600)
            if self._bin_dir:
                changed |= _write(Path(where.binary), self._plugin(), 0o755)
            if self._conf_dir:
                changed |= _write(Path(where.conflist), content, 0o600)
        except OSError as error:
            raise NotInstalled(
                f"the CNI plugin is not in place: {error}; check --cni-bin-dir, --cni-conf-dir"
            ) from None
        return changed

    def ahead(self) -> list[str]:
        """Configurations that keep runtimes from using ours, one sentence each. They are left alone."""
        return [
            f"{name}: runtimes use it and not {NAME}, for it sorts first; remove or rename it"
            for name in self._names()
            if name < NAME
        ]

    def others(self) -> list[str]:
        """What stands behind ours."""
        return [name for name in self._names() if name > NAME and name != self._chain]

    def _names(self) -> list[str]:
        if self._conf_dir is None or not self._conf_dir.is_dir():
            return []
        return sorted(p.name for p in self._conf_dir.iterdir() if p.suffix in _RUNTIMES_READ)

    def _plugin(self) -> bytes:
        try:
            return self._binary.read_bytes()
        except FileNotFoundError:
            raise NotInstalled(
                f"{self._binary} is not there: build it with `python -m agent.cni.build`, or leave --cni-bin-dir out"
            ) from None

    def _conflist(self) -> bytes:
        entry = {
            "type": PLUGIN,
            "socket": str(self._state_dir.resolve() / "cni.sock"),
            "capabilities": {"portMappings": True},
        }
        if not self._chain:
            whole: dict[str, Any] = {
                "cniVersion": "1.0.0",  # for runtimes that do not know of the next line (libcni before 1.3)
                "cniVersions": [v for v in SUPPORTED_VERSIONS if v >= "0.4.0"],
                "name": "gatehouse",
                "plugins": [entry],
            }
        else:
            whole = self._chained()
            whole["plugins"] = [*(p for p in whole["plugins"] if p.get("type") != PLUGIN), entry]
        return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"

    def _chained(self) -> dict[str, Any]:
        """The configuration behind whose plugins ours is to stand, under its name: its IPAM may file leases by it."""
        assert self._conf_dir is not None
        path = self._conf_dir / self._chain
        try:
            whole = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except OSError as error:
            raise NotInstalled(f"--cni-chain: {path}: {error.strerror}; name a file in --cni-conf-dir") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise NotInstalled(f"--cni-chain: {path} is no CNI configuration: {error}") from None
        if "plugins" not in whole:  # a single plugin's
            whole = {key: whole.pop(key) for key in ("cniVersion", "name") if key in whole} | {"plugins": [whole]}
        plugins = whole["plugins"]
        if not (isinstance(plugins, list) and plugins and all(isinstance(p, dict) and "type" in p for p in plugins)):
            raise NotInstalled(f"--cni-chain: {path} has no plugins: name a network's configuration")
        if whole.get("cniVersion") not in SUPPORTED_VERSIONS:
            supported = ", ".join(SUPPORTED_VERSIONS)
            raise NotInstalled(f"--cni-chain: {path}: cniVersion {whole.get('cniVersion')!r} is none of {supported}")
        return whole


def uninstall(state_dir: Path) -> list[str]:
    """Remove what was installed from this state directory; returns the paths. Raises OSError.

    The plugin stays where runtimes still have to delete what is attached: without it, those pods could never end.
    """
    note = state_dir / NOTE
    try:
        where = msgspec.json.decode(note.read_bytes(), type=Installed)
    except FileNotFoundError:
        return []
    except msgspec.MsgspecError:
        note.unlink()
        return []
    removed = []
    if where.conflist and _is_ours(Path(where.conflist), state_dir):
        Path(where.conflist).unlink()
        removed.append(where.conflist)
    attached = any((state_dir / "attachments").glob("*.json"))
    if where.binary and not attached and Path(where.binary).exists():
        Path(where.binary).unlink()
        removed.append(where.binary)
    note.unlink()
    return removed


def _is_ours(path: Path, state_dir: Path) -> bool:
    """Another agent's is not to go."""
    try:
        return str(state_dir.resolve() / "cni.sock") in path.read_text()
    except FileNotFoundError:
        return False


def _write(path: Path, content: bytes, mode: int) -> bool:
    """Have a file of root's with this content and mode, and no other bits; on disk, and whole whoever looks when."""
    try:
        found = path.lstat()
        if found.st_mode & 0o7777 == mode and not path.is_symlink() and path.read_bytes() == content:
            return False
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(file.fileno(), 0, 0)
            os.fchmod(file.fileno(), mode)  # after the owner: a change of owner may clear bits, never the other way
            os.fsync(file.fileno())
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True
