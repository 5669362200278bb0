"""CiliumNetworkPolicies with HTTP rules between the pods of tests: shop/web serves at PORT, shop/client asks."""

from __future__ import annotations

from typing import Any

from agents import Document

WEB, CLIENT, OTHER = "shop/web", "shop/client", "shop/other"
PORT = 8080


def cnp(name: str, selector: dict[str, str], **sections: Any) -> Document:
    namespace, _, short = name.partition("/")
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": short, "namespace": namespace},
        "spec": {"endpointSelector": {"matchLabels": selector}, **sections},
    }


def http(*rules: dict[str, Any], port: int = PORT) -> list[dict[str, Any]]:
    return [{"ports": [{"port": str(port), "protocol": "TCP"}], "rules": {"http": list(rules)}}]


def ingress(*rules: dict[str, Any], client: str = "client") -> list[dict[str, Any]]:
    return [{"fromEndpoints": [{"matchLabels": {"app": client}}], "toPorts": http(*rules)}]


def egress(*rules: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"toEndpoints": [{"matchLabels": {"app": "web"}}], "toPorts": http(*rules)}]
