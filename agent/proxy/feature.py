"""Packets' way to proxies, turned on with the first rule that needs one: the datapath's part and the node's."""

from __future__ import annotations

import msgspec

from agent.datapath import abi
from agent.datapath.maps import Map
from agent.proxy import routing

CONFIG = abi.load().records["config"]
FEATURE_PROXY = abi.load().constants.FEATURE_PROXY
FIRST = bytes(4)


class Feature(msgspec.Struct):
    """In the network namespace of the thread that calls."""

    config: Map

    @property
    def is_on(self) -> bool:
        value = self.config.lookup(FIRST)
        return value is not None and bool(CONFIG.unpack(value).features & FEATURE_PROXY)

    def turn_on(self) -> None:
        routing.install()
        self._write(on=True)

    def turn_off(self) -> None:
        self._write(on=False)
        routing.remove()

    def _write(self, on: bool) -> None:
        value = self.config.lookup(FIRST)
        assert value is not None, "an array has all its elements"
        self.config.update(FIRST, with_proxies(value, on=on))


def with_proxies(value: bytes, *, on: bool) -> bytes:
    """struct config with the feature, or without."""
    fields = CONFIG.unpack(value)._asdict()
    return CONFIG.pack(**fields | {"features": (fields["features"] & ~FEATURE_PROXY) | FEATURE_PROXY * on})


def carried_over(before: bytes | None, value: bytes) -> bytes:
    """A new agent's struct config over that of an earlier one, whose proxies and encryption go on."""
    if before is None:
        return value
    known = CONFIG.unpack(before)
    devices = {name: getattr(known, name) for name in ("wireguard_ifindex", "decrypted_ifindex")}
    value = CONFIG.pack(**CONFIG.unpack(value)._asdict() | devices)
    return with_proxies(value, on=bool(known.features & FEATURE_PROXY))
