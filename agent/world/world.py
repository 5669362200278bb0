"""The current objects, what follows from them, and what a change makes stale. Pure: no kernel, no clock.

`apply` and `set_interface` only note; `take_dirty` settles identities, classes and subjects, and says which parts of
the plan must be compiled again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial

import msgspec

from agent.identity.labels import LabelFilter
from agent.objects import (
    Change,
    EndpointSlice,
    Interface,
    Namespace,
    Node,
    NodeEndpoint,
    NodeEndpoints,
    Pod,
    PolicySet,
    Problem,
    Secret,
    SecurityIdentity,
    Service,
)
from agent.services.model import Frontend
from agent.world.addresses import AddressBook
from agent.world.allocations import Allocations, key_of
from agent.world.attachments import Attachment, AttachmentBook
from agent.world.config import NodeConfig
from agent.world.declared import ClusterIdentities
from agent.world.dirty import Dirty
from agent.world.frontends import FrontendClaims
from agent.world.hostports import HostPortBook, host_port_ref
from agent.world.identities import IdentityBook, LocalIdentities
from agent.world.marks import MarkBook
from agent.world.names import NameClasses
from agent.world.namespaces import NamespaceBook
from agent.world.neighbours import Neighbours
from agent.world.nodes import NODE_KIND, NodeBook
from agent.world.placing import Placing
from agent.world.podlives import PodLives
from agent.world.pods import PodBook
from agent.world.policies import PolicyBook
from agent.world.problems import describe_problems
from agent.world.remotes import RemoteBook
from agent.world.services import Derive, ServiceBook
from agent.world.serving import all_slices_of, frontends_of, slices_of
from agent.world.subjects import SubjectBook, subject_of
from agent.world.telling import Told, endpoint_told
from policies.address import Prefix
from policies.index import PolicyIndex
from policies.model import Mark, ObjectRef, Policy, Subject
from policies.terms import PortName


class World:
    """`derive` makes the slices of a service that has a selector and no slice; None where a cluster does that.

    `config` has the zone of this node's manifest, where it was given none.
    """

    def __init__(self, config: NodeConfig, derive: Derive | None = None) -> None:
        self.config = config
        self.allocations = Allocations(config)
        self.index = PolicyIndex(enforce_always=config.enforce_always)
        self.pods = PodBook()
        self.nodes = NodeBook(config)
        self._frontends = FrontendClaims()
        self.services = ServiceBook(self.allocations, self._frontends, config)
        self.host_ports = HostPortBook(self._frontends, config)
        self._namespaces = NamespaceBook(config, self.index, self.pods)
        self._attachments = AttachmentBook()
        self._placing = Placing(config, self.allocations, self._attachments)
        relevant = LabelFilter(config.labels_include, config.labels_exclude)
        declared = ClusterIdentities(self.index, relevant)
        self.identities: IdentityBook = (
            declared if config.cluster else LocalIdentities(self.allocations.identities, self.index, relevant)
        )
        self.remotes = RemoteBook(self.nodes.has, declared.stands_for)
        self.policies = PolicyBook(self.index, self.identities, self.pods)
        self.secrets: dict[ObjectRef, Secret] = {}
        self.marks = MarkBook(self.nodes)
        self.addresses = AddressBook(
            config,
            self.allocations.cidr_identities,
            self.index,
            self.pods,
            self.nodes,
            self.marks,
            self.remotes,
        )
        self._neighbours = Neighbours(config, self.nodes, self.remotes, self.identities, self.addresses, self.marks)
        self._lives = PodLives(
            self._placing, self.allocations, self.pods, self._namespaces, self.identities, self.addresses
        )
        self.derive = derive
        self._subjects = SubjectBook(self.index)
        self._told = Told()
        self._dirty_services: set[ObjectRef] = set()

    # ---- changes

    def apply(self, change: Change) -> None:
        """An object is now thus, or is gone. The kind is that of `change.ref`."""
        ref, new = change.ref, change.object
        if ref.kind == "Namespace":
            self._namespaces.put(ref.name, new if isinstance(new, Namespace) else None)
        elif ref.kind == NODE_KIND:
            self._put_node(ref, new if isinstance(new, Node) else None)
        elif ref.kind == "Pod":
            self._put_pod(ref, new if isinstance(new, Pod) else None)
        elif ref.kind == "NodeEndpoints":
            told = new if isinstance(new, NodeEndpoints) else None
            self._lives.note(self._neighbours.put_endpoints(ref.name, told))
        elif ref.kind == "SecurityIdentity":
            declared = new if isinstance(new, SecurityIdentity) else None
            self._lives.unsettled |= self._neighbours.put_identity(int(ref.name), declared)
        elif ref.kind == "Service":
            self._put_service(ref, new if isinstance(new, Service) else None)
        elif ref.kind == "EndpointSlice":
            given = new if isinstance(new, EndpointSlice) else None
            self._dirty_services |= self.services.put_slice(given) if given else self.services.take_slice(ref)
        elif ref.kind == "Secret":
            if isinstance(new, Secret):
                self.secrets[ref] = new
            else:
                self.secrets.pop(ref, None)
        else:
            self._lives.unsettled |= self.policies.put(ref, new if isinstance(new, Policy | PolicySet) else None)

    def apply_all(self, changes: Sequence[Change]) -> None:
        """Changes that were read together. What one of their services names is not given to another of them."""
        services = [change.object for change in changes if isinstance(change.object, Service)]
        with self.services.reserved(services):
            for change in changes:
                self.apply(change)

    def set_interface(self, ref: ObjectRef, interface: Interface | None) -> None:
        """A pod of this node hangs off this interface now; None: no more. The pod must be known already."""
        self._attachments.set_interface(ref, interface)
        known = self._lives.set_interface(ref, interface)
        if not known and interface is not None and self._attachments.get(ref) is None:
            raise KeyError(f"{ref} has an interface but is not known: apply the pod first")

    def attach(
        self, ref: ObjectRef, addresses: tuple[bytes, ...], interface: Interface | None = None, uid: str = ""
    ) -> None:
        """A runtime gave a pod of this node these addresses, whether the pod is known yet or not; see set_interface.
        `uid`: of the pod it was done for, so that a later one of the same name does not have them."""
        self._attachments.put(ref, Attachment(addresses, interface, uid))
        self._place_again(ref)

    def detach(self, ref: ObjectRef) -> None:
        """What was attached was taken down."""
        self._attachments.take(ref)
        self._place_again(ref)

    def set_pod_blocks(self, blocks: tuple[Prefix, ...]) -> None:
        """In a cluster: this node has these blocks for its pods now, whatever it was configured with (a pool's blocks
        come and go)."""
        self._lives.note(self._neighbours.put_own_blocks(blocks))

    def set_names(self, name: str, addresses: frozenset[bytes]) -> None:
        """The addresses a DNS name has now (16 bytes each); none: it has none that count any more."""
        for address in self.marks.names.set(name, addresses):
            self.addresses.touch(address)

    def release_unused(self) -> None:
        """After the first load: give up what an earlier run had given to objects that are gone."""
        self.identities.release_restored()
        self.addresses.release_restored()
        self.allocations.keep_only(
            {key_of(state.pod.ref) for state in self.pods}, {key_of(service.ref) for service in self.services}
        )
        self.services.release_restored()

    # ---- what changed

    def take_dirty(self) -> Dirty:
        """What must be compiled again since the last call."""
        terms = self.index.take_changed_terms()
        self.addresses.set_prefixes(terms.prefixes)
        self._settle_marks(terms.marks)
        self._touch_ports(terms.egress_ports, terms.ingress_ports)
        self._lives.settle()
        self.addresses.stand()
        prefixes = self.addresses.settle()
        for prefix in prefixes:
            if prefix.bits == 128 and (owner := self.addresses.owner(prefix.network)) is not None:
                self._lives.note((owner,))
        endpoints, self._lives.stale = self._lives.stale, set()
        gone = {old for ref in endpoints if (old := self._subjects.put(ref, subject_of(self, ref)))}
        for ref in endpoints:
            self._told.put(ref, endpoint_told(self, ref))
        services, self._dirty_services = self._dirty_services.union(self.host_ports.of(endpoints)), set()
        policies = self.index.take_dirty()
        policies.update(dict.fromkeys(gone - self._subjects.uses.keys()))
        self._release()
        return Dirty(endpoints, prefixes, services, policies)

    # ---- questions

    def is_local(self, ref: ObjectRef) -> bool:
        """Whether a pod runs on this node in a network namespace of its own."""
        state = self.pods.get(ref)
        return state is not None and self._placing.is_here(state.pod) and not state.pod.host_network

    @property
    def namespaces(self) -> Mapping[str, Namespace]:
        """Those that are declared."""
        return self._namespaces.declared

    def subject(self, ref: ObjectRef) -> Subject | None:
        """Of a local pod with an interface; None where it cannot be an endpoint."""
        return self._subjects.of(ref)

    def subjects(self) -> Mapping[Subject, int]:
        """Subjects in use, and by how many endpoints."""
        return self._subjects.uses

    def own_addresses(self, ref: ObjectRef) -> tuple[bytes, ...]:
        """The addresses of a pod that no one else has the better claim to."""
        state = self.pods.get(ref)
        return () if state is None else tuple(a for a in state.pod.addresses if self.addresses.owner(a) == ref)

    def local_endpoints(self) -> tuple[NodeEndpoint, ...]:
        """What other nodes are to know of the pods here that have an address and an identity; by name. As of the last
        `take_dirty`."""
        return self._told.all()

    def addresses_of(self, ref: ObjectRef) -> tuple[bytes, ...]:
        """Addresses of pods, other than a node's, that an object tells of: a Pod its own, NodeEndpoints its pods'."""
        if ref.kind == "NodeEndpoints":
            return tuple(address for remote in self.remotes.of(ref.name) for address in remote.addresses)
        state = self.pods.get(ref)
        return () if state is None or state.pod.host_network else state.pod.addresses

    def frontends(self, ref: ObjectRef, *, served: bool = True) -> tuple[Frontend, ...]:
        """Those a service has on this node; none that another service has the better claim to.

        Services are Services and, under references of kind HostPort, pods of this node with hostPorts. With `served`
        False a Service's frontends are as without endpoints, which is quicker, for who asks only where they are.
        """
        found = frontends_of(self, ref, served=served)
        return tuple([f for f in found if self._frontends.owner(f.address, f.protocol, f.port) == ref])

    def frontend_owner(self, address: bytes, protocol: int, port: int) -> ObjectRef | None:
        """The service, or hostPort, that has an address and port."""
        return self._frontends.owner(address, protocol, port)

    def served(self) -> Iterator[ObjectRef]:
        """Everything that may have frontends."""
        yield from (service.ref for service in self.services)
        yield from self.host_ports

    def slices(self, service: Service) -> tuple[EndpointSlice, ...]:
        """The slices of a service: those given, else those its selector gives."""
        return slices_of(self, service)

    def name_classes(self) -> NameClasses:
        """What the DNS proxy needs to classify an address by its names by itself; as of the last `take_dirty`."""
        return self.addresses.name_classes()

    def problems(self) -> list[Problem]:
        """What is written but not in force: conflicts, and what could not be allocated."""
        return describe_problems(self, self._lives.failures)

    # ---- inside: objects

    def _put_node(self, ref: ObjectRef, node: Node | None) -> None:
        zone = self.nodes.zones.get(ref.name, "")
        self._lives.note(self._neighbours.put_node(ref.name, node))
        if self.nodes.zones.get(ref.name, "") != zone:
            self._set_zone(ref.name)

    def _set_zone(self, name: str) -> None:
        """Of this node all hints are to be looked at again, of another one those that are derived."""
        if name == self.config.name:
            self.config = msgspec.structs.replace(self.config, zone=self.nodes.zones.get(name, ""))
            self._dirty_services.update(self.served())
        else:
            self._dirty_services.update(s.ref for s in self.services if s.exposure.distribution)

    def _put_service(self, ref: ObjectRef, service: Service | None) -> None:
        self._dirty_services |= self.services.take(ref) if service is None else self.services.put(service)

    def _put_pod(self, ref: ObjectRef, pod: Pod | None) -> None:
        before = self.pods.get(ref)
        self._lives.put(ref, pod)
        after = self.pods.get(ref)
        for state in (before, after):
            if state is not None:
                self._dirty_services.update(self.services.selecting(ref.namespace, state.pod.labels))
        if after is not None and self._placing.is_here(after.pod):
            self._dirty_services |= self.host_ports.put(after.pod)
        else:
            self._dirty_services |= self.host_ports.take(host_port_ref(ref))

    def _place_again(self, ref: ObjectRef) -> None:
        """Something was attached to a pod, or taken down."""
        if (state := self.pods.get(ref)) is not None:
            self._put_pod(ref, state.pod)

    # ---- inside: what follows

    def _settle_marks(self, changed: Set[Mark]) -> None:
        """Marks that policies began or ceased to use, and services whose endpoints may be others now."""
        touched, services = self.marks.use(changed, self.index.marks(), self.services)
        for ref in services | self._dirty_services:
            touched |= self.marks.settle_service(ref, self.services.get(ref), partial(all_slices_of, self))
        for address in touched:
            self.addresses.touch(address)

    def _touch_ports(self, egress: Set[PortName], ingress: Set[PortName]) -> None:
        """Port names that policies began or ceased to use: pods that declare them have another class or subject."""
        if not egress and not ingress:
            return
        for remote in self.remotes.naming(egress) if egress else ():
            for address in remote.addresses:
                self.addresses.touch(address)
        self._lives.touch_ports(egress, ingress)

    def _release(self) -> None:
        """Only now: whatever is given up here can be given anew from the next change on."""
        self.identities.release_idle()
        self.addresses.release_idle()
        self._lives.release()
