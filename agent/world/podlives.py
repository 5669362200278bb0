"""What becomes of a pod here: where it is, which addresses and identity it has, and what it gives up when it goes."""

from __future__ import annotations

from collections.abc import Iterable, Set

from agent.identity.allocator import ExhaustedError
from agent.objects import Interface, Pod
from agent.world.addresses import AddressBook
from agent.world.allocations import Allocations
from agent.world.identities import IdentityBook
from agent.world.namespaces import NamespaceBook
from agent.world.placing import Placing
from agent.world.pods import PodBook, PodState
from policies.model import ObjectRef
from policies.terms import PortName


class PodLives:
    """`stale`: pods whose endpoints are to be compiled again; `unsettled`: those whose identity may be another now;
    `failures`: what could not be given, and why. The first two are emptied by whoever acts on them."""

    def __init__(
        self,
        placing: Placing,
        allocations: Allocations,
        pods: PodBook,
        namespaces: NamespaceBook,
        identities: IdentityBook,
        addresses: AddressBook,
    ) -> None:
        self.stale: set[ObjectRef] = set()
        self.unsettled: set[ObjectRef] = set()
        self.failures: dict[ObjectRef, str] = {}
        self._placing = placing
        self._allocations = allocations
        self._pods = pods
        self._namespaces = namespaces
        self._identities = identities
        self._addresses = addresses
        self._gone: set[ObjectRef] = set()

    def note(self, refs: Iterable[ObjectRef]) -> None:
        """These are stale, as far as they are known here."""
        self.stale.update(ref for ref in refs if self._pods.get(ref) is not None)

    def put(self, ref: ObjectRef, pod: Pod | None) -> None:
        """A pod is now thus, or (None) is gone."""
        self.failures.pop(ref, None)
        old = self._pods.get(ref)
        if old is not None:
            for address in old.pod.addresses:
                self.note(self._addresses.remove(address, self._placing.rank(old), ref))
        self.unsettled.add(ref)
        self.stale.add(ref)
        if pod is None:
            self._forget(ref)
        else:
            self._place(pod, old)
        self._namespaces.settle(ref.namespace)

    def set_interface(self, ref: ObjectRef, interface: Interface | None) -> bool:
        """Where a pod hangs off this node; None: nowhere. False where the pod is not known."""
        state = self._pods.get(ref)
        if state is None:
            return False
        state.interface = interface
        self.stale.add(ref)
        return True

    def touch_ports(self, egress: Set[PortName], ingress: Set[PortName]) -> None:
        """Port names that rules began or ceased to use: pods that declare them have another class or subject."""
        for state in self._pods:
            names = {(port.protocol, port.name) for port in state.ports}
            if not names.isdisjoint(egress):
                for address in state.pod.addresses:
                    self._addresses.touch(address)
            if not names.isdisjoint(ingress):
                self.stale.add(state.pod.ref)

    def settle(self) -> None:
        """Give the unsettled their identities."""
        settling, self.unsettled = sorted(self.unsettled), set()
        for ref in settling:
            if (state := self._pods.get(ref)) is not None:
                self._settle(ref, state)

    def release(self) -> None:
        """What was given to pods that are gone can be given anew from now on."""
        for ref in self._gone:
            if self._pods.get(ref) is None:
                self._allocations.release_pod(ref)
        self._gone.clear()

    # ---- inside

    def _place(self, pod: Pod, old: PodState | None) -> None:
        placed, failure = self._placing.place(pod)
        if failure:
            self.failures[pod.ref] = failure
        state = PodState(placed, own_addresses=not pod.addresses)
        if old is not None:
            if old.pod.uid != pod.uid and old.pod.uid and pod.uid:
                self._identities.forget(old)  # another pod of the same name
            state.key, state.identity = old.key, old.identity
        state.interface = self._placing.interface(pod, old.interface if old is not None else None)
        self._pods.put(state)
        for address in state.pod.addresses:
            self.note(self._addresses.add(address, self._placing.rank(state), pod.ref))

    def _forget(self, ref: ObjectRef) -> None:
        state = self._pods.take(ref)
        if state is not None:
            self._identities.forget(state)
        self._gone.add(ref)

    def _settle(self, ref: ObjectRef, state: PodState) -> None:
        try:
            changed = self._identities.settle(state)
            if changed and state.identity:
                self.failures.pop(ref, None)
        except ExhaustedError as error:
            self.failures[ref] = str(error)
            self.unsettled.add(ref)  # next time there may be room
            changed = True
        if changed:
            self.stale.add(ref)
            for address in state.pod.addresses:
                self._addresses.touch(address)
