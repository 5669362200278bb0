"""What news of nodes, and of the pods that nodes tell of, means for who has an address."""

from __future__ import annotations

from agent.objects import Node, NodeEndpoints, SecurityIdentity
from agent.world.addresses import NODE, REMOTE, AddressBook
from agent.world.config import NodeConfig
from agent.world.declared import ClusterIdentities
from agent.world.identities import IdentityBook
from agent.world.marks import MarkBook
from agent.world.nodes import NODE_KIND, Moved, NodeBook
from agent.world.remotes import Moves, RemoteBook
from policies.address import Prefix
from policies.model import ObjectRef


class Neighbours:
    """Each change returns pods of this node that may have gained or lost an address or, of an identity, the identity
    they have."""

    def __init__(
        self,
        config: NodeConfig,
        nodes: NodeBook,
        remotes: RemoteBook,
        identities: IdentityBook,
        addresses: AddressBook,
        marks: MarkBook,
    ) -> None:
        self._config = config
        self._nodes = nodes
        self._remotes = remotes
        self._identities = identities
        self._addresses = addresses
        self._marks = marks

    def put_node(self, name: str, node: Node | None) -> set[ObjectRef]:
        """A Node object is now thus, or (None) is gone."""
        old = self._nodes.get(name)
        touched = self._move(self._nodes.put(name, node))
        if (old.labels if old else None) != (node.labels if node else None):
            own = name == self._config.name
            for address in self._config.addresses if own else self._nodes.addresses_of(name):
                self._addresses.touch(address)
        return touched

    def put_own_blocks(self, blocks: tuple[Prefix, ...]) -> set[ObjectRef]:
        """This node has these blocks for its pods now."""
        return self._move(self._nodes.put_own(blocks))

    def put_endpoints(self, name: str, told: NodeEndpoints | None) -> set[ObjectRef]:
        """What a node tells is now thus, or (None) it is gone. Of its own pods this node knows more; without an API
        server pods are known by their manifests."""
        touched = self._move(self._nodes.put_said(name, told))
        if self._config.cluster and name != self._config.name:
            touched |= self._claim(self._remotes.put(name, told))
        return touched

    def put_identity(self, number: int, declared: SecurityIdentity | None) -> set[ObjectRef]:
        """What stands under a number is now thus, or (None) nothing does."""
        if not isinstance(self._identities, ClusterIdentities):
            return set()
        before = self._identities.meaning(number)
        touched = self._identities.put(number, declared)
        if self._identities.meaning(number) != before:
            for pod in self._remotes.numbered(number):
                for address in pod.addresses:
                    self._addresses.touch(address)
        return touched

    # ---- inside

    def _move(self, moved: Moved) -> set[ObjectRef]:
        if moved.blocks:
            self._addresses.set_blocks(moved.blocks)
            for address in (*self._marks.names.addresses(), *self._marks.known_by_service()):
                if any(block.contains(address) for block in moved.blocks):
                    self._addresses.touch(address)
        touched: set[ObjectRef] = set()
        for address, name in moved.went:
            touched |= self._addresses.remove(address, NODE, ObjectRef(NODE_KIND, "", name))
        for address, name in moved.came:
            touched |= self._addresses.add(address, NODE, ObjectRef(NODE_KIND, "", name))
        if moved.nodes:
            touched |= self._claim(self._remotes.settle(moved.nodes))
        return touched

    def _claim(self, moves: Moves) -> set[ObjectRef]:
        touched: set[ObjectRef] = set()
        for address, ref in moves.went:
            touched |= self._addresses.remove(address, REMOTE, ref)
        for address, ref in moves.came:
            touched |= self._addresses.add(address, REMOTE, ref)
        for address in moves.touched:
            self._addresses.touch(address)
        return touched
