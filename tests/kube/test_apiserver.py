"""What an API server does with reads and writes: one table, asked of the in-test server and of a real kube-apiserver.

Plain HTTP, so that neither the client under test nor a library stands between. Each row has a namespace and numbers of
its own: a real server is shared by the rows."""

from __future__ import annotations

import itertools
import os
from typing import Any

import msgspec
import pytest
from apiserver.client import JSON, Client

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"

CORE = "/api/v1/namespaces/{ns}"
MAPS = f"{CORE}/configmaps"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/{ns}/networkpolicies"
CILIUM = "/apis/cilium.io/v2/namespaces/{ns}/ciliumnetworkpolicies"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{ns}/leases"
IDENTITIES = "/apis/gatehouse.io/v1alpha1/securityidentities"
STATUSES = "/apis/gatehouse.io/v1alpha1/nodestatuses"

ENDPOINTS = "/apis/gatehouse.io/v1alpha1/nodeendpoints"
BLOCKS = "/apis/gatehouse.io/v1alpha1/nodeblocks"
ENDPOINT = {"pod": "shop/web", "ips": ["10.0.0.2", "fd00::2"], "identity": 300, "digest": "0123456789abcdef"}

ABSENT = object()
"""Expected where a field is not to be there."""

_numbers = itertools.count(256 + os.getpid() % 1000 * 64)


class Step(msgspec.Struct, frozen=True):
    """A request, what is expected of the answer (`has`: dotted path to value), and what of it is kept for later steps
    (name to dotted path). {ns}, {n} and kept names are filled in everywhere."""

    method: str
    path: str
    body: Any = None
    code: int = 200
    has: dict[str, Any] = {}
    keep: dict[str, str] = {}
    content_type: str = JSON


def get(path: str, code: int = 200, **kw: Any) -> Step:
    return Step("GET", path, code=code, **kw)


def post(path: str, body: Any, code: int = 201, **kw: Any) -> Step:
    return Step("POST", path, body, code, **kw)


def put(path: str, body: Any, code: int = 200, **kw: Any) -> Step:
    return Step("PUT", path, body, code, **kw)


def patch(kind: str, path: str, body: Any, code: int = 200, **kw: Any) -> Step:
    return Step("PATCH", path, body, code, content_type=kind, **kw)


def delete(path: str, body: Any = None, code: int = 200, **kw: Any) -> Step:
    return Step("DELETE", path, body, code, **kw)


def a_map(name: str = "a", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **metadata}}


def identity(name: str = "{n}", namespace: str = "shop", **metadata: Any) -> dict[str, Any]:
    spec = {"namespace": namespace, "serviceAccount": "web", "labels": {"app": "web"}}
    about = {"apiVersion": "gatehouse.io/v1alpha1", "kind": "SecurityIdentity"}
    return about | {"metadata": {"name": name, **metadata}, "spec": spec}


def cnp(spec: Any, status: Any = None, **metadata: Any) -> dict[str, Any]:
    about = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "p", **metadata}}
    return about | {"spec": spec} | ({"status": status} if status else {})


def endpoints() -> dict[str, Any]:
    spec = {"addresses": ["192.0.2.1"], "podCIDRs": ["10.0.0.0/24", "fd00::/64"], "endpoints": [ENDPOINT]}
    about = {"apiVersion": "gatehouse.io/v1alpha1", "kind": "NodeEndpoints", "metadata": {"name": "{ns}"}}
    return about | {"spec": spec}


def block(name: str, cidr: str) -> dict[str, Any]:
    about = {"apiVersion": "gatehouse.io/v1alpha1", "kind": "NodeBlock", "metadata": {"name": name}}
    return about | {"spec": {"cidr": cidr, "node": "n1"}}


def failure(reason: str, **details: Any) -> dict[str, Any]:
    expected = {"kind": "Status", "status": "Failure", "reason": reason}
    return expected | {f"details.{key}": value for key, value in details.items()}


POD = {"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}}
RV = {"rv": "metadata.resourceVersion"}
SAME = {"metadata.resourceVersion": "{rv}"}
MADE = [post(MAPS, a_map(), keep=RV)]
KNOWN = [post(IDENTITIES, identity(), keep=RV | {"uid": "metadata.uid"})]
HELD = [post(CILIUM, cnp({"a": 1}, finalizers=["x.io/y"]), keep=RV)]

ROWS: dict[str, list[Step]] = {
    # What there is
    "discovery of the core": [get("/api", has={"kind": "APIVersions", "versions": ["v1"]})],
    "discovery of a group": [get("/apis/cilium.io", has={"kind": "APIGroup", "preferredVersion.version": "v2"})],
    "discovery of a version": [
        get("/apis/cilium.io/v2", has={"kind": "APIResourceList", "groupVersion": "cilium.io/v2"})
    ],
    "a group that is not there": [get("/apis/nobody.example/v1", 404)],
    "a resource that is not there": [get("/apis/cilium.io/v2/nothings", 404)],
    "a version that is not there": [get("/apis/cilium.io/v9/ciliumnetworkpolicies", 404)],
    "two versions of a resource": [
        get("/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"),
        get("/apis/policy.networking.k8s.io/v1beta1/clusternetworkpolicies", has={"kind": "ClusterNetworkPolicyList"}),
    ],
    "health": [get("/readyz"), get("/livez"), get("/version", has={"major": "1"})],
    # Create
    "create": [
        post(MAPS, a_map() | {"data": {"k": "v"}}, has={"kind": "ConfigMap", "apiVersion": "v1", "data.k": "v"}),
        get(f"{MAPS}/a", has={"metadata.namespace": "{ns}", "data.k": "v"}),
    ],
    "create twice": [*MADE, post(MAPS, a_map(), 409, has=failure("AlreadyExists", name="a", kind="configmaps"))],
    "create a number twice": [
        *KNOWN,
        post(IDENTITIES, identity(namespace="other"), 409, has=failure("AlreadyExists", group="gatehouse.io")),
    ],
    "create with a generated name": [post(MAPS, {"metadata": {"generateName": "a-"}}, keep={"name": "metadata.name"})],
    "create without a name": [post(MAPS, {"metadata": {}}, 422, has=failure("Invalid"))],
    "create with a bad name": [post(MAPS, a_map("A_B"), 422, has=failure("Invalid", name="A_B", kind="ConfigMap"))],
    "create with a version": [post(MAPS, a_map(resourceVersion="4"), 500)],
    "create in no namespace": [post("/api/v1/configmaps", a_map(), 405)],
    "create in a namespace that is not there": [
        post("/api/v1/namespaces/{ns}-not/configmaps", a_map(), 404, has=failure("NotFound", kind="namespaces"))
    ],
    "create with another namespace in the body": [post(MAPS, a_map(namespace="x"), 400, has=failure("BadRequest"))],
    "create another kind": [post(MAPS, a_map() | {"apiVersion": "v1", "kind": "Secret"}, 400)],
    "create a custom object without its kind": [post(IDENTITIES, {"metadata": {"name": "{n}"}}, 400)],
    "create from what is not JSON": [post(MAPS, b"{bad", 400, has=failure("BadRequest"))],
    "create from text": [post(MAPS, b"{}", 415, content_type="text/plain", has=failure("UnsupportedMediaType"))],
    "create with a status": [post(CILIUM, cnp({"a": 1}, {"b": 1}), has={"status": ABSENT, "metadata.generation": 1})],
    "a node comes with its status": [
        post(
            "/api/v1/nodes",
            a_map("{ns}") | {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}},
            has={"status.addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        ),
        delete("/api/v1/nodes/{ns}"),
    ],
    "defaults of a namespace": [
        get("/api/v1/namespaces/{ns}", has={"metadata.labels": {"kubernetes.io/metadata.name": "{ns}"}})
    ],
    "defaults of a NetworkPolicy": [
        post(
            POLICIES,
            a_map() | {"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}},
            has={"spec.policyTypes": ["Ingress"], "spec.ingress": [{"ports": [{"port": 80, "protocol": "TCP"}]}]},
        )
    ],
    "defaults of a Service": [
        post(
            f"{CORE}/services",
            a_map() | {"spec": {"ports": [{"port": 80}]}},
            has={"spec.ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "spec.type": "ClusterIP"},
        )
    ],
    # Read
    "get what is not there": [get(f"{MAPS}/a", 404, has=failure("NotFound", name="a", kind="configmaps"))],
    "get a custom object that is not there": [
        get(f"{IDENTITIES}/1", 404, has=failure("NotFound", name="1", group="gatehouse.io", kind="securityidentities"))
    ],
    "get says kind and version": [*KNOWN, get(f"{IDENTITIES}/{{n}}", has={"apiVersion": "gatehouse.io/v1alpha1"})],
    # Update
    "update": [*MADE, put(f"{MAPS}/a", a_map(resourceVersion="{rv}") | {"data": {"a": "b"}}, has={"data.a": "b"})],
    "update without a version": [*MADE, put(f"{MAPS}/a", a_map() | {"data": {"a": "b"}}, has={"data.a": "b"})],
    "update of an old version": [
        *MADE,
        patch(MERGE, f"{MAPS}/a", {"data": {"a": "b"}}),
        put(f"{MAPS}/a", a_map(resourceVersion="{rv}"), 409, has=failure("Conflict", name="a")),
    ],
    "update of nothing": [*MADE, put(f"{MAPS}/a", a_map(), has=SAME)],
    "update of what is not there": [put(f"{CORE}/pods/a", a_map(), 404)],
    "update of another name": [*MADE, put(f"{MAPS}/a", a_map("b"), 400, has=failure("BadRequest"))],
    "update of another uid": [
        *MADE,
        put(f"{MAPS}/a", a_map(uid="a5c8a1de-0000-0000-0000-000000000000"), 409, has=failure("Conflict")),
    ],
    "update of a custom object without a version": [
        *KNOWN,
        put(f"{IDENTITIES}/{{n}}", identity(), 422, has=failure("Invalid")),
    ],
    "update of a lease without a version": [
        post(LEASES, a_map() | {"spec": {"holderIdentity": "a"}}),
        put(f"{LEASES}/a", a_map() | {"spec": {"holderIdentity": "b"}}, 422),
    ],
    "a lease is taken once": [
        post(LEASES, a_map() | {"spec": {"holderIdentity": "a"}}, keep=RV),
        put(f"{LEASES}/a", a_map(resourceVersion="{rv}") | {"spec": {"holderIdentity": "b"}}),
        put(f"{LEASES}/a", a_map(resourceVersion="{rv}") | {"spec": {"holderIdentity": "c"}}, 409),
    ],
    # Patch
    "merge patch": [
        *MADE,
        patch(MERGE, f"{MAPS}/a", {"data": {"a": "1", "b": "2"}}),
        patch(MERGE, f"{MAPS}/a", {"data": {"a": None}}, has={"data": {"b": "2"}}),
    ],
    "merge patch of an old version": [
        *KNOWN,
        patch(MERGE, f"{IDENTITIES}/{{n}}", {"metadata": {"labels": {"a": "b"}}}),
        patch(MERGE, f"{IDENTITIES}/{{n}}", {"metadata": {"resourceVersion": "{rv}", "labels": None}}, 409),
    ],
    "merge patch of the version that is there": [
        *KNOWN,
        patch(MERGE, f"{IDENTITIES}/{{n}}", {"metadata": {"resourceVersion": "{rv}", "labels": {"a": "b"}}}),
    ],
    "patch of nothing": [*MADE, patch(MERGE, f"{MAPS}/a", {}, has=SAME)],
    "patch of what is not there": [patch(MERGE, f"{MAPS}/a", {}, 404, has=failure("NotFound"))],
    "patch of a number's meaning": [
        *KNOWN,
        patch(MERGE, f"{IDENTITIES}/{{n}}", {"spec": {"namespace": "b"}}, 422, has=failure("Invalid")),
        get(f"{IDENTITIES}/{{n}}", has={"spec.namespace": "shop"}),
    ],
    "strategic patch": [*MADE, patch(STRATEGIC, f"{MAPS}/a", {"data": {"a": "1"}}, has={"data.a": "1"})],
    "strategic patch of a custom object": [*KNOWN, patch(STRATEGIC, f"{IDENTITIES}/{{n}}", {}, 415)],
    "JSON patch": [
        *MADE,
        patch(JSON_PATCH, f"{MAPS}/a", [{"op": "add", "path": "/data", "value": {"a": "1"}}], has={"data.a": "1"}),
        patch(JSON_PATCH, f"{MAPS}/a", [{"op": "replace", "path": "/data/a", "value": "2"}], has={"data.a": "2"}),
        patch(JSON_PATCH, f"{MAPS}/a", [{"op": "remove", "path": "/data"}], has={"data": ABSENT}),
    ],
    "JSON patch whose test fails": [
        *KNOWN,
        patch(JSON_PATCH, f"{IDENTITIES}/{{n}}", [{"op": "test", "path": "/spec/namespace", "value": "x"}], 422),
    ],
    "JSON patch of no known operation": [*MADE, patch(JSON_PATCH, f"{MAPS}/a", [{"op": "no", "path": "/data"}], 422)],
    "fields that no schema knows": [
        post(IDENTITIES, identity() | {"more": 1}, has={"more": ABSENT}),
        patch(MERGE, f"{IDENTITIES}/{{n}}", {"spec": {"x": 1}}, has={"spec.x": ABSENT, "metadata.generation": 1}),
    ],
    "apply makes and changes": [
        patch(APPLY, f"{IDENTITIES}/{{n}}?fieldManager=m", identity(), 201, has={"spec.namespace": "shop"}),
        patch(APPLY, f"{IDENTITIES}/{{n}}?fieldManager=m", identity(labels={"a": "b"}), has={"metadata.labels.a": "b"}),
        patch(APPLY, f"{IDENTITIES}/{{n}}?fieldManager=m", identity(), has={"metadata.labels": ABSENT}),
    ],
    "apply leaves what others set": [
        *KNOWN,
        patch(MERGE, f"{IDENTITIES}/{{n}}", {"metadata": {"annotations": {"a": "b"}}}),
        patch(APPLY, f"{IDENTITIES}/{{n}}?fieldManager=m", identity(), has={"metadata.annotations.a": "b"}),
    ],
    "apply of nothing": [
        patch(APPLY, f"{IDENTITIES}/{{n}}?fieldManager=m", identity(), 201, keep=RV),
        patch(APPLY, f"{IDENTITIES}/{{n}}?fieldManager=m", identity(), has=SAME),
    ],
    "apply without a manager": [patch(APPLY, f"{IDENTITIES}/{{n}}", identity(), 422, has=failure("Invalid"))],
    "apply without a name": [
        patch(
            APPLY, f"{IDENTITIES}/{{n}}?fieldManager=m", identity() | {"metadata": {}}, 400, has=failure("BadRequest")
        )
    ],
    # Schemas and rules of the chart
    **{
        f"no identity named {name}": [post(IDENTITIES, identity(name), 422, has=failure("Invalid", name=name))]
        for name in ("255", "65536", "0300", "web", "1e3")
    },
    **{
        f"no NodeEndpoints with {key} {value}": [
            post(ENDPOINTS, endpoints() | {"spec": {key: value}}, 422, has=failure("Invalid", kind="NodeEndpoints"))
        ]
        for key, value in [
            ("addresses", "192.0.2.1"),
            ("addresses", ["a host"]),
            ("podCIDRs", ["10.0.0.0/24", "10.0.1.0/24"]),
            ("podCIDRs", ["10.0.0.0"]),
            ("publicKey", "short"),
            ("endpoints", [ENDPOINT | {"digest": "0123"}]),
            ("endpoints", [ENDPOINT | {"identity": 255}]),
            ("endpoints", [ENDPOINT | {"identity": "300"}]),
            ("endpoints", [ENDPOINT | {"ips": []}]),
            ("endpoints", [ENDPOINT | {"ports": [{"name": "web", "protocol": "ICMP", "port": 80}]}]),
            ("endpoints", [ENDPOINT, ENDPOINT]),
            ("endpoints", [{"pod": "shop/web"}]),
        ]
    },
    "NodeEndpoints as an agent writes it": [
        post(ENDPOINTS, endpoints(), has={"spec.endpoints": [ENDPOINT]}),
        delete(f"{ENDPOINTS}/{{ns}}"),
    ],
    "a block is named after itself": [
        post(BLOCKS, block("10-9-0-0-24", "10.9.1.0/24"), 422, has=failure("Invalid")),
        post(BLOCKS, block("10-9-0-0-24", "10.9.0.0/24"), keep=RV),
        post(BLOCKS, block("10-9-0-0-24", "10.9.0.0/24"), 409, has=failure("AlreadyExists")),
        patch(MERGE, f"{BLOCKS}/10-9-0-0-24", {"spec": {"node": "other"}}, 422, has=failure("Invalid")),
        delete(f"{BLOCKS}/10-9-0-0-24"),
    ],
    # Status and generation
    "status is changed apart": [
        post(CILIUM, cnp({"a": 1})),
        patch(MERGE, f"{CILIUM}/p", {"status": {"x": 1}}, has={"status": ABSENT, "metadata.generation": 1}),
        patch(MERGE, f"{CILIUM}/p/status", {"status": {"x": 1}, "spec": {"a": 2}}, has={"status.x": 1, "spec.a": 1}),
        patch(MERGE, f"{CILIUM}/p", {"spec": {"a": 2}}, has={"metadata.generation": 2, "status.x": 1}),
        get(f"{CILIUM}/p/status", has={"spec.a": 2, "status.x": 1}),
    ],
    "status by apply": [
        post(STATUSES, {"apiVersion": "gatehouse.io/v1alpha1", "kind": "NodeStatus", "metadata": {"name": "{ns}"}}),
        patch(
            APPLY,
            f"{STATUSES}/{{ns}}/status?fieldManager=m&force=true",
            {
                "apiVersion": "gatehouse.io/v1alpha1",
                "kind": "NodeStatus",
                "metadata": {"name": "{ns}"},
                "status": {"version": "1"},
            },
            has={"status.version": "1"},
        ),
        delete(f"{STATUSES}/{{ns}}"),
    ],
    "no status without a subresource": [*KNOWN, get(f"{IDENTITIES}/{{n}}/status", 404)],
    "labels are no generation": [
        post(POLICIES, a_map() | {"spec": {"podSelector": {}}}, has={"metadata.generation": 1}),
        patch(MERGE, f"{POLICIES}/a", {"metadata": {"labels": {"a": "b"}}}, has={"metadata.generation": 1}),
        patch(MERGE, f"{POLICIES}/a", {"spec": {"policyTypes": ["Egress"]}}, has={"metadata.generation": 2}),
    ],
    "status of a pod": [
        post(f"{CORE}/pods", POD),
        patch(MERGE, f"{CORE}/pods/p/status", {"status": {"podIPs": [{"ip": "192.0.2.9"}]}}),
        get(f"{CORE}/pods/p", has={"status.podIPs": [{"ip": "192.0.2.9"}], "metadata.generation": 1}),
        delete(f"{CORE}/pods/p?gracePeriodSeconds=0"),
    ],
    # Delete
    "delete": [
        *KNOWN,
        delete(f"{IDENTITIES}/{{n}}", has={"status": "Success", "details.uid": "{uid}"}),
        delete(f"{IDENTITIES}/{{n}}", code=404, has=failure("NotFound", name="{n}")),
    ],
    "delete another uid": [
        *KNOWN,
        delete(f"{IDENTITIES}/{{n}}", {"preconditions": {"uid": "x"}}, 409, has=failure("Conflict")),
    ],
    "delete another version": [
        *KNOWN,
        patch(MERGE, f"{IDENTITIES}/{{n}}", {"metadata": {"annotations": {"a": "b"}}}),
        delete(f"{IDENTITIES}/{{n}}", {"preconditions": {"uid": "{uid}", "resourceVersion": "{rv}"}}, 409),
    ],
    "delete that uid and version": [
        *KNOWN,
        delete(f"{IDENTITIES}/{{n}}", {"preconditions": {"uid": "{uid}", "resourceVersion": "{rv}"}}),
    ],
    "delete what has finalizers": [
        *HELD,
        delete(f"{CILIUM}/p", has={"kind": "CiliumNetworkPolicy", "metadata.deletionGracePeriodSeconds": 0}),
        get(f"{CILIUM}/p", has={"metadata.finalizers": ["x.io/y"], "metadata.generation": 2}),
        patch(MERGE, f"{CILIUM}/p", {"metadata": {"finalizers": None}}),
        get(f"{CILIUM}/p", 404),
    ],
    "delete a pod that a kubelet stops": [
        post(f"{CORE}/pods", POD),
        delete(f"{CORE}/pods/p", has={"metadata.deletionGracePeriodSeconds": 30, "metadata.generation": 2}),
        get(f"{CORE}/pods/p"),
        delete(f"{CORE}/pods/p", {"gracePeriodSeconds": 0}),
        get(f"{CORE}/pods/p", 404),
    ],
    "delete a pod of no node": [
        post(f"{CORE}/pods", {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        delete(f"{CORE}/pods/p"),
        get(f"{CORE}/pods/p", 404),
    ],
    "delete those with a label": [
        post(MAPS, a_map("a", labels={"x": "1"})),
        post(MAPS, a_map("b", labels={"x": "2"})),
        delete(f"{MAPS}?labelSelector=x%3D1", has={"kind": "ConfigMapList"}),
        get(f"{MAPS}/a", 404),
        get(f"{MAPS}/b"),
    ],
}


def filled(given: Any, values: dict[str, str]) -> Any:
    if isinstance(given, str):
        for name, value in values.items():
            given = given.replace("{" + name + "}", value)
        return given
    if isinstance(given, dict):
        return {key: filled(value, values) for key, value in given.items()}
    return [filled(value, values) for value in given] if isinstance(given, list) else given


def at(document: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(document, dict) or part not in document:
            return ABSENT
        document = document[part]
    return document


@pytest.mark.parametrize("row", ROWS)
def test_both_servers_answer_alike(either: Client, row: str) -> None:
    number = next(_numbers)
    values = {"ns": f"row-{os.getpid()}-{number}", "n": str(256 + number % 65000)}
    either.ask("POST", "/api/v1/namespaces", {"metadata": {"name": values["ns"]}}, expect=201)
    for step in ROWS[row]:
        path = filled(step.path, values)
        answer = either.ask(step.method, path, filled(step.body, values), content_type=step.content_type)
        assert answer.code == step.code, f"{step.method} {path}: {answer.code} {answer.body.decode()}"
        for where, expected in step.has.items():
            assert at(answer.json(), where) == filled(expected, values), f"{step.method} {path}: {answer.body.decode()}"
        for name, where in step.keep.items():
            values[name] = at(answer.json(), where)
            assert isinstance(values[name], str)
