"""What of the plan follows from what has changed."""

from __future__ import annotations

from collections.abc import Set

import msgspec

from policies.address import Prefix
from policies.model import ObjectRef, RemoteClass, Subject


class Dirty(msgspec.Struct):
    """Parts of the plan to compile again. `policies`: in these classes, or (None) the subject whole."""

    endpoints: set[ObjectRef]
    prefixes: set[Prefix]
    services: set[ObjectRef]
    policies: dict[Subject, Set[RemoteClass] | None]

    def __bool__(self) -> bool:
        return bool(self.endpoints or self.prefixes or self.services or self.policies)
