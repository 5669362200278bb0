"""Where Envoy sends what passes: on to the address the client meant, in the clear or in TLS of its own. Pure."""

from __future__ import annotations

from typing import Any

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import base_pb2, config_source_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from l7proxy.listening import ProxySettings, TlsMaterial
from l7proxy.matching import packed
from l7proxy.material import to_end_with
from l7proxy.resource import CLUSTER, SECRET, Key, Resource, resource
from policies.l7 import TlsContext

DIRECT = "original-destination"
REFUSED = "refused"
"""A cluster without endpoints."""

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_UNLIMITED = 0xFFFFFFFF
_UPSTREAM_IDLE_S = 2
"""Envoy does not end a connection to a server with the client's: for so long it stays, and not much longer."""

KEEPALIVE_S = 300
"""After so long without data both ends are asked whether they are still there."""

ADS = config_source_pb2.ConfigSource(
    resource_api_version=config_source_pb2.V3,
    ads=config_source_pb2.AggregatedConfigSource(),
    initial_fetch_timeout={"seconds": 0},  # a listener waits for what it names; it never works without
)


def certificate_name(context: TlsContext) -> str:
    return f"certificate {context.namespace}/{context.name} {context.certificate} {context.private_key}".rstrip()


def authority_name(context: TlsContext) -> str:
    return f"authority {context.namespace}/{context.name} {context.trusted_ca}".rstrip()


def origination_name(context: TlsContext) -> str:
    parts = (context.certificate, context.private_key, context.trusted_ca)
    return f"tls {context.namespace}/{context.name} {' '.join(parts)}".rstrip()


def certificate(context: TlsContext, material: TlsMaterial) -> Resource:
    name = certificate_name(context)
    chain = base_pb2.DataSource(inline_bytes=material.certificate)
    key = base_pb2.DataSource(inline_bytes=material.private_key)
    value = common_pb2.TlsCertificate(certificate_chain=chain, private_key=key)
    return resource(SECRET, name, secret_pb2.Secret(name=name, tls_certificate=value))


def authority(context: TlsContext, material: TlsMaterial) -> Resource:
    name = authority_name(context)
    trusted = base_pb2.DataSource(inline_bytes=material.trusted_ca)
    value = common_pb2.CertificateValidationContext(trusted_ca=trusted)
    return resource(SECRET, name, secret_pb2.Secret(name=name, validation_context=value))


def sds(name: str) -> Any:
    return secret_pb2.SdsSecretConfig(name=name, sds_config=ADS)


def direct(settings: ProxySettings) -> Resource:
    return resource(CLUSTER, DIRECT, _to_destination(DIRECT, settings))


def refused() -> Resource:
    cluster = cluster_pb2.Cluster(name=REFUSED, type=cluster_pb2.Cluster.STATIC, connect_timeout={"seconds": 1})
    cluster.load_assignment.cluster_name = REFUSED
    return resource(CLUSTER, REFUSED, cluster)


def origination(context: TlsContext, material: TlsMaterial, settings: ProxySettings) -> list[Resource]:
    """The cluster and the secrets it needs. Whose certificate is asked for and believed: the request's host, or of a
    connection that is not HTTP the name its client asked for."""
    secrets = [authority(context, material)]
    common = tls_pb2.CommonTlsContext(validation_context_sds_secret_config=sds(authority_name(context)))
    common.tls_params.tls_minimum_protocol_version = common_pb2.TlsParameters.TLSv1_2
    if not to_end_with(material):  # a certificate for the other end to check
        secrets.append(certificate(context, material))
        common.tls_certificate_sds_secret_configs.append(sds(certificate_name(context)))
    name = origination_name(context)
    cluster = _to_destination(name, settings, named_by_host=True)
    cluster.transport_socket.name = "tls"
    cluster.transport_socket.typed_config.CopyFrom(packed(tls_pb2.UpstreamTlsContext(common_tls_context=common)))
    needs: frozenset[Key] = frozenset(one.key for one in secrets)
    return [resource(CLUSTER, name, cluster, needs), *secrets]


def _to_destination(name: str, settings: ProxySettings, *, named_by_host: bool = False) -> Any:
    """With the client's own protocol, by a connection that is the client's own: one that another client left
    might be about to be closed, and a new connection would meet an error it could not have met without us."""
    protocol = http_protocol_options_pb2.HttpProtocolOptions()
    protocol.use_downstream_protocol_config.http_protocol_options.enable_trailers = True
    protocol.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    protocol.common_http_protocol_options.idle_timeout.seconds = _UPSTREAM_IDLE_S
    if named_by_host:
        protocol.upstream_http_protocol_options.auto_sni = True
        protocol.upstream_http_protocol_options.auto_san_validation = True
    limits = circuit_breaker_pb2.CircuitBreakers.Thresholds()
    for limit in (limits.max_connections, limits.max_pending_requests, limits.max_requests, limits.max_retries):
        limit.value = _UNLIMITED
    cluster = cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.ORIGINAL_DST,
        lb_policy=cluster_pb2.Cluster.CLUSTER_PROVIDED,
        connect_timeout={"seconds": settings.connect_timeout_s},
        connection_pool_per_downstream_connection=True,
        circuit_breakers=circuit_breaker_pb2.CircuitBreakers(thresholds=[limits]),
    )
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(packed(protocol))
    cluster.upstream_connection_options.tcp_keepalive.keepalive_time.value = KEEPALIVE_S
    return cluster
