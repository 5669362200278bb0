"""Pods whose networks a container runtime asks for, by the Container Network Interface."""
