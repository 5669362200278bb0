"""What CNI's commands do, on a node without a kernel: every order, every failure, a kill at every step."""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cni_node import CniNode, Kernel, Killed, pod, ref_of
from cni_plugin import config, environment
from coroutines import in_no_time, on_a_loop
from structlog.testing import capture_logs

from agent.cni.attachments import Attachment
from agent.cni.known import KnownPods
from agent.cni.place import host_link
from agent.cni.protocol import CniError, Key, PortMapping, frame_request
from agent.objects import DeclaredPort
from agent.pods import PodGone
from policies.address import Prefix, format_address, parse_address

ADD_STEPS = ["connect", "connected", "programs", "up", "ready", "stands", "attach", "published"]


def only(node: CniNode) -> Attachment:
    (found,) = node.record
    return found


@on_a_loop
async def test_an_add_goes_step_by_step(tmp_path: Path) -> None:
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(pod("web"))
    on_record: list[list[bool]] = []
    kernel.at = lambda step: on_record.append([one.interface is not None for one in node.record])
    body = json.loads(await node.add("web"))
    assert kernel.steps == ADD_STEPS
    assert on_record == [[False]] * 8  # on record before anything is built, complete once all of it is in force
    attachment = only(node)
    assert attachment.interface is not None
    assert [ip["address"].split("/")[0] for ip in body["ips"]] == [format_address(a) for a in attachment.addresses]
    assert body["interfaces"][1]["sandbox"] == attachment.netns
    assert node.world.attached == {ref_of("web"): attachment.addresses}
    state = node.pods.get(ref_of("web"))
    assert state is not None
    assert (state.state, node.pods.problem(ref_of("web"))) == ("ready", "")
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_a_deletion_frees_everything_and_may_be_repeated(tmp_path: Path) -> None:
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(pod("web"))
    await node.add("web")
    kernel.steps.clear()
    for _ in range(3):
        assert await node.ask("DEL", "c-web") == b""
    assert kernel.steps == ["detach", "disconnect"]  # nobody is known by the addresses before anybody may get them
    assert not node.world.attached
    assert await node.ask("DEL", "never-there", netns="") == b""
    assert not list(node.record)
    node.assert_clean()
    await node.end()


@pytest.mark.parametrize("step", ADD_STEPS)
@on_a_loop
async def test_an_add_that_fails_leaves_nothing(step: str, tmp_path: Path) -> None:
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(pod("web"))

    def fail(name: str) -> None:
        if name == step:
            raise PermissionError(1, f"no {step} today")

    kernel.at = fail
    with pytest.raises(CniError, match=f"no {step} today") as caught:
        await node.add("web")
    assert caught.value.code == 5
    assert node.pods.problem(ref_of("web")).endswith(f"no {step} today")
    assert not list(node.record)
    assert not node.world.attached
    node.assert_clean()
    kernel.at = lambda name: None
    await node.add("web")
    assert node.pods.problem(ref_of("web")) == ""
    node.assert_clean()
    await node.end()


@pytest.mark.parametrize("step", ADD_STEPS)
@on_a_loop
async def test_a_runtime_that_gives_up_leaves_nothing(step: str, tmp_path: Path) -> None:
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(pod("web"))
    loop = asyncio.get_running_loop()
    add = node.add("web")

    def give_up(name: str) -> None:
        if name == step:
            loop.call_soon_threadsafe(add.cancel)

    kernel.at = give_up
    later = None
    with pytest.raises(asyncio.CancelledError):
        later = asyncio.ensure_future(asyncio.sleep(0))
        await add
    assert later is not None
    await later
    assert not list(node.record)
    assert not node.world.attached
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_an_add_that_takes_too_long_is_undone_and_says_where_it_stood(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel(), add_s=0.05).begin(pod("web"))
    never = asyncio.Event()

    async def wait(ref: object) -> None:
        await never.wait()

    node.publish = wait
    node.unreachable = "the API server cannot be reached since 10:00"
    with pytest.raises(CniError, match=r"other nodes to be told.*since 10:00") as caught:
        await node.add("web")
    assert caught.value.code == 11
    assert not list(node.record)
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_a_removal_that_fails_is_told_and_can_be_repeated(tmp_path: Path) -> None:
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(pod("web"))
    await node.add("web")

    def fail(name: str) -> None:
        if name == "disconnect":
            raise OSError(16, "busy")

    kernel.at = fail
    with pytest.raises(CniError, match="busy"):
        await node.ask("DEL", "c-web")
    assert only(node).addresses == node.ipam.held()[Key("c-web", "eth0")]  # nobody else gets them
    kernel.at = lambda name: None
    await node.ask("DEL", "c-web")
    assert not list(node.record)
    node.assert_clean()
    await node.end()


# ---- killed


@pytest.mark.parametrize("verb", ["ADD", "DEL", "ADD after its DEL"])
@on_a_loop
async def test_killed_at_every_step_and_write_nothing_leaks(verb: str, tmp_path: Path) -> None:
    """The next agent finds what was complete, and removes the rest; what a runtime then does anyhow goes well."""
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        kernel = Kernel()
        node = await CniNode(folder, kernel).begin(pod("web"), pod("other"))
        await node.add("other")
        if verb != "ADD":
            await node.add("web")
        if verb == "ADD after its DEL":
            await node.ask("DEL", "c-web")
        countdown = _kill_at(node, kernel, number)
        work = node.ask("DEL", "c-web") if verb == "DEL" else node.add("web")
        await asyncio.wait({work})
        was_killed = work.cancelled() or isinstance(work.exception(), Killed)
        kernel.at = lambda name: None
        following = await CniNode(folder, kernel).begin(pod("web"), pod("other"))
        following.assert_clean()
        assert following.record.get(Key("c-other", "eth0")) is not None
        assert set(following.world.attached) == {one.pod for one in following.record}
        await following.ask("DEL", "c-web")
        await following.add("web")
        assert len(following.record) == 2
        following.assert_clean()
        await following.end()
        if not was_killed:
            assert countdown() >= 0
            break
    else:
        pytest.fail("it never came to its end")
    assert number == {"DEL": 3, "ADD": 12, "ADD after its DEL": 12}[verb]


def _kill_at(node: CniNode, kernel: Kernel, number: int) -> Callable[[], int]:
    """The process ends at the numbered step: neither that nor any other has an effect from then on."""
    left = number

    def count(name: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    kernel.at = count
    write, remove = node.record.write, node.record.remove

    def counted_write(attachment: Attachment) -> None:
        count("write")
        write(attachment)
        count("was written")

    def counted_remove(key: Key) -> None:
        count("remove")
        remove(key)

    node.record.write = counted_write  # type: ignore[method-assign]
    node.record.remove = counted_remove  # type: ignore[method-assign]
    return lambda: left


@on_a_loop
async def test_what_lost_its_namespace_or_link_goes_at_the_start(tmp_path: Path) -> None:
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(*map(pod, "abc"))
    for name in "abc":
        await node.add(name)
    await node.end()
    (tmp_path / "netns-c-a").unlink()
    lost = node.record.get(Key("c-b", "eth0"))
    assert lost is not None
    del kernel.links[host_link(lost.addresses)]
    following = await CniNode(tmp_path, kernel).begin(*map(pod, "abc"))
    assert [one.key.container_id for one in following.record] == ["c-c"]
    following.assert_clean()
    await following.end()


@on_a_loop
async def test_a_damaged_file_is_put_aside_and_the_others_hold(tmp_path: Path) -> None:
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(pod("a"), pod("b"))
    await node.add("a")
    await node.add("b")
    await node.end()
    (tmp_path / "attachments" / "c-a@eth0.json").write_text('{"key"')
    (tmp_path / "attachments" / ".c-b@eth0.json").write_text("half")
    following = await CniNode(tmp_path, kernel).begin(pod("a"), pod("b"))
    assert [one.key.container_id for one in following.record if not one.recovered] == ["c-b"]
    assert "c-a@eth0.json" in following.pods.notices[0]
    await following.end()


# ---- the API server and the runtime, in any order


@on_a_loop
async def test_an_add_waits_for_its_pod(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin()
    add = node.add("web")
    while not node.pods._known._told:  # it is waiting
        await asyncio.sleep(0)
    assert not node.kernel.steps
    node.tell(pod("web"))
    await add
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_an_add_waits_for_the_new_pod_of_that_name(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web", "old"))
    await node.add("web", "c-old", uid="old")
    add = node.add("web", "c-new", uid="new")
    await asyncio.sleep(0.02)
    assert not add.done()
    node.tell(pod("web", "new"))
    await add
    new = node.record.get(Key("c-new", "eth0"))
    assert new is not None
    assert node.world.attached == {ref_of("web"): new.addresses}
    await node.ask("DEL", "c-old")  # as a runtime does late, and more than once
    assert node.world.attached == {ref_of("web"): new.addresses}
    node.assert_clean()
    await node.end()


@pytest.mark.parametrize(
    ("known", "unreachable", "said"),
    [
        (None, "the API server cannot be reached since 10:00", "since 10:00"),
        (None, "", "whether the pod still exists"),
        (pod("web", "old"), "", "uid old"),
    ],
)
@in_no_time
async def test_a_pod_nobody_told_of(known: object, unreachable: str, said: str) -> None:
    pods = KnownPods(lambda: unreachable)
    if known is not None:
        pods.tell(pod("web", "old"))
    with pytest.raises(CniError, match=said) as caught:
        await pods.wait_for(ref_of("web"), "u1")
    assert caught.value.code == 11
    assert "shop/web" in str(caught.value)


@on_a_loop
async def test_a_new_sandbox_of_the_same_pod_takes_over(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    await node.add("web", "c-1")
    await node.add("web", "c-2")
    await node.ask("DEL", "c-1")
    assert node.world.attached == {ref_of("web"): only(node).addresses}
    assert only(node).key.container_id == "c-2"
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_a_pod_that_is_gone_is_known_by_no_address_and_its_link_stays_for_its_del(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    await node.add("web")
    node.drop("web")
    await node.pods.settled()
    assert not node.world.attached
    assert len(node.kernel.links) == 1
    node.tell(pod("web", "another"))  # a StatefulSet's: the address is not this one's
    await node.pods.settled()
    assert not node.world.attached
    await node.ask("DEL", "c-web")
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_a_pod_replaced_under_its_name_is_not_known_by_the_old_address(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    await node.add("web")
    node.tell(pod("web", "another"))
    await node.pods.settled()
    assert not node.world.attached
    await node.end()


@on_a_loop
async def test_a_pod_deleted_during_its_add(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    loop = asyncio.get_running_loop()

    def drop(name: str) -> None:
        if name == "published":
            loop.call_soon_threadsafe(node.drop, "web")

    node.kernel.at = drop
    with pytest.raises(CniError, match="deleted") as caught:
        await node.add("web")
    assert caught.value.code == 11
    assert not list(node.record)
    await node.pods.settled()
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_a_network_that_stood_before_its_pod_was_known(tmp_path: Path) -> None:
    """The agent starts without the API server and hears of the pod later."""
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(pod("web"))
    await node.add("web")
    await node.end()
    following = await CniNode(tmp_path, kernel).begin()
    assert not following.world.attached
    following.tell(pod("web"))
    await following.pods.settled()
    assert following.world.attached == {ref_of("web"): only(following).addresses}
    state = following.pods.get(ref_of("web"))
    assert state is not None
    assert state.state == "ready"
    await following.end()


@on_a_loop
async def test_a_network_of_nobody_is_guarded_from_the_start(tmp_path: Path) -> None:
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(pod("web"))
    await node.add("web")
    interface = only(node).interface
    assert interface is not None
    await node.end()
    following = await CniNode(tmp_path, kernel).begin()
    assert following.programs == {interface.index}
    await following.end()


@on_a_loop
async def test_so_is_what_a_pod_has_of_an_earlier_sandbox(tmp_path: Path) -> None:
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(pod("web"))
    await node.add("web", "c-1")
    await node.add("web", "c-2")
    await node.end()
    following = await CniNode(tmp_path, kernel).begin(pod("web"))
    assert following.programs == {one.interface.index for one in following.record if one.interface}
    assert len(following.programs) == 2
    await following.end()


@on_a_loop
async def test_a_pod_told_of_while_its_network_goes_does_not_get_it_back(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    await node.add("web")
    loop = asyncio.get_running_loop()

    def tell(name: str) -> None:
        if name == "disconnect":
            asyncio.run_coroutine_threadsafe(told(), loop).result()

    async def told() -> None:
        node.drop("web")
        node.tell(pod("web"))
        await node.pods.settled()

    node.kernel.at = tell
    await node.ask("DEL", "c-web")
    await node.pods.settled()
    assert not node.world.attached
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_a_pod_of_the_nodes_network_gets_none(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web", host_network=True))
    with pytest.raises(CniError) as caught:
        await node.add("web")
    assert caught.value.code == 7
    assert [one.state for one in node.pods] == ["ready"]
    await node.end()


# ---- behind another plugin


PREVIOUS: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "veth-of-another"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
    "ips": [{"address": "10.1.0.5/24", "interface": 1, "gateway": "10.1.0.1"}],
}


@on_a_loop
async def test_behind_another_plugin_its_link_and_addresses_are_taken(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel(), chained=True).begin(pod("web"))
    assert json.loads(await node.add("web", previous=PREVIOUS)) == PREVIOUS
    assert node.kernel.steps == ["adopt", "programs", "ready", "stands", "attach", "published"]
    assert node.world.attached == {ref_of("web"): (parse_address("10.1.0.5"),)}
    assert await node.ask("CHECK", "c-web", previous=PREVIOUS) == b""
    await node.end()
    node = await CniNode(tmp_path, node.kernel, chained=True).begin(pod("web"))
    assert node.world.attached == {ref_of("web"): (parse_address("10.1.0.5"),)}
    await node.ask("DEL", "c-web")
    assert "disconnect" not in node.kernel.steps
    assert not list(node.record)
    assert not node.world.attached
    await node.end()


@on_a_loop
async def test_a_result_of_another_plugin_that_names_no_address(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel(), chained=True).begin(pod("web"))
    given: tuple[Any, ...] = (None, {"ips": []}, PREVIOUS | {"ips": [{"address": "10.1.0.1/24", "interface": 0}]})
    for previous in given:
        with pytest.raises(CniError, match="names no address") as caught:
            await node.add("web", previous=previous)
        assert caught.value.code == 7
    assert not list(node.record)
    await node.end()


# ---- repeats and other commands


@on_a_loop
async def test_a_second_add_is_an_error_until_a_del(tmp_path: Path) -> None:
    """CNI spec, ADD: an interface of that name that exists already MUST be an error."""
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    await node.add("web")
    before = only(node)
    with pytest.raises(CniError, match="exists already"):
        await node.add("web")
    assert only(node) == before
    node.kernel.links.clear()  # the machine was started anew, say: nobody will delete the old one
    await node.add("web")
    assert only(node).made_ns > before.made_ns
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_a_host_port_that_the_pod_does_not_declare_is_told_of(tmp_path: Path) -> None:
    served = DeclaredPort("", 6, 80, host_port=8080)
    node = await CniNode(tmp_path, Kernel()).begin(msgspec.structs.replace(pod("web"), ports=(served,)))
    with capture_logs() as said:
        asked = (PortMapping(8080, 80), PortMapping(9090, 90), PortMapping(0, 70))
        await node.add("web", port_mappings=asked)
    assert [one["port"] for one in said if "host port" in one["event"]] == [9090]
    await node.end()


@on_a_loop
async def test_a_second_interface_is_refused(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    await node.add("web")
    with pytest.raises(CniError, match="has eth0") as caught:
        await node.add("web", key=Key("c-web", "net1"))
    assert caught.value.code == 7
    await node.end()


@on_a_loop
async def test_check(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    with pytest.raises(CniError) as caught:
        await node.ask("CHECK", "c-web")
    assert caught.value.code == 3
    result = json.loads(await node.add("web"))
    assert await node.ask("CHECK", "c-web", previous=result) == b""
    interface = only(node).interface
    assert interface is not None
    result["ips"][0]["address"] = "10.9.9.9/32"
    node.kernel.wrong = ["eth0 is down"]
    node.programs.discard(interface.index)
    node.drop("web")
    with pytest.raises(CniError) as caught:
        await node.ask("CHECK", "c-web", previous=result, netns="/elsewhere")
    for said in ("eth0 is down", "programs", "nobody is known", "attached at", "1 addresses of prevResult"):
        assert said in caught.value.details
    await node.end()


@on_a_loop
async def test_gc_removes_what_is_not_listed(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(*map(pod, "abcd"))
    for name in "abc":
        await node.add(name)
    await node.add("d", network="another")
    await node.ask("GC", "", key=Key("", ""), valid=frozenset([Key("c-b", "eth0"), Key("c-x", "eth0")]))
    assert sorted(one.key.container_id for one in node.record) == ["c-b", "c-d"]
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_gc_goes_on_where_something_fails(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(*map(pod, "abc"))
    for name in "abc":
        await node.add(name)
    failures = iter([OSError(16, "busy")])

    def fail(name: str) -> None:
        if name == "disconnect" and (error := next(failures, None)):
            raise error

    node.kernel.at = fail
    with pytest.raises(CniError, match="busy"):
        await node.ask("GC", "", key=Key("", ""))
    assert len(node.record) == 1
    await node.ask("GC", "", key=Key("", ""))
    assert not list(node.record)
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_status(tmp_path: Path) -> None:
    node = CniNode(tmp_path, Kernel(), [Prefix.parse("10.0.0.0/30")])
    await node.pods.adopt([])
    with pytest.raises(CniError, match="starting") as caught:
        await node.ask("STATUS", "")
    assert caught.value.code == 50
    await node.begin(pod("a"), pod("b"))
    assert await node.ask("STATUS", "") == b""
    node.unready = "no programs"
    with pytest.raises(CniError, match="no programs"):
        await node.ask("STATUS", "")
    node.unready = ""
    await node.add("a")
    with pytest.raises(CniError, match="all 1 are in use") as caught:
        await node.add("b")
    assert caught.value.code == 11
    with pytest.raises(CniError, match="all 1 are in use"):
        await node.ask("STATUS", "")
    await node.ask("DEL", "c-a")
    assert await node.ask("STATUS", "") == b""
    await node.add("b")  # the very address that was given back, for there is no other
    node.assert_clean()
    await node.end()


# ---- the queue


def leave(folder: Path, container: str) -> None:
    (folder / "cni-queue").mkdir(exist_ok=True)
    env = environment("DEL", container)
    (folder / "cni-queue" / f"{container}@eth0").write_bytes(frame_request(env, config("/s")))


@on_a_loop
async def test_queued_deletions_are_done_before_anything_is_served(tmp_path: Path) -> None:
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel).begin(*map(pod, "abc"))
    for name in "abc":
        await node.add(name)
    await node.end()
    for container in ("c-a", "c-b", "unknown"):
        leave(tmp_path, container)
    (tmp_path / "cni-queue" / "junk@eth0").write_text("junk")
    (tmp_path / "cni-queue" / ".half@eth0.7").write_text("GHC1")
    (tmp_path / "cni-queue" / ".old@eth0.8").write_text("GHC1")
    os.utime(tmp_path / "cni-queue" / ".old@eth0.8", (1, 1))
    following = CniNode(tmp_path, kernel)
    add = following.add("a", "c-a")  # it waits for the queue, or its DEL would take it away
    await following.begin(*map(pod, "abc"))
    await add
    assert sorted(one.key.container_id for one in following.record) == ["c-a", "c-c"]
    assert [path.name for path in (tmp_path / "cni-queue").iterdir()] == [".half@eth0.7"]
    following.assert_clean()
    await following.end()


@on_a_loop
async def test_a_queued_deletion_is_not_about_a_later_attachment(tmp_path: Path) -> None:
    """The plugin was not answered in time, left its DEL, and the runtime began anew under the same id."""
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    leave(tmp_path, "c-web")
    await node.add("web")
    await node.verbs._take_queue()
    assert only(node).key.container_id == "c-web"
    assert not list((tmp_path / "cni-queue").iterdir())
    await node.end()


@on_a_loop
async def test_a_queued_deletion_that_fails_stays(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    await node.add("web")
    leave(tmp_path, "c-web")

    def fail(name: str) -> None:
        raise OSError(16, "busy")

    node.kernel.at = fail
    node.world.attached.clear()
    node.pods._told.clear()
    await node.verbs._take_queue()
    assert len(list((tmp_path / "cni-queue").iterdir())) == 1
    node.kernel.at = lambda name: None
    await node.verbs._take_queue()
    assert not list((tmp_path / "cni-queue").iterdir())
    node.assert_clean()
    await node.end()


# ---- many at once


@on_a_loop
async def test_many_at_once_in_any_order(tmp_path: Path) -> None:
    """ADDs, DELs, ADDs given up, pods that come and go; steps that fail; then every container is deleted."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    names = [f"p{number}" for number in range(12)]
    kernel = Kernel()
    node = await CniNode(tmp_path, kernel, add_s=5).begin(*map(pod, names))
    loop = asyncio.get_running_loop()
    failing = random.Random(rng.random())

    def fail(name: str) -> None:
        if name != "detach" and failing.random() < 0.03:
            raise OSError(16, f"{name} failed")

    kernel.at = fail
    work: list[asyncio.Task[bytes]] = []
    for _ in range(300):
        name = rng.choice(names)
        container = f"c-{name}-{rng.randrange(2)}"
        choice = rng.random()
        if choice < 0.5:
            work.append(node.add(name, container))
            if rng.random() < 0.3:
                loop.call_later(rng.random() * 0.01, work[-1].cancel)
        elif choice < 0.85:
            work.append(node.ask("DEL", container))
        elif choice < 0.92:
            node.drop(name)
            node.tell(pod(name))
        else:
            await asyncio.sleep(rng.random() * 0.01)
    await asyncio.wait(work)
    for task in work:
        if not task.cancelled() and (error := task.exception()):
            assert isinstance(error, CniError | PodGone), (seed, error)
    kernel.at = lambda name: None
    await node.pods.settled()
    addresses = [address for one in node.record for address in one.addresses]
    assert len(addresses) == len(set(addresses)), seed
    for one in node.record:
        await node.ask("DEL", one.key.container_id)
    await node.pods.settled()
    assert not list(node.record), seed
    assert not node.world.attached, seed
    node.assert_clean()
    await node.end()


@on_a_loop
async def test_one_that_fails_among_those_made_together_fails_alone(tmp_path: Path) -> None:
    names = ["first", "a", "b", "c"]
    node = await CniNode(tmp_path, Kernel()).begin(*map(pod, names))
    goes_on = threading.Event()

    def hold(step: str) -> None:
        if step == "connect":
            goes_on.wait(60)

    node.kernel.at = hold
    adds = [node.add(name) for name in names[:1]]
    while "connect" not in node.kernel.steps:
        await asyncio.sleep(0)
    adds += [node.add(name, netns=str(tmp_path / "nowhere") if name == "b" else node.netns(name)) for name in names[1:]]
    while len(list(node.record)) < len(names):
        await asyncio.sleep(0)
    goes_on.set()
    done = await asyncio.gather(*adds, return_exceptions=True)
    assert [isinstance(one, CniError) for one in done] == [False, False, True, False], done
    steps = node.kernel.steps
    ready, known = ([n for n, step in enumerate(steps) if step == name] for name in ("ready", "attach"))
    assert len(ready) == len(known) == 3 and max(ready) < known[1], "those two are made, and then told of together"
    assert {one.pod.name for one in node.record} == {"first", "a", "c"}
    await node.pods.settled()
    node.assert_clean()
    await node.end()
