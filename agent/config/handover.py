"""Settings from the process that reads them to the one that works by them. Not by its command line, which all may read.

What is not secret is also for whoever asks the agent: see `shown`.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from agent.config.fields import SECRETS
from agent.config.layers import Resolved

HIDDEN = "(not shown)"


class Shown(msgspec.Struct, frozen=True):
    """One setting for people. `origin`: "default", FILE:LINE, GATEHOUSE_… or --…"""

    name: str
    value: Any
    origin: str


def give(resolved: Resolved) -> str:
    """The word by which `take` finds them, in a process that this one becomes."""
    descriptor = os.memfd_create("gatehouse-settings", 0)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(msgspec.json.encode(resolved))
    return str(descriptor)


def take(word: str) -> Resolved:
    """Once. Raises OSError or ValueError where the word is none of `give`'s."""
    with os.fdopen(int(word), "rb") as file:
        file.seek(0)
        return msgspec.json.decode(file.read(), type=Resolved)


def shown(resolved: Resolved) -> list[Shown]:
    """In the order of Config's fields, without what is secret."""
    return [
        Shown(name, HIDDEN if name in SECRETS else getattr(resolved.config, name), origin)
        for name, origin in resolved.origins.items()
    ]
