"""Which resources there are, and what the API machinery does to each."""

from __future__ import annotations

import msgspec


class Resource(msgspec.Struct, frozen=True):
    """`versions`: those served, the preferred first; one object is in all of them, unconverted."""

    group: str  # "" for core
    versions: tuple[str, ...]
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False  # has a /status: the rest of the object is written without it, and it alone there
    generation: bool = False  # metadata.generation counts the changes of all but metadata and status
    custom: bool = False  # of a CustomResourceDefinition
    unconditional: bool = True  # a PUT may leave out metadata.resourceVersion
    returned: bool = False  # DELETE answers with the object, not with a Status

    @property
    def qualified(self) -> str:
        """As messages name it: networkpolicies.networking.k8s.io."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def api_version(self, version: str) -> str:
        return f"{self.group}/{version}" if self.group else version

    def root(self, version: str) -> str:
        return f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"

    def path(self, namespace: str = "", name: str = "", version: str = "") -> str:
        """Of the collection (namespace "" for all), or of one object. `version`: else the preferred one."""
        where = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{self.root(version or self.versions[0])}{where}/{self.plural}" + (f"/{name}" if name else "")


def _custom(group: str, versions: str, plural: str, kind: str, **kw: object) -> Resource:
    fields = {"namespaced": False, "generation": True, "custom": True, "unconditional": False} | kw
    return msgspec.convert(
        {"group": group, "versions": tuple(versions.split()), "plural": plural, "kind": kind} | fields, Resource
    )


GATEHOUSE = "gatehouse.io"
CILIUM = "cilium.io"
POLICY = "policy.networking.k8s.io"

TABLE = (
    Resource("", ("v1",), "namespaces", "Namespace", namespaced=False, status=True),
    Resource("", ("v1",), "nodes", "Node", namespaced=False, status=True),
    Resource("", ("v1",), "pods", "Pod", status=True, generation=True, returned=True),
    Resource("", ("v1",), "services", "Service", status=True, returned=True),
    Resource("", ("v1",), "secrets", "Secret"),
    Resource("", ("v1",), "configmaps", "ConfigMap"),
    Resource("discovery.k8s.io", ("v1",), "endpointslices", "EndpointSlice", generation=True),
    Resource("networking.k8s.io", ("v1",), "networkpolicies", "NetworkPolicy", generation=True),
    Resource("coordination.k8s.io", ("v1",), "leases", "Lease", unconditional=False),
    _custom(CILIUM, "v2", "ciliumnetworkpolicies", "CiliumNetworkPolicy", namespaced=True, status=True),
    _custom(CILIUM, "v2", "ciliumclusterwidenetworkpolicies", "CiliumClusterwideNetworkPolicy", status=True),
    _custom(POLICY, "v1alpha2 v1beta1", "clusternetworkpolicies", "ClusterNetworkPolicy", status=True),
    _custom(POLICY, "v1alpha1", "adminnetworkpolicies", "AdminNetworkPolicy", status=True),
    _custom(POLICY, "v1alpha1", "baselineadminnetworkpolicies", "BaselineAdminNetworkPolicy", status=True),
    _custom(GATEHOUSE, "v1alpha1", "securityidentities", "SecurityIdentity"),
    _custom(GATEHOUSE, "v1alpha1", "nodeendpoints", "NodeEndpoints"),
    _custom(GATEHOUSE, "v1alpha1", "nodestatuses", "NodeStatus", status=True),
    _custom(GATEHOUSE, "v1alpha1", "nodeblocks", "NodeBlock"),
)
