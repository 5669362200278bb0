"""Plugin and configuration in the runtime's folders: whole, ours alone, without rights of their own, and gone again."""

from __future__ import annotations

import json
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agent.cni.conflist import NAME, PLUGIN, Installer, NotInstalled, uninstall
from agent.cni.protocol import SUPPORTED_VERSIONS


class Host:
    def __init__(self, tmp_path: Path) -> None:
        self.state = tmp_path / "state"
        self.conf, self.bin = tmp_path / "net.d", tmp_path / "bin"
        self.binary = tmp_path / "plugin"
        self.state.mkdir()
        self.conf.mkdir()
        self.binary.write_bytes(b"\x7fELF")
        os.chmod(self.binary, 0o4777)  # noqa: PTH101

    def installer(self, chain: str = "", conf: bool = True, binary: bool = True) -> Installer:
        return Installer(
            self.state, str(self.conf) if conf else "", str(self.bin) if binary else "", chain, self.binary
        )

    @property
    def written(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.conf / NAME).read_bytes())
        return found

    def files(self) -> list[str]:
        return sorted(p.name for folder in (self.conf, self.bin) if folder.is_dir() for p in folder.iterdir())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_both_are_put_in_place(host: Host) -> None:
    assert host.installer().install()
    assert host.written == {
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "gatehouse",
        "plugins": [
            {"type": PLUGIN, "socket": str(host.state / "cni.sock"), "capabilities": {"portMappings": True}},
        ],
    }
    assert set(host.written["cniVersions"]) <= set(SUPPORTED_VERSIONS)
    assert (host.bin / PLUGIN).read_bytes() == host.binary.read_bytes()
    assert host.files() == [NAME, PLUGIN]
    assert not host.installer().install()  # as it is


def test_what_is_written_has_the_mode_it_is_to_have(host: Host) -> None:
    """Lesson 22: an installer left a setuid binary."""
    old = os.umask(0)
    try:
        host.installer().install()
        for path, mode in ((host.bin / PLUGIN, 0o755), (host.conf / NAME, 0o600)):
            assert stat.S_IMODE(path.stat().st_mode) == mode
            path.chmod(0o6777)
        assert host.installer().install()
        assert stat.S_IMODE((host.bin / PLUGIN).stat().st_mode) == 0o755
        assert stat.S_IMODE((host.conf / NAME).stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_links_are_replaced_and_not_followed(host: Host, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    host.bin.mkdir()
    for path in (host.bin / PLUGIN, host.conf / NAME):
        path.symlink_to(tmp_path / "precious")
    host.installer().install()
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (host.bin / PLUGIN).is_symlink()


def test_a_reader_never_sees_half_a_file(host: Host) -> None:
    """The binary changes with each version while runtimes run it, the configuration while they look for it."""
    seen: set[bytes] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            for path in (host.bin / PLUGIN, host.conf / NAME):
                with suppress(FileNotFoundError):
                    seen.add(path.read_bytes()[:4])
            assert {p.name for p in host.conf.iterdir() if p.suffix in (".conf", ".conflist", ".json")} <= {NAME}

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(60):
        host.binary.write_bytes(b"\x7fELF" + bytes([number]) * 100_000)
        (host.conf / NAME).unlink(missing_ok=True)
        host.installer().install()
    over.set()
    thread.join()
    assert seen <= {b"\x7fELF", b"{\n  "}


def test_one_alone(host: Host) -> None:
    host.installer(conf=False).install()
    assert host.files() == [PLUGIN]
    host.installer(binary=False).install()
    assert host.files() == [NAME, PLUGIN]
    assert not host.installer(conf=False, binary=False).install()


def test_a_plugin_that_was_not_built(host: Host) -> None:
    host.binary.unlink()
    with pytest.raises(NotInstalled, match=r"agent\.cni\.build"):
        host.installer().install()
    assert NAME not in host.files()  # a runtime would be ready without a plugin


def test_a_folder_that_cannot_be_written(host: Host) -> None:
    host.bin.write_text("a file")
    with pytest.raises(NotInstalled, match="--cni-bin-dir"):
        host.installer().install()
    assert [p.name for p in host.conf.iterdir()] == []


def test_others_are_told_of_and_left_alone(host: Host) -> None:
    for name in ("00-first.conf", "10-flannel.conflist", "99-loopback.json", "README", ".05-x.conflist.tmp"):
        (host.conf / name).write_text("{}")
    installer = host.installer()
    installer.install()
    (ahead,) = installer.ahead()
    assert ahead.startswith("00-first.conf: runtimes use it")
    assert installer.others() == ["10-flannel.conflist", "99-loopback.json"]
    assert len(list(host.conf.iterdir())) == 6


FLANNEL = {
    "cniVersion": "0.3.1",
    "name": "cbr0",
    "disableCheck": True,
    "plugins": [{"type": "flannel", "delegate": {"isDefaultGateway": True}}, {"type": "portmap"}],
}


def test_behind_another_plugin(host: Host) -> None:
    (host.conf / "10-flannel.conflist").write_text(json.dumps(FLANNEL))
    host.installer("10-flannel.conflist").install()
    entry = {"type": PLUGIN, "socket": str(host.state / "cni.sock"), "capabilities": {"portMappings": True}}
    assert host.written == {**FLANNEL, "plugins": [*FLANNEL["plugins"], entry]}  # type: ignore[misc]
    assert host.installer("10-flannel.conflist").others() == []


def test_behind_a_single_plugin(host: Host) -> None:
    bridge = {"cniVersion": "1.0.0", "name": "net", "type": "ptp", "ipam": {"type": "host-local"}}
    (host.conf / "10-ptp.conf").write_text(json.dumps(bridge))
    host.installer("10-ptp.conf").install()
    assert (host.written["name"], host.written["cniVersion"]) == ("net", "1.0.0")
    assert host.written["plugins"][0] == {"type": "ptp", "ipam": {"type": "host-local"}}
    assert host.written["plugins"][1]["type"] == PLUGIN


def test_it_is_not_put_in_twice(host: Host) -> None:
    (host.conf / "10-own.conflist").write_text(json.dumps({**FLANNEL, "plugins": [{"type": "ptp"}, {"type": PLUGIN}]}))
    host.installer("10-own.conflist").install()
    assert [p["type"] for p in host.written["plugins"]] == ["ptp", PLUGIN]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("{", "no CNI configuration"),
        ("[]", "no CNI configuration"),
        ("{}", "no plugins"),
        ('{"cniVersion": "1.0.0", "plugins": []}', "no plugins"),
        ('{"cniVersion": "1.0.0", "plugins": [1]}', "no plugins"),
        ('{"cniVersion": "0.2.0", "plugins": [{"type": "x"}]}', "0.2.0"),
    ],
)
def test_a_chain_that_cannot_be_used(text: str | None, said: str, host: Host) -> None:
    if text is not None:
        (host.conf / "10-x.conflist").write_text(text)
    with pytest.raises(NotInstalled, match=said):
        host.installer("10-x.conflist").install()
    assert NAME not in host.files()


# ---- gone again


def test_both_go(host: Host) -> None:
    host.installer().install()
    (host.conf / "10-other.conflist").write_text("{}")
    assert uninstall(host.state) == [str(host.conf / NAME), str(host.bin / PLUGIN)]
    assert host.files() == ["10-other.conflist"]
    assert list(host.state.iterdir()) == []
    assert uninstall(host.state) == []


def test_the_plugin_stays_while_runtimes_have_to_delete_pods(host: Host) -> None:
    host.installer().install()
    (host.state / "attachments").mkdir()
    (host.state / "attachments" / "c1@eth0.json").write_text("{}")
    assert uninstall(host.state) == [str(host.conf / NAME)]
    assert host.files() == [PLUGIN]


def test_another_agents_configuration_stays(host: Host, tmp_path: Path) -> None:
    host.installer().install()
    other = tmp_path / "other"
    other.mkdir()
    Installer(other, str(host.conf), "", "", host.binary).install()
    assert uninstall(host.state) == [str(host.bin / PLUGIN)]
    assert host.files() == [NAME]


def test_a_note_that_cannot_be_read(host: Host) -> None:
    (host.state / "cni.json").write_text("{")
    assert uninstall(host.state) == []
