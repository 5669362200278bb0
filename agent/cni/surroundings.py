"""What pods over CNI need of the rest of the agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

import msgspec

from agent.cni.place import Connected, Guard
from agent.cni.recovery import Recovered
from agent.objects import Interface
from policies.model import ObjectRef


class Links(Protocol):
    """agent.cni.networks.Networks. Calls block, for many threads at once; errors are OSError."""

    def connect(
        self,
        netns: str,
        ifname: str,
        addresses: Sequence[bytes],
        pod: ObjectRef,
        mtu: int,
        guard: Guard,
    ) -> Interface: ...

    def await_ready(self, interface: Interface) -> None: ...

    def adopt(self, netns: str, ifname: str, addresses: Sequence[bytes]) -> Interface: ...

    def disconnect_all(self, names: Collection[str]) -> None: ...

    def existing(self) -> list[Connected]: ...

    def recover(self, orphans: Collection[Connected]) -> list[Recovered]: ...

    def check(self, netns: str, ifname: str, addresses: Sequence[bytes], interface: Interface) -> list[str]: ...


class Surroundings(msgspec.Struct, frozen=True):
    """Functions that do not block, for the event loop's thread, but where it says otherwise."""

    links: Links
    attach_programs: Callable[[int], None]
    """To the interface with this index, in any thread; raises OSError."""
    has_programs: Callable[[int], bool]
    """Whether they are all attached there."""
    attach: Callable[[ObjectRef, tuple[bytes, ...], Interface, str], Awaitable[None]]
    """Attaching.attach, with the pod's uid: returns once the kernel enforces its policy; raises agent.pods.PodGone."""
    stands: Callable[[Interface], Awaitable[None]]
    """Once the pod's link is up, and before its processes start: returns when it is as it is to be used."""
    detach: Callable[[ObjectRef], Awaitable[None]]
    """Attaching.detach: returns once nobody is known by the pod's addresses."""
    published: Callable[[ObjectRef], Awaitable[None]]
    """Until the other nodes can know the pod, or the API server cannot be reached."""
    unreachable: Callable[[], str]
    """Why the API server cannot be asked, and since when; empty where it can."""
    mtu: Callable[[], int]
