"""Networks that a runtime makes for pods of this node, or takes down (CNI), on their way into the World."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from agent.objects import Interface
from agent.pods import PodGone
from agent.world.world import World
from policies.model import ObjectRef


class _Asked:
    """`interface` None: the pod's network is to be gone."""

    def __init__(
        self, ref: ObjectRef, addresses: tuple[bytes, ...] = (), interface: Interface | None = None, uid: str = ""
    ) -> None:
        self.ref = ref
        self.addresses = addresses
        self.interface = interface
        self.uid = uid
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, error: PodGone | None = None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


class Taken:
    """What the World has been told of. `refs`: the pods; `addresses`: those that may be free now."""

    def __init__(self, asked: Sequence[_Asked], addresses: set[bytes]) -> None:
        self.refs = [one.ref for one in asked]
        self.addresses = addresses
        self._asked = asked

    def in_force(self) -> None:
        """The kernel has it: who asked for a network to be gone need not wait any longer."""
        for one in self._asked:
            if one.interface is None:
                one.settle()


class Attaching:
    """`wake` is called when there is something to take. Who attached a network waits until the pod has an identity:
    until then it is denied everything."""

    def __init__(self, world: World, wake: Callable[[], None]) -> None:
        self._world = world
        self._wake = wake
        self._asked: deque[_Asked] = deque()
        self._unidentified: dict[ObjectRef, _Asked] = {}
        self._over = False

    def __len__(self) -> int:
        """How many are to be taken."""
        return len(self._asked)

    async def attach(self, ref: ObjectRef, addresses: tuple[bytes, ...], interface: Interface, uid: str = "") -> None:
        """A runtime gave the pod (that with this uid) this network. Returns once the kernel enforces the pod's policy
        on it; raises PodGone where the pod is gone, its network is detached meanwhile, or all is over."""
        await self._ask(_Asked(ref, addresses, interface, uid))

    async def detach(self, ref: ObjectRef) -> None:
        """The pod's network is to be gone. Returns once nobody is known by its addresses (or all is over)."""
        with suppress(PodGone):
            await self._ask(_Asked(ref))

    def take(self, most: int) -> Taken:
        """Tell the World of what was asked first. Once the kernel has it: `Taken.in_force`, and `settle`."""
        taken = [self._asked.popleft() for _ in range(min(len(self._asked), most))]
        freed: set[bytes] = set()
        for one in taken:
            if earlier := self._unidentified.pop(one.ref, None):
                earlier.settle(PodGone(f"{one.ref}: its network was taken down"))
            if one.interface is None:
                freed.update(self._world.addresses_of(one.ref))
                self._world.detach(one.ref)
            else:
                self._world.attach(one.ref, one.addresses, one.interface, one.uid)
                self._unidentified[one.ref] = one
        return Taken(taken, freed)

    def settle(self) -> None:
        """The kernel has what the World says: that may be enough for some, or their pods are gone."""
        for ref, asked in list(self._unidentified.items()):
            if self._world.pods.get(ref) is None:
                asked.settle(PodGone(f"{ref} was deleted"))
            elif self._world.subject(ref) is None:
                continue
            else:
                asked.settle()
            del self._unidentified[ref]

    def stop(self) -> None:
        """Nothing more will be taken: nobody is to wait for it."""
        self._over = True
        for asked in (*self._asked, *self._unidentified.values()):
            asked.settle(PodGone(f"{asked.ref}: the agent stops"))
        self._asked.clear()
        self._unidentified.clear()

    async def _ask(self, asked: _Asked) -> None:
        if self._over:
            raise PodGone(f"{asked.ref}: the agent stops")
        self._asked.append(asked)
        self._wake()
        await asked.done
