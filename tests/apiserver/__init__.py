"""A Kubernetes API server for tests: real HTTP, real resourceVersions, and faults on demand.

    with ApiServer(token="t", without=("policy.networking.k8s.io",)) as api:      # tests/kube: fixture `api`
        api.load(objects)                         # dicts with apiVersion, kind, metadata; 30,000 in a second or two
        api.put(obj); api.get("pods", "web-1", "shop"); api.objects("pods"); api.delete("pods", "web-1", "shop")
        api.url; api.token; api.kubeconfig(path, token_file); api.set_token("new")  # the former: 401
        api.requests                              # Seen(verb, group, resource, namespace, name, path, query, agent)
        api.watching("pods"); api.drop_watches(); api.bookmark(); api.compact()     # compact: a 410 storm
        api.install(resource); api.uninstall("clusternetworkpolicies")              # a definition comes or goes
        api.stop(); api.start()                   # connections reset, then refused; same port, same objects
        rule = api.faults.refuse(429, retry_after_s=1, verbs=["list"], resources=["pods"], times=3)
        api.faults.hang(verbs=["watch"]); api.faults.slow(bytes_per_s=1000); api.faults.reset(after=100)
        api.faults.stall("pods"); api.faults.flow("pods")   # open watches that send nothing; in which order they go on
        api.faults.remove(rule); api.faults.clear()

All of it may be called from any thread while it serves. `ApiServer(netns=node, host=...)` listens inside a namespace.
`remote.RemoteApi` is the same in a process of its own (for what is measured): load, put, delete, requests and
call("faults.stall", "pods") for the rest. `client.Client` asks by hand, `real.RealServer` runs a kube-apiserver.
The fixture `either_api` of tests/kube is the one, then the other.

What it does as the real one: discovery; lists with limit and continue, consistent at the first page's version, 410
with a fresh token when that is compacted; resourceVersion and resourceVersionMatch; label selectors, field selectors
(metadata.name, metadata.namespace, spec.nodeName); watches with bookmarks, timeoutSeconds, sendInitialEvents, selectors
that turn changes into ADDED and DELETED, and 410 as an ERROR event (faults.gone_as_status: as HTTP status); optimistic
concurrency; generation; status subresources; finalizers and graceful deletion of pods; Status objects as errors; for
gatehouse.io the chart's schemas with their CEL rules, and pruning. (`load` and `put` check nothing.) After `stop` and
`start` it still has its history; a real one has not: compact(tell=False) in between is like it.
`tests/kube/test_apiserver.py` asks the same of it and of a real kube-apiserver.

What it leaves out: other schemas, admission, RBAC, garbage collection by owner (that is a controller's), a PUT that
makes, conflicts of server-side apply (it merges; lists are replaced), dry runs, tables, protobuf, compression, HTTP/2.
"""

from apiserver.resources import TABLE, Resource
from apiserver.server import ApiServer, write_kubeconfig

__all__ = ["TABLE", "ApiServer", "Resource", "write_kubeconfig"]
