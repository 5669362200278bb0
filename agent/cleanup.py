"""Everything an agent leaves outside its process, removed: what `gatehouse cleanup` does, and --remove-on-exit.

Works from any network namespace: a pod's interfaces and programs go with its network namespace, and the node's own is
looked for (agent.traces).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from agent import bigtcp, nodefiles, traces
from agent.cni import conflist
from agent.cni.attachments import Attachment, Attachments
from agent.cni.networks import Networks
from agent.cni.place import find, host_link
from agent.datapath import bpf, cgroup, network, xdp
from agent.datapath.programs import Programs
from agent.datapath.tc import Hooks, remove_empty_clsact
from agent.encryption import encryption
from agent.endpoints import cgroups, launch, links, namespaces, node
from agent.endpoints.netlink import NetlinkError, RouteSocket, is_gone
from agent.endpoints.sandbox import POD_LINK
from agent.helpers.names import Name
from agent.helpers.order import withdraw
from agent.instance import Instance
from agent.lock import lock
from agent.proxy import routing as proxy_routing
from agent.routing import routing as node_routing
from agent.supervisor import end_listener

FILES = (
    "agent.sock",
    "flows.sock",
    "state.json*",
    ".state.json.new",
    "last-good",
    "pods",
    "node.json",
    "bigtcp.json",
    "encrypting",
    "traces.json",
    "envoy",
    "dns.sock",
    "dns.json",
    "names.json*",
    "*.helper.json",
    "*.log",
    "agent.lock",
    "attachments",
    "cni-queue",
    "cni.sock",
    "objects.db*",
    "audit.jsonl",
    "wireguard",
    "blocks.json",
    ".blocks.json.new",
)

REMOVED_GROUP = 0x6761
"""Device group, in a pod's namespace, of the link that goes."""


def clean(instance: Instance) -> dict[str, int]:
    """What was removed, and how many of each. Raises lock.Taken while the agent runs, mounts.Unmet without bpffs."""
    if not instance.state_dir.is_dir():
        return remove(instance)
    held = lock(instance.state_dir)
    try:
        return remove(instance)
    finally:
        os.close(held)


def remove(instance: Instance) -> dict[str, int]:
    """The same, for who holds the lock."""
    namespaces.join_machine_mounts()
    found = traces.read(instance.traces)
    removed = {
        "flows process": int(_end(instance, Name.FLOWS, instance.flows_socket)),
        "proxies": int(_end(instance, Name.ENVOY, instance.envoy_socket))
        + int(_end(instance, Name.DNS, instance.dns_socket)),
        "CNI files": len(conflist.uninstall(instance.state_dir)),
        "containers": _end_containers(instance.pods),
        "network namespaces": _remove_namespaces(instance.short_name),
        **_leave_node(instance, found),
        "XDP programs": _detach_xdp(instance),
        "socket programs": _detach_sockets(instance, found),
        "cgroups": int(cgroups.remove_tree(cgroup.folder_of(instance.name))),
        "pins": _remove_pins(instance),
        "node files": int(nodefiles.remove(instance.state_dir / nodefiles.NOTE)),
    }
    for pattern in FILES:
        for path in instance.state_dir.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    if instance.state_dir.is_dir() and not any(instance.state_dir.iterdir()):
        instance.state_dir.rmdir()
    instance.forget()
    return {what: count for what, count in removed.items() if count}


def _end(instance: Instance, helper: Name, socket: Path) -> bool:
    """Whoever runs it: a container that is to run nothing waits, and does not start it again."""
    return withdraw(instance.order(helper)) or end_listener(socket)


def _end_containers(pods: Path) -> int:
    leaders = list(_running(pods))
    launch.kill_sessions(leaders)
    return len(leaders)


def _running(pods: Path) -> Iterator[int]:
    for pid_file in pods.glob("*/*/*.pid"):
        process = launch.read_pid_file(pid_file)
        if process is not None and (descriptor := launch.open_running(process)) is not None:
            os.close(descriptor)
            yield process.pid


def _remove_namespaces(short_name: str) -> int:
    names = namespaces.list_names(short_name)
    launch.kill_in_netns({inode for inode in map(namespaces.inode_of, names) if inode})
    for name in names:
        _disconnect(name)
        namespaces.take_name(name)
    return len(names)


def _disconnect(name: str) -> None:
    """Delete the veth from inside: whoever still holds the namespace open does not hold the node's side with it."""
    netns = namespaces.open_name(name)
    if netns is None:
        return
    try:
        with namespaces.entered(netns), RouteSocket() as inside:
            index = links.read_link(inside.request(links.get_link(POD_LINK))[0]).ifindex
            inside.request(links.set_group(index, REMOVED_GROUP), links.delete_group(REMOVED_GROUP))
    except NetlinkError as error:
        if not is_gone(error):
            raise
    finally:
        os.close(netns)


def _leave_node(instance: Instance, found: traces.Traces | None) -> dict[str, int]:
    """What was taken off the node's network. A namespace that is gone has taken it along."""
    netns = traces.open_namespace(found) if found else namespaces.open_current()
    if netns is None:
        return {}
    try:
        with namespaces.entered(netns):
            attached = _attachments(instance)
            node.restore(instance.node, forwards=any(one.chained for one in attached))
            was_big = instance.big_tcp.exists()
            bigtcp.restore(instance.big_tcp)
            if found is None:
                return {}
            return {
                "pods' links": _remove_links(attached),
                "links of other plugins": _leave_links(attached, was_big),
                "devices": network.detach_all(_map_ids(instance)),
                "routes to proxies": proxy_routing.remove(),
                "routes to other nodes": node_routing.remove(),
                "WireGuard devices": int(encryption.remove(instance)),
            }
    finally:
        os.close(netns)


def _remove_links(attached: Sequence[Attachment]) -> int:
    """Of pods whose sandboxes a runtime made, and has not ended yet."""
    networks = Networks()
    try:
        own = (one for one in attached if not one.chained)
        return sum(networks.disconnect(host_link(one.addresses)) for one in own)
    finally:
        networks.close()


def _leave_links(attached: Sequence[Attachment], was_big: bool) -> int:
    """Of pods whose links another CNI plugin made: without the programs, which would let nothing pass any more."""
    adopted = [one.interface for one in attached if one.chained and one.interface]
    with RouteSocket() as route, Hooks(Programs("", {})) as hooks:
        there = [one.index for one in adopted if (link := find(route, one.name)) and link.ifindex == one.index]
        ours = {one.ifindex for one in hooks.attached(there)}
        for index in ours:
            hooks.detach(index)
            remove_empty_clsact(route, index)
    for one in adopted if was_big else ():
        with suppress(OSError):  # it is gone
            bigtcp.lower(one)
    return len(ours)


def _attachments(instance: Instance) -> list[Attachment]:
    """What runtimes have had attached."""
    folder = instance.state_dir / "attachments"
    if not folder.is_dir():
        return []
    record = Attachments(folder)
    record.load()
    return list(record)


def _map_ids(instance: Instance) -> frozenset[int]:
    """The kernel's numbers of the maps that are pinned, of all versions."""
    found = set()
    for path in instance.pins.root.glob("maps-*/*"):
        fd = bpf.open_pinned(path)
        found.add(bpf.map_info(fd).id)
        os.close(fd)
    return frozenset(found)


def _detach_xdp(instance: Instance) -> int:
    folder = instance.pins.links
    return sum(xdp.detach(folder, ifindex) for ifindex in xdp.attached(folder))


def _detach_sockets(instance: Instance, found: traces.Traces | None) -> int:
    own = cgroup.folder_of(instance.name)
    folders = {own, *map(Path, found.cgroups if found else ())}
    return sum(cgroup.detach(folder, instance.pins) for folder in sorted(folders))


def _remove_pins(instance: Instance) -> int:
    pins = instance.pins
    count = sum(1 for path in pins.root.rglob("*") if path.is_file())
    pins.remove()
    return count
