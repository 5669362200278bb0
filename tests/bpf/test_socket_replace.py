"""Programs replaced while processes connect: no call passes between the old and the new one."""

from __future__ import annotations

import itertools
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from frames import TCP, UDP
from map_content import Frontend
from socket_site import BACKEND_PORT, Site, sockaddr

from agent.datapath import cgroup
from agent.datapath.abi import bpf_dir
from agent.datapath.programs import SOCKET_PROGRAMS, ensure_loaded

REPLACEMENTS = 40
CALLS = 300


def another_version(folder: Path) -> Path:
    shutil.copytree(bpf_dir(), folder / "bpf")
    source = folder / "bpf/socket.c"
    source.write_text(source.read_text() + "\n/* another version */\n")
    return source


@pytest.mark.parametrize("shape", ["v4", "v6"])
def test_no_call_is_untranslated_while_programs_are_replaced(loaded_site: Site, shape: str, tmp_path: Path) -> None:
    site = loaded_site
    site.reset(4 if shape == "v4" else 6)
    for protocol in (TCP, UDP):
        site.frontend("web", 80, Frontend([("b", BACKEND_PORT)]), protocol)
    to, party = sockaddr("web", 80, shape), site.party("pod")
    replaced: list[int] = []
    stop = threading.Event()
    with ExitStack() as undo:
        other = undo.enter_context(ensure_loaded(site.maps, site.pins, another_version(tmp_path), SOCKET_PROGRAMS))
        undo.callback(cgroup.attach, site.folder, site.programs, site.pins)

        def replace() -> None:
            for programs in itertools.cycle((other, site.programs)):
                if stop.is_set():
                    return
                replaced.append(cgroup.attach(site.folder, programs, site.pins))

        thread = threading.Thread(target=replace)
        thread.start()
        try:
            for call in itertools.count():
                if call >= CALLS and len(replaced) >= REPLACEMENTS:
                    break
                with party.socket(shape, "tcp") as stream, party.socket(shape, "udp") as datagram:
                    stream.connect(to)
                    stream.send(b"?")
                    datagram.sendto(b"?", to)
                    heard = [stream.recv(100), *datagram.recvfrom(100)]
                    assert [heard[0].split()[0], heard[1].split()[0], heard[2][:2]] == [b"b", b"b", to]
                    assert stream.getpeername()[:2] == to
        finally:
            stop.set()
            thread.join()
        assert set(replaced) == {len(SOCKET_PROGRAMS)}
