"""The cluster-in-a-box that `gatehouse demo` builds: manifests, the servers its pods run, and the probes."""
