"""Who attaches a network waits until the pod's policy is in force on it, and hears if it never will be."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import msgspec
import pytest
from worlds import CONFIG, ORIGIN

from agent.attaching import Attaching
from agent.objects import Change, Interface, Pod
from agent.pods import PodGone
from agent.world.world import World
from policies.address import parse_address
from policies.model import ObjectRef

WEB = ObjectRef("Pod", "shop", "web")
ADDRESS = parse_address("10.1.0.7")
INTERFACE = Interface(7, "gh7", b"\x02" * 6, b"\x04" * 6, "/run/netns/web")


def attached_world() -> World:
    return World(msgspec.structs.replace(CONFIG, attached=True))


def test_who_attaches_waits_for_the_pods_identity() -> None:
    async def run() -> None:
        world = attached_world()
        attaching = Attaching(world, Mock())
        asking = asyncio.create_task(attaching.attach(WEB, (ADDRESS,), INTERFACE))
        await asyncio.sleep(0)
        assert attaching.take(16).refs == [WEB]
        world.apply(Change(WEB, Pod(WEB, ORIGIN, {}, node=CONFIG.name)))
        attaching.settle()
        await asyncio.sleep(0)
        assert not asking.done(), "it has none yet"
        world.take_dirty()
        attaching.settle()
        await asking
        gone = asyncio.create_task(attaching.detach(WEB))
        await asyncio.sleep(0)
        taken = attaching.take(16)
        assert taken.addresses == {ADDRESS}
        await asyncio.sleep(0)
        assert not gone.done(), "not before the kernel has it"
        taken.in_force()
        await gone
        assert world.addresses_of(WEB) == ()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["deleted", "detached", "over"])
def test_who_attaches_hears_that_the_pod_is_gone(how: str) -> None:
    async def run() -> None:
        attaching = Attaching(attached_world(), Mock())
        asking = asyncio.create_task(attaching.attach(WEB, (ADDRESS,), INTERFACE))
        await asyncio.sleep(0)
        attaching.take(16)
        if how == "detached":
            leaving = asyncio.create_task(attaching.detach(WEB))
            await asyncio.sleep(0)
            attaching.take(16).in_force()
            await leaving
        elif how == "over":
            attaching.stop()
            with pytest.raises(PodGone, match="the agent stops"):
                await attaching.attach(WEB, (ADDRESS,), INTERFACE)
            await attaching.detach(WEB)
        else:
            attaching.settle()
        with pytest.raises(PodGone):
            await asking

    asyncio.run(run())
