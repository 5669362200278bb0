"""What the agent watches at the API server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from agent.sources.items import VERSIONS
from policies.kinds import KINDS

Drops = Mapping[str, "Drops | None"]
"""Fields to leave out (None), or in which to look for such; "*" stands for each element of a list."""

_METADATA: Drops = {
    "managedFields": None,
    "resourceVersion": None,  # known apart, and the same object is to have the same text
    "generation": None,
    "creationTimestamp": None,
    "selfLink": None,
    "annotations": {"kubectl.kubernetes.io/last-applied-configuration": None},
}
_NO_STATUS: Drops = {"metadata": {**_METADATA, "uid": None, "ownerReferences": None}, "status": None}
_ALL: Drops = {"metadata": {**_METADATA, "uid": None, "ownerReferences": None}}
OWN_ENDPOINTS: Drops = {**_NO_STATUS, "spec": {"endpoints": None}}
"""Of the node's own NodeEndpoints: of its pods it knows more than it tells, and need not read that again each time."""
# A runtime runs pods, so what in is their containers is not wanted; it may be secret, and the reader has its own rules.
_CONTAINER: Drops = dict.fromkeys(
    ("env", "envFrom", "command", "args", "workingDir", "resources", "volumeMounts", "livenessProbe", "readinessProbe",
     "startupProbe", "lifecycle", "securityContext")
)  # fmt: skip
_POD: Drops = {
    "metadata": _METADATA,
    "spec": {"containers": {"*": _CONTAINER}, "initContainers": {"*": _CONTAINER}, "volumes": None, "affinity": None},
    "status": dict.fromkeys(("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")),
}
# Kubelets write their heartbeat and the images they hold.
_NODE: Drops = {
    **_ALL,
    "status": dict.fromkeys(("images", "conditions", "nodeInfo", "volumesInUse", "volumesAttached")),
}


class Resource(msgspec.Struct, frozen=True):
    """Objects of one kind. `versions`: those of its group that can be read, the preferred first.

    `discovered`: whether and in which version there are such is for the server to say, now and again. `essential`:
    without knowing them the agent does not start. `namespace`: only of that one. `query`: of lists and watches.
    """

    kind: str
    plural: str
    group: str = ""
    versions: tuple[str, ...] = ("v1",)
    drops: Drops = {}
    discovered: bool = False
    essential: bool = True
    namespace: str = ""
    query: Mapping[str, str] = {}

    @property
    def key(self) -> str:
        """As kubectl names it, and the namespace it is restricted to: "networkpolicies.networking.k8s.io"."""
        name = f"{self.plural}.{self.group}" if self.group else self.plural
        return f"{name}/{self.namespace}" if self.namespace else name

    def path(self, version: str) -> str:
        """Of the collection."""
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return f"{root}/namespaces/{self.namespace}/{self.plural}" if self.namespace else f"{root}/{self.plural}"

    def api_version(self, version: str) -> str:
        return f"{self.group}/{version}" if self.group else version

    def file(self, namespace: str, name: str) -> str:
        """What stands for the file an object is written in. Without the version: it is the same object in each."""
        group = f"{self.group}/" if self.group else ""
        return f"api:{group}{self.plural}/{namespace}/{name}" if namespace else f"api:{group}{self.plural}/{name}"


_PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "CiliumNetworkPolicy": "ciliumnetworkpolicies",
    "CiliumClusterwideNetworkPolicy": "ciliumclusterwidenetworkpolicies",
    "ClusterNetworkPolicy": "clusternetworkpolicies",
    "AdminNetworkPolicy": "adminnetworkpolicies",
    "BaselineAdminNetworkPolicy": "baselineadminnetworkpolicies",
}
_OTHERS = {
    "Namespace": Resource("Namespace", "namespaces", drops=_NO_STATUS),
    "Node": Resource("Node", "nodes", drops=_NODE),
    "Service": Resource("Service", "services", drops=_ALL),
    "EndpointSlice": Resource("EndpointSlice", "endpointslices", "discovery.k8s.io", drops=_ALL),
    "SecurityIdentity": Resource("SecurityIdentity", "securityidentities", "gatehouse.io", drops=_NO_STATUS),
    "NodeEndpoints": Resource("NodeEndpoints", "nodeendpoints", "gatehouse.io", drops=_NO_STATUS),
}


def watched(node: str, secret_namespaces: Sequence[str] = ()) -> tuple[Resource, ...]:
    """By the agent of this node: of pods only the node's own."""
    return (*_shared(), _pods(node), *map(_secrets, dict.fromkeys(secret_namespaces)))


def _shared() -> Iterator[Resource]:
    for kind, resource in _OTHERS.items():
        yield msgspec.structs.replace(resource, versions=_versions(VERSIONS[kind]))
    for kind, policy in KINDS.items():
        # NetworkPolicy is built in; the others are custom resources, and a cluster may have some of them or none.
        custom = policy.group != "networking.k8s.io"
        versions = _versions(policy.versions)
        yield Resource(kind, _PLURALS[kind], policy.group, versions, _NO_STATUS, discovered=custom)


def _versions(api_versions: Sequence[str]) -> tuple[str, ...]:
    return tuple(version.rpartition("/")[2] for version in api_versions)


def _pods(node: str) -> Resource:
    return Resource("Pod", "pods", drops=_POD, query={"fieldSelector": f"spec.nodeName={node}"})


def _secrets(namespace: str) -> Resource:
    return Resource("Secret", "secrets", drops=_ALL, essential=False, namespace=namespace)
