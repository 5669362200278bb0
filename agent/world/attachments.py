"""Networks that a runtime attached to pods of this node (CNI)."""

from __future__ import annotations

import msgspec

from agent.objects import Interface, Pod
from policies.model import ObjectRef


class Attachment(msgspec.Struct, frozen=True):
    """`uid`: of the pod it was made for; "" where it is not known. `interface`: once it stands."""

    addresses: tuple[bytes, ...]
    interface: Interface | None = None
    uid: str = ""


class AttachmentBook:
    """Kept until they are taken down, whether their pods are known or not."""

    def __init__(self) -> None:
        self._held: dict[ObjectRef, Attachment] = {}

    def get(self, ref: ObjectRef) -> Attachment | None:
        return self._held.get(ref)

    def of(self, pod: Pod) -> Attachment | None:
        """None, too, where what is attached is that of an earlier pod of the same name."""
        held = self._held.get(pod.ref)
        another = held is not None and held.uid and pod.uid and held.uid != pod.uid
        return None if another else held

    def put(self, ref: ObjectRef, attachment: Attachment) -> None:
        """The network of the same addresses stays where it was, if nothing else is said of it."""
        known = self._held.get(ref)
        if attachment.interface is None and known is not None and known.addresses == attachment.addresses:
            attachment = msgspec.structs.replace(attachment, interface=known.interface)
        self._held[ref] = attachment

    def set_interface(self, ref: ObjectRef, interface: Interface | None) -> None:
        """Of one that is held."""
        if (known := self._held.get(ref)) is not None:
            self._held[ref] = msgspec.structs.replace(known, interface=interface)

    def take(self, ref: ObjectRef) -> None:
        self._held.pop(ref, None)
