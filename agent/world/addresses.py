"""What each address is to others: its remote class. And who owns it."""

from __future__ import annotations

from collections.abc import Iterator, Set

from agent.datapath import abi
from agent.identity.allocator import Allocator, ExhaustedError
from agent.world.claims import Claim, Claims
from agent.world.config import NodeConfig
from agent.world.marks import MarkBook
from agent.world.names import NameClasses
from agent.world.nodes import NODE_KIND, NodeBook
from agent.world.pods import PodBook, PodState
from agent.world.prefixes import PrefixSet, SortedPrefixes
from agent.world.remotes import RemoteBook, RemotePod
from policies.address import Prefix
from policies.index import PolicyIndex
from policies.l7 import NamePattern
from policies.model import ContainerPort, Mark, ObjectRef, RemoteClass

NUMBERS = abi.load().constants
WORLD = {Prefix.parse("0.0.0.0/0"): NUMBERS.IDENTITY_WORLD_IPV4, Prefix.parse("::/0"): NUMBERS.IDENTITY_WORLD_IPV6}

# Who has the better claim to an address: pods in a node's network, other nodes, then pods this node gave it to, other
# local pods, remote pods. A node shares its addresses with the first.
HOST_NETWORK, NODE, ALLOCATED, LOCAL, REMOTE = range(5)

NO_PORTS: frozenset[ContainerPort] = frozenset()


class AddressBook:
    """Every prefix that has a class of its own: addresses of pods and nodes, policy prefixes, pod CIDRs, the world, and
    whatever else has a mark that rules ask for."""

    def __init__(
        self,
        config: NodeConfig,
        cidr_identities: Allocator,
        index: PolicyIndex,
        pods: PodBook,
        nodes: NodeBook,
        marks: MarkBook,
        remotes: RemoteBook,
    ) -> None:
        self._config = config
        self._remotes = remotes
        self._numbers = cidr_identities
        self._index = index
        self._pods = pods
        self._nodes = nodes
        self._marks = marks
        self._claims = Claims()
        self._policy_prefixes = PrefixSet()
        self._classes: dict[Prefix, RemoteClass] = {}
        self._uses: dict[RemoteClass, int] = {}
        self._named: set[RemoteClass] = set()  # of these, those that names alone tell apart
        self._standing: frozenset[RemoteClass] = frozenset()
        self._stood: tuple[frozenset[frozenset[NamePattern]], list[frozenset[Prefix]]] = (frozenset(), [])
        self._sorted = SortedPrefixes()
        self._host_addresses = frozenset(config.addresses)
        self._hosts = {Prefix.host(address) for address in config.addresses}
        self._blocks = nodes.pod_blocks if config.cluster else PrefixSet(config.pod_cidrs)
        """Addresses in these that nobody has are some pod's that nobody knows yet."""
        self._dirty: set[Prefix] = {*self._hosts, *self._blocks, *WORLD}
        self._gone: set[Prefix] = set()

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._classes)

    def remote_class(self, prefix: Prefix) -> RemoteClass | None:
        """The class of a prefix; None where it has none of its own (that of the prefix around it holds)."""
        return self._classes.get(prefix)

    def owner(self, address: bytes) -> ObjectRef | None:
        """The pod an address belongs to."""
        winner = None if address in self._host_addresses else self._claims.winner(address)
        return None if winner is None or winner.kind == NODE_KIND else winner

    def remote(self, address: bytes) -> RemotePod | None:
        """The pod of another node that has an address, as that node tells."""
        best = None if address in self._host_addresses else self._claims.best(address)
        return None if best is None or best[0] != REMOTE else self._remotes.at(address)

    def lost(self) -> Iterator[tuple[bytes, ObjectRef, ObjectRef | None]]:
        """(address, loser, winner) where a pod or node does not have an address given to it. winner None: this node."""
        for address, (rank, loser), winner in self._claims.lost():
            if rank > NODE or (rank == NODE and winner.kind == NODE_KIND):
                yield address, loser, winner
        for host in self._hosts:
            if (owner := self._claims.winner(host.network)) is not None and not self._is_at_host(owner):
                yield host.network, owner, None

    # ---- changes

    def add(self, address: bytes, rank: int, ref: ObjectRef) -> set[ObjectRef]:
        """A pod, or another node, has an address. Returns the pods that gain or lose it."""
        before = self._claims.winner(address)
        self._claims.add(address, rank, ref)
        return self._claimed(address, before)

    def remove(self, address: bytes, rank: int, ref: ObjectRef) -> set[ObjectRef]:
        before = self._claims.winner(address)
        self._claims.remove(address, rank, ref)
        return self._claimed(address, before)

    def touch(self, address: bytes) -> None:
        """What its owner is, or which marks it has, has changed."""
        self._dirty.add(Prefix.host(address))

    def set_prefixes(self, changed: Set[Prefix]) -> None:
        """These policy prefixes came into use or went out of it: everything inside them is to be classified anew."""
        in_use = self._index.prefixes()
        for prefix in changed:
            if prefix in in_use:
                self._policy_prefixes.add(prefix)
                self._gone.discard(prefix)
            else:
                self._policy_prefixes.remove(prefix)
                self._gone.add(prefix)
            self._dirty.add(prefix)
            self._dirty.update(self._sorted.inside(prefix))

    def set_blocks(self, changed: Set[Prefix]) -> None:
        """These are blocks of some node's pods now, or are none any more."""
        if not self._config.cluster:
            return
        for block in changed:
            self._dirty.add(block)
            self._dirty.update(self._sorted.inside(block))

    def stand(self) -> None:
        """Keep the classes in use that addresses with names may come to have: their rows are to be there first."""
        combinations = self._marks.names.combinations()
        covering = [self._policy_prefixes.covering(world) for world in WORLD]
        if self._stood[0] is combinations and self._stood[1] == covering:
            return
        self._stood = combinations, covering
        wanted = frozenset(
            RemoteClass(identity, prefixes, marks=marks)
            for identity, prefixes in zip(WORLD.values(), covering, strict=True)
            for marks in combinations
        )
        for remote in wanted - self._standing:
            self._use(remote)
        for remote in self._standing - wanted:
            self._drop(remote)
        self._standing = wanted

    def settle(self) -> set[Prefix]:
        """Classify what is stale; the prefixes whose class is another now."""
        changed = set()
        for prefix in self._dirty:
            old, new = self._classes.get(prefix), self._classify(prefix)
            if old == new:
                continue
            changed.add(prefix)
            if new is None:
                del self._classes[prefix]
                self._sorted.remove(prefix)
            else:
                self._classes[prefix] = self._use(new)
                if old is None:
                    self._sorted.add(prefix)
            if old is not None:
                self._drop(old)
        self._dirty.clear()
        return changed

    def release_idle(self) -> None:
        """Give up identities of prefixes no policy names any more."""
        for prefix in self._gone:
            self._numbers.release(str(prefix))
        self._gone.clear()

    def release_restored(self) -> None:
        """Give up identities of an earlier run for prefixes no policy of this one names."""
        wanted = {str(prefix) for prefix in self._index.prefixes()}
        for key in self._numbers.held():
            if key not in wanted:
                self._numbers.release(key)

    def name_classes(self) -> NameClasses:
        """What is known of addresses outside by their names alone."""
        outside = frozenset(map(Prefix.host, self._marks.known_by_service()))
        return NameClasses(
            self._marks.names.patterns,
            frozenset(self._index.prefixes()),
            self._nodes.places().union(self._config.service_cidrs, outside),
            frozenset(self._named),
        )

    # ---- inside

    def _claimed(self, address: bytes, before: ObjectRef | None) -> set[ObjectRef]:
        self.touch(address)
        after = self._claims.winner(address)
        return {ref for ref in (before, after) if ref is not None and ref.kind != NODE_KIND}

    def _is_at_host(self, ref: ObjectRef) -> bool:
        """Whether it is a pod in this node's network, whose addresses are the node's."""
        state = self._pods.get(ref)
        return state is not None and state.pod.host_network and state.pod.node == self._config.name

    def _classify(self, prefix: Prefix) -> RemoteClass | None:
        covering = self._policy_prefixes.covering(prefix)
        if prefix.bits == 128 and (remote := self._classify_address(prefix, covering)) is not None:
            return remote
        if (identity := WORLD.get(prefix)) is not None:
            return RemoteClass(identity, covering)
        if prefix in self._blocks:
            return RemoteClass(NUMBERS.IDENTITY_UNMANAGED, covering)
        if prefix in self._policy_prefixes:
            return RemoteClass(self._cidr_identity(prefix), covering)
        return None

    def _classify_address(self, prefix: Prefix, covering: frozenset[Prefix]) -> RemoteClass | None:
        """None where it is nobody's and has no mark."""
        address = prefix.network
        marks: frozenset[Mark] = frozenset(self._marks.services.matching(address))
        if prefix in self._hosts:
            marks |= self._marks.of_node(self._config.name)
            return RemoteClass(NUMBERS.IDENTITY_HOST, covering, marks=marks)
        if (best := self._claims.best(address)) is not None:
            return self._classify_owned(prefix, best, covering, marks)
        if self._blocks.covering(prefix):
            return RemoteClass(NUMBERS.IDENTITY_UNMANAGED, covering, marks=marks) if marks else None
        if not self._is_inside(prefix):
            marks |= self._marks.names.matching(address)
        world = next(one for one in WORLD if one.covers(prefix))
        if self._marks.is_apiserver(address):
            return RemoteClass(NUMBERS.IDENTITY_APISERVER, covering | {world}, marks=marks)  # world: tells its family
        return RemoteClass(WORLD[world], covering, marks=marks) if marks else None

    def _classify_owned(
        self, prefix: Prefix, best: Claim, covering: frozenset[Prefix], marks: frozenset[Mark]
    ) -> RemoteClass:
        rank, owner = best
        if owner.kind == NODE_KIND:
            marks |= self._marks.of_node(owner.name)
            return RemoteClass(NUMBERS.IDENTITY_REMOTE_NODE, covering, marks=marks)
        if rank == REMOTE and (remote := self._remotes.at(prefix.network)) is not None:
            return self._of_identity(self._remotes.identity(remote), remote.ports, covering, marks)
        state = self._pods.get(owner)
        assert state is not None
        return self._classify_pod(state, prefix, covering, marks)

    def _is_inside(self, prefix: Prefix) -> bool:
        """Whether an address lies where pods and services have theirs: no name makes it anything else."""
        in_services = any(block.covers(prefix) for block in self._config.service_cidrs)
        return in_services or bool(self._nodes.pod_blocks.covering(prefix))

    def _classify_pod(
        self, state: PodState, prefix: Prefix, covering: frozenset[Prefix], marks: frozenset[Mark]
    ) -> RemoteClass:
        if state.pod.host_network:
            node = self._nodes.at(prefix.network)
            of_node = frozenset() if node is None else self._marks.of_node(node)
            return RemoteClass(NUMBERS.IDENTITY_REMOTE_NODE, covering, marks=marks | of_node)
        return self._of_identity(state.identity, state.ports, covering, marks)

    def _of_identity(
        self, identity: int, declared: frozenset[ContainerPort], covering: frozenset[Prefix], marks: frozenset[Mark]
    ) -> RemoteClass:
        if not identity:
            return RemoteClass(NUMBERS.IDENTITY_UNMANAGED, covering, marks=marks)
        names = self._index.egress_port_names()
        ports = frozenset(p for p in declared if (p.protocol, p.name) in names) if names and declared else NO_PORTS
        return RemoteClass(identity, covering, ports, marks)

    def _cidr_identity(self, prefix: Prefix) -> int:
        if self._blocks.covering(prefix):
            return NUMBERS.IDENTITY_UNMANAGED
        try:
            return self._numbers.allocate(str(prefix))
        except ExhaustedError:
            # Rules match by prefix: the number is for people.
            return NUMBERS.IDENTITY_WORLD_IPV4 if prefix.is_v4 else NUMBERS.IDENTITY_WORLD_IPV6

    def _use(self, remote: RemoteClass) -> RemoteClass:
        uses = self._uses.get(remote, 0)
        self._uses[remote] = uses + 1
        if not uses:
            self._index.add_class(remote)
            if _is_named(remote):
                self._named.add(remote)
        return remote

    def _drop(self, remote: RemoteClass) -> None:
        self._uses[remote] -= 1
        if not self._uses[remote]:
            del self._uses[remote]
            self._named.discard(remote)
            self._index.drop_class(remote)


def _is_named(remote: RemoteClass) -> bool:
    """Whether its names are all that tells an address of this class from others outside."""
    outside = remote.identity in WORLD.values()
    return outside and bool(remote.marks) and all(isinstance(mark, NamePattern) for mark in remote.marks)
