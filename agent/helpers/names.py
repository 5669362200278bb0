"""Which helpers there are. A file of its own, as the command line is ready sooner without what runs them."""

from __future__ import annotations

from enum import StrEnum


class Name(StrEnum):
    FLOWS = "flows"
    DNS = "dns"
    ENVOY = "envoy"
    WIREGUARD = "wireguard"
