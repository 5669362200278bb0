"""What a process with reduced privileges can do, and cannot."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rig

from agent.privileges import (
    NET_RAW,
    ROOT,
    USER,
    hindrance,
    make_folder,
    own_folder,
    reduced,
    share,
    user_for,
)

pytestmark = pytest.mark.usefixtures("root")

SPEAKS = """
import json, os, socket
found = {}
def attempt(what, function):
    try:
        function()
        found[what] = True
    except OSError as error:
        found[what] = error.strerror
def transparent(family, level, option, address):
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.setsockopt(level, option, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x6a7e0002)
        made.bind((address, 0))
attempt("v4", lambda: transparent(socket.AF_INET, socket.SOL_IP, 19, "198.51.100.9"))
attempt("v6", lambda: transparent(socket.AF_INET6, socket.IPPROTO_IPV6, 75, "2001:db8:100::9"))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close())
attempt("low port", lambda: socket.create_server(("127.0.0.1", 53)).close())
attempt("device", lambda: socket.if_nameindex() and open("/proc/sys/net/ipv4/ip_forward", "w").write("1"))
attempt("root again", lambda: os.setuid(0))
attempt("shadow", lambda: open("/etc/shadow").close())
print(json.dumps(found))
"""
STATE = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
shown = ("Uid", "NoNewPrivs", "Groups", *(name for name in status if name.startswith("Cap")))
print(json.dumps({name: status[name].strip() for name in shown}))
"""


def run(netns: rig.Netns, code: str, user: int = USER, **options: Any) -> dict[str, object]:
    found = netns.run(*reduced(user), sys.executable, "-S", "-c", code, **options).stdout
    return dict(json.loads(found))


def test_it_may_speak_with_others_addresses_and_nothing_else() -> None:
    assert hindrance() == ""
    with rig.Netns("reduced") as netns:
        found = run(netns, SPEAKS)
    assert (found.pop("v4"), found.pop("v6"), found.pop("raw")) == (True, True, True)
    assert all(result is not True for result in found.values()), found


@pytest.mark.parametrize("user", [USER, 0])
def test_one_capability_is_left_in_every_set_and_none_can_be_had_again(user: int) -> None:
    with rig.Netns("reduced") as netns:
        found = run(netns, STATE, user)
    assert found.pop("Uid") == "\t".join([str(user)] * 4)
    assert found.pop("Groups") == ""
    assert found.pop("NoNewPrivs") == "1"
    assert {int(str(bits), 16) for bits in found.values()} == {1 << NET_RAW}


def test_the_command_line_is_that_of_the_command() -> None:
    """By which a supervisor knows what it has started."""
    process = subprocess.Popen([*reduced(), "sleep", "60"])
    try:
        shown = rig.wait_until(lambda: (found := _command_line(process.pid))[:1] == [b"sleep"] and found)
        assert shown == [b"sleep", b"60"]
    finally:
        process.kill()
        process.wait()


def test_a_shared_socket_is_reached_from_its_folder_by_the_group_alone(tmp_path: Path) -> None:
    """pytest's folders are root's alone: as started in the folder, the user need not come by way of them."""
    folder = tmp_path / "envoy"
    make_folder(folder)
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        for name, made in (("shared.sock", one), ("own.sock", other)):
            made.bind(str(folder / name))
            made.listen()
            (folder / name).chmod(0o600)
        share(folder / "shared.sock")
        own_folder(folder / "admin")
        code = """
import json, socket
found = {}
for name in ("shared.sock", "own.sock"):
    try:
        socket.socket(socket.AF_UNIX).connect(name)
        found[name] = True
    except PermissionError:
        found[name] = False
socket.socket(socket.AF_UNIX).bind("admin/envoy.sock")
try:
    socket.socket(socket.AF_UNIX).bind("own.sock.new")
except PermissionError:
    found["may make"] = False
print(json.dumps(found))
"""
        with rig.Netns("reduced") as netns:
            found = run(netns, code, cwd=str(folder))
    assert found == {"shared.sock": True, "own.sock": False, "may make": False}
    assert (folder / "admin" / "envoy.sock").stat().st_uid == USER
    assert (folder.stat().st_mode & 0o777, (folder / "admin").stat().st_mode & 0o777) == (0o750, 0o700)


def _command_line(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]


def test_a_program_out_of_its_reach_is_run_as_root(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    for mode in (0o755, 0o700):
        program.chmod(mode)
        tmp_path.chmod(0o755)
        assert user_for(program) == ROOT, "pytest's own folder is root's alone"
    assert user_for(Path("/bin/sh")) == USER
