"""The agent's objects as people and programs are shown them (agent.status)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent.datapath import abi
from agent.flows.names import reserved_labels
from agent.objects import Problem
from agent.pods import Pods
from agent.status import (
    EndpointView,
    IdentityView,
    NodeView,
    PolicyView,
    ProblemView,
    Revision,
)
from agent.world.allocations import key_of
from agent.world.identities import Identity
from agent.world.nodes import Peer
from agent.world.pods import PodState
from agent.world.remotes import RemotePod
from agent.world.world import World
from policies.address import format_address
from policies.kinds import KINDS
from policies.model import SERVICE_ACCOUNT, Direction, ObjectRef, Origin, Policy, Subject


@dataclass(frozen=True)
class Views:
    """`revision`: of an endpoint of this node."""

    world: World
    pods: Pods
    revision: Callable[[ObjectRef], Revision]

    # ---- endpoints

    def endpoints(self) -> Iterator[EndpointView]:
        """Those of this node first. What comes or goes meanwhile may be left out."""
        problems = _by_subject(self.world.problems())
        local, remote = sorted(self.world.pods, key=_pod_key), list(self.world.remotes)
        yield from (self._endpoint(state, problems.get(str(state.pod.ref), "")) for state in local)
        yield from (self._remote(pod) for pod in remote)

    def _remote(self, pod: RemotePod) -> EndpointView:
        number = self.world.remotes.identity(pod)
        identity = self.world.identities.get(number)
        told = pod.endpoint
        return EndpointView(
            id=0,
            namespace=told.pod.namespace,
            name=told.pod.name,
            ips=tuple(map(format_address, pod.addresses)),
            identity=number,
            labels=own_labels(identity) if identity is not None else {},
            netns="",
            interface="",
            state="remote",
            policy_revision=Revision(0, 0),
            node=pod.node,
            host_network=False,
            isolated=(),
            problem="" if number else f"what identity {told.identity} stands for is not known here, or something else",
        )

    def _endpoint(self, state: PodState, problem: str) -> EndpointView:
        pod, ref = state.pod, state.pod.ref
        subject = self.world.subject(ref)
        isolating = self.world.index.policies_of(subject) if subject else []
        here = self._is_here(state)
        return EndpointView(
            id=(self.world.allocations.endpoints.get(key_of(ref)) or 0) if subject else 0,
            namespace=ref.namespace,
            name=ref.name,
            ips=tuple(map(format_address, pod.addresses)),
            identity=abi.load().constants.IDENTITY_HOST if pod.host_network and here else state.identity,
            labels=dict(pod.labels),
            netns=state.interface.netns if state.interface else "",
            interface=state.interface.name if state.interface else "",
            state=self._state(state),
            policy_revision=self.revision(ref) if here else Revision(0, 0),
            node=self.world.config.name if here else pod.node,
            host_network=pod.host_network,
            isolated=tuple(sorted({str(d) for d in self._isolated(subject, isolating)})),
            problem=self.pods.problem(ref) or problem,
        )

    def _isolated(self, subject: Subject | None, isolating: list[Policy]) -> Iterable[Direction]:
        if subject is not None and self.world.config.enforce_always:
            return Direction
        return (direction for policy in isolating for direction in policy.isolates)

    def _is_here(self, state: PodState) -> bool:
        return state.pod.node in ("", self.world.config.name) or self.pods.get(state.pod.ref) is not None

    def _state(self, state: PodState) -> str:
        local = self.pods.get(state.pod.ref)
        if local is not None:
            return local.state
        return "waiting" if self._is_here(state) else "remote"

    def endpoint_states(self) -> dict[str, int]:
        states = Counter(map(self._state, self.world.pods))
        states["remote"] += len(self.world.remotes)
        return dict(sorted((+states).items()))

    # ---- identities

    def identities(self) -> list[IdentityView]:
        world = self.world
        reserved = [
            IdentityView(id=number, kind="reserved", namespace="", labels={}, endpoints=0, name=labels[0])
            for number, labels in sorted(reserved_labels(abi.load()).items())
            if number
        ]
        cluster = [
            IdentityView(
                id=identity.number,
                kind="cluster",
                namespace=identity.workload.namespace,
                labels=dict(identity.workload.labels),
                endpoints=world.identities.pods_of(identity.number) + len(world.remotes.numbered(identity.number)),
                name="",
            )
            for identity in sorted(world.identities, key=lambda i: i.number)
        ]
        cidrs = [
            IdentityView(id=number, kind="cidr", namespace="", labels={}, endpoints=0, name=key)
            for key, number in sorted(world.allocations.cidr_identities.snapshot().items(), key=lambda item: item[1])
        ]
        return [*reserved, *cluster, *cidrs]

    # ---- policies

    def policies(self, problems: Iterable[Problem] = ()) -> list[PolicyView]:
        """`problems`: of the manifests. A policy they keep out of force is listed, too."""
        selected: dict[object, list[str]] = {}
        for state in self.world.pods:
            if (subject := self.world.subject(state.pod.ref)) is not None:
                selected.setdefault(subject, []).append(key_of(state.pod.ref))
        refused: dict[str, Problem] = {}
        for problem in problems:
            if problem.subject.partition(" ")[0] in KINDS and not problem.warning:
                refused.setdefault(problem.subject, problem)
        views = [self._policy(policy, selected, refused.get(str(policy.ref))) for policy in self.world.index.policies()]
        known = {str(policy.ref) for policy in self.world.index.policies()}
        views += [_refused(problem) for subject, problem in refused.items() if subject not in known]
        return sorted(views, key=lambda view: (view.kind, view.namespace, view.name))

    def _policy(self, policy: Policy, selected: dict[object, list[str]], refused: Problem | None) -> PolicyView:
        pods = [pod for subject in self.world.index.subjects_of(policy.ref) for pod in selected.get(subject, ())]
        problem = policy.problem or (_sentence(refused) if refused is not None else "")
        return PolicyView(
            kind=policy.ref.kind,
            namespace=policy.ref.namespace,
            name=policy.ref.name,
            isolates=tuple(sorted(map(str, policy.isolates))),
            rules=len(policy.rules),
            endpoints=tuple(sorted(pods)),
            origin=str(policy.origin),
            problem=problem,
            status=_status(problem),
        )

    # ---- nodes

    def nodes(self) -> list[NodeView]:
        config = self.world.config
        counts = Counter(state.pod.node or config.name for state in self.world.pods)
        for name in self.world.remotes.nodes():
            counts[name] += len(self.world.remotes.of(name))
        zones, peers = self.world.nodes.zones, self.world.nodes.peers()
        own = Peer(config.name, config.addresses, config.pod_cidrs)
        others = sorted((peers.keys() | counts.keys()) - {config.name})
        nodes = [own, *(peers.get(name, Peer(name, (), ())) for name in others)]
        return [
            NodeView(
                name=node.name,
                local=node is own,
                addresses=tuple(map(format_address, node.addresses)),
                pod_cidrs=tuple(map(str, node.pod_cidrs)),
                zone=zones.get(node.name, ""),
                pods=counts[node.name],
            )
            for node in nodes
        ]


def own_labels(identity: Identity) -> dict[str, str]:
    """Those that pods have themselves."""
    return {key: value for key, value in identity.workload.labels.items() if key != SERVICE_ACCOUNT}


def _refused(problem: Problem) -> PolicyView:
    """A policy of which nothing is in force."""
    kind, _, key = problem.subject.partition(" ")
    namespace, _, name = key.rpartition("/")
    return PolicyView(
        kind=kind,
        namespace=namespace,
        name=name,
        isolates=(),
        rules=0,
        endpoints=(),
        origin=str(Origin(problem.file, problem.line)),
        problem=_sentence(problem),
        status=_status(_sentence(problem)),
    )


def _sentence(problem: Problem) -> str:
    field = f"{problem.path}: " if problem.path else ""
    return f"{field}{problem.message}{f' ({problem.effect})' if problem.effect else ''}"


def _status(problem: str) -> str:
    return f"not enforced: {problem}" if problem else "accepted"


def problem_views(problems: Iterable[Problem]) -> tuple[ProblemView, ...]:
    return tuple(
        ProblemView(file=p.file, line=p.line, subject=p.subject, path=p.path, message=p.message, warning=p.warning)
        for p in problems
    )


def _by_subject(problems: Iterable[Problem]) -> dict[str, str]:
    return {problem.subject: problem.message for problem in problems}


def _pod_key(state: PodState) -> ObjectRef:
    return state.pod.ref
