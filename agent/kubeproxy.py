"""Whether kube-proxy runs beside this agent, or has left its rules: then services would be translated twice.

Known by what no other software has: the chain KUBE-SERVICES (mode iptables), the nftables table kube-proxy (mode
nftables), the device kube-ipvs0 (mode ipvs), and the ports of its health check and metrics. Asked of the kernel itself,
for neither `iptables` nor `nft` need be installed.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from agent import log as logs
from agent.config import Config, listen_address
from agent.endpoints.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, TIMEOUT_S, text

LOOK_S = 30.0
CHAIN, TABLE, DEVICE = "KUBE-SERVICES", "kube-proxy", "kube-ipvs0"
PORTS = (10256, 10249)
"""Of its health check and its metrics."""

# linux/netfilter/nfnetlink.h, nf_tables.h
_NETLINK_NETFILTER, _SUBSYSTEM = 12, 10 << 8
_GET_TABLE, _GET_CHAIN, _TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME = 1, 4, 1, 1, 3
_FAMILIES = {2: "ip", 10: "ip6"}
_HEADER = struct.Struct("=IHHII")
# linux/netfilter_ipv4/ip_tables.h; for IPv6 the numbers are the same
_GET_INFO, _GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32s13I")  # table, hooks, their offsets twice, how many rules, how many bytes of them
_LISTEN = "0A"

_libc = ctypes.CDLL(None, use_errno=True)
log = logs.get("kube-proxy")


class Watch:
    """`problem`: one sentence, empty where there is no kube-proxy. In the calling thread's network namespace."""

    def __init__(self, config: Config) -> None:
        self.problem = ""
        self._own_port = listen_address("healthz", config.healthz)[1] if config.healthz else 0

    def look(self) -> None:
        before, self.problem = self.problem, sentence(signs({self._own_port}))
        if self.problem and self.problem != before:
            log.warning("another service proxy", problem=self.problem)
        elif before and not self.problem:
            log.info("kube-proxy is gone")

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self.look)


def sentence(found: Iterable[str]) -> str:
    listed = ", ".join(found)
    if not listed:
        return ""
    return (
        f"kube-proxy runs here, too, or has left its rules ({listed}); both translate services: delete its DaemonSet "
        "(`kubectl -n kube-system delete daemonset kube-proxy`), then run `kube-proxy --cleanup` on this node"
    )


def signs(own_ports: Iterable[int] = ()) -> list[str]:
    """What tells of kube-proxy; `own_ports` are known to be somebody else's."""
    found = [f"iptables chain {CHAIN}"] if any(_legacy_chains()) or any(_nft(_GET_CHAIN)) else []
    found += [f"nftables table {family} {TABLE}" for family in _nft(_GET_TABLE)]
    found += [f"device {DEVICE}" for _, name in socket.if_nameindex() if name == DEVICE]
    tables = "".join(_read(Path("/proc/thread-self/net") / name) for name in ("tcp", "tcp6"))
    return found + [f"a listener on port {port}" for port in sorted(listening(tables) & {*PORTS} - {*own_ports})]


def listening(table: str) -> set[int]:
    """Ports at which somebody listens, of the text of /proc/net/tcp (proc(5)), with or without its heading."""
    fields = (line.split() for line in table.splitlines())
    return {int(words[1].rpartition(":")[2], 16) for words in fields if len(words) > 3 and words[3] == _LISTEN}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


# ---- nftables, and iptables on top of it ---------------------------------------------------------------------


def _nft(kind: int) -> list[str]:
    """Families that have kube-proxy's table, or its chain in the table nat."""
    try:
        netfilter = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            raise
        return []
    with netfilter:
        netfilter.settimeout(TIMEOUT_S)
        return [name for number, name in _FAMILIES.items() if _nft_has(netfilter, number, kind)]


def _nft_has(netfilter: socket.socket, family: int, kind: int) -> bool:
    names = text(_TABLE_NAME, TABLE) if kind == _GET_TABLE else text(_CHAIN_TABLE, "nat") + text(_CHAIN_NAME, CHAIN)
    body = struct.pack("!BBH", family, 0, 0) + names
    netfilter.send(_HEADER.pack(_HEADER.size + len(body), _SUBSYSTEM | kind, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body)
    while True:
        data = netfilter.recv(1 << 16)
        while len(data) >= _HEADER.size:
            length, answer, _, _, _ = _HEADER.unpack_from(data)
            if answer == NLMSG_ERROR:  # of a request that succeeded it says 0; all else: there is none
                return bool(struct.unpack_from("=i", data, _HEADER.size)[0] == 0)
            data = data[(length + 3) & ~3 :]


# ---- iptables as it was ----------------------------------------------------------------------------------------


def _legacy_chains() -> Iterator[str]:
    """Families whose table nat, if it is in use, has kube-proxy's chain."""
    levels = (
        ("ip_tables_names", socket.AF_INET, socket.IPPROTO_IP, "ip"),
        ("ip6_tables_names", socket.AF_INET6, socket.IPPROTO_IPV6, "ip6"),
    )
    for names, family, level, name in levels:
        if "nat" not in _read(Path("/proc/thread-self/net") / names).split():
            continue  # asking would make the kernel load it
        with suppress(OSError), socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as raw:
            if f"{CHAIN}\0".encode() in _legacy_rules(raw, level, b"nat"):
                yield name


def _legacy_rules(raw: socket.socket, level: int, table: bytes) -> bytes:
    """All rules of a table as the kernel holds them; a chain of the user's begins with one that names it."""
    info = ctypes.create_string_buffer(_INFO.pack(table, *bytes(13)), _INFO.size)
    _getsockopt(raw, level, _GET_INFO, info)
    size = _INFO.unpack(info.raw)[-1]
    entries = ctypes.create_string_buffer(struct.pack("=32sI4x", table, size), 40 + size)
    _getsockopt(raw, level, _GET_ENTRIES, entries)
    return entries.raw[40:]


def _getsockopt(raw: socket.socket, level: int, option: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    length = ctypes.c_uint32(len(buffer))
    if _libc.getsockopt(raw.fileno(), level, option, buffer, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
