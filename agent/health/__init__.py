"""HTTP for load balancers: whether this node serves a service, and whether the agent is well."""
