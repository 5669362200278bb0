"""Layer 7: Envoy resources, the xDS server and the DNS proxy. Empty until L7 policy lands."""
