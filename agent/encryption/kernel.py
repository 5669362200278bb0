"""A WireGuard device of the kernel's."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence

from agent.encryption import generic
from agent.encryption.device import DeviceState, NotThere, PeerChange, Settings
from agent.encryption.generic import GenericSocket
from agent.encryption.link import NodeLink
from agent.endpoints.netlink import NetlinkError
from agent.status import ProcessView


class KernelDevice:
    backend = "kernel"

    def __init__(self, name: str) -> None:
        self.name = name
        self._link = NodeLink(name)
        self._generic = GenericSocket()
        self._family = 0  # its number; 0: not asked yet

    def ensure(self) -> None:
        """Raises NetlinkError where the kernel has no WireGuard, or none may be made."""
        if self._link.find() is None:
            self._link.add()  # this loads the module, where it is one

    def read(self) -> DeviceState:
        try:
            return generic.read(self._generic.request(generic.get(self._number(), self.name)))
        except NetlinkError as error:
            raise _there(error) from None

    def configure(self, settings: Settings, changes: Sequence[PeerChange] = ()) -> None:
        family = self._number()
        for request in generic.configure(family, self.name, settings, changes):
            try:
                self._generic.request(request)
            except NetlinkError as error:
                raise _there(error) from None

    async def run(self) -> None:
        """The kernel keeps it."""
        await asyncio.Event().wait()

    async def remove(self) -> None:
        self._link.delete()

    def process(self) -> ProcessView | None:
        return None

    def close(self) -> None:
        self._link.close()
        self._generic.close()

    def _number(self) -> int:
        if not self._family:
            self._family = self._generic.wireguard()
        return self._family


def _there(error: NetlinkError) -> OSError:
    """EOPNOTSUPP: there is another link of that name, or none any more while it was read."""
    gone = error.errno in (errno.ENODEV, errno.EOPNOTSUPP, errno.ENOENT)
    return NotThere(error.errno, error.strerror) if gone else error
