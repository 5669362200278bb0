"""Layer 7: Envoy's resources, the xDS server, its access log and the DNS proxy."""
