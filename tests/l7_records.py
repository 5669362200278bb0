"""What proxies report, as the tests of flows share it: the ends are those of flow_events."""

from __future__ import annotations

from typing import Any

from l7proxy.records import L7, Dns, Http, L7Record, Tls

LISTENER = 0x00C0FFEE00C0FFEE
WALL_NS = 1_700_000_000 * 10**9

GET = Http("HTTP/1.1", "GET", "web.shop", "/api/v1", 200, latency_ns=1_200_000, response_bytes=5)
FORBIDDEN = Http("HTTP/2", "POST", "web.shop", "/admin?…", 403, latency_ns=90_000, details="rbac_access_denied[none]")
CALL = Http(
    "gRPC", "POST", "cart.shop", "/shop.Cart/Add", 200, grpc_status=7, latency_ns=2_340_000_000, sni="cart.shop"
)
QUERY = Dns("db.example.com", "AAAA", "NOERROR", ("c.example.net", "2001:db8::7"), ttl_s=30, latency_ns=310_000)
REFUSED = Dns("evil.test", "A", "REFUSED")
HELLO = Tls("api.example.com", latency_ns=5_000_000, request_bytes=517, flags=("upstream_connection_failure",))


def record(l7: L7, **changes: Any) -> L7Record:
    base: dict[str, Any] = {
        "listener": LISTENER,
        "time_ns": WALL_NS,
        "source": "10.0.0.1",
        "source_port": 40000,
        "destination": "10.0.0.2",
        "destination_port": 8080,
        "direction": "egress",
    }
    return L7Record(l7=l7, **(base | changes))
