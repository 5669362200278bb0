"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2) → policies.model.

What is valid follows Cilium's own validation and documentation; what they know and Gatehouse does not enforce is
refused with the field's name.
"""
