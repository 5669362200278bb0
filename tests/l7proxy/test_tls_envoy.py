"""TLS through a real Envoy: names without ending it, rules within, keys that stay secret."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest
from certificates import Authority
from envoy_at import SERVER_V4, EnvoyPath
from http_client import Connection
from http_server import Server

from l7proxy import clusters
from l7proxy.listening import TlsMaterial
from l7proxy.records import Tls
from l7proxy.snapshot import Snapshot
from policies.l7 import L7, Demands, HeaderMatch, HttpRule, Mismatch, NamePattern, TlsContext

CERTIFICATE, ORIGINATE = TlsContext("default", "shown"), TlsContext("default", "trusted")
GET_PUBLIC = frozenset({HttpRule("GET", "/public/.*")})


@pytest.fixture(scope="module")
def path(root: None) -> Iterator[EnvoyPath]:
    with EnvoyPath(log=True) as path:
        yield path


@pytest.fixture(scope="module")
def inside() -> Authority:
    """What clients trust: it signs what Envoy shows."""
    return Authority("inside")


@pytest.fixture(scope="module")
def outside() -> Authority:
    """What servers have."""
    return Authority("outside")


@pytest.fixture(scope="module")
def materials(inside: Authority, outside: Authority) -> dict[TlsContext, TlsMaterial]:
    shown = inside.pair("api.test", "other.test", "*.more.test")
    return {
        CERTIFICATE: TlsMaterial(certificate=shown.certificate, private_key=shown.private_key),
        ORIGINATE: TlsMaterial(trusted_ca=outside.pem),
    }


def connect(path: EnvoyPath, port: int, authority: Authority, name: str | None) -> Connection:
    """Raises OSError (ssl.SSLError too) where no TLS comes about."""
    context = authority.client_context()
    context.check_hostname = name is not None
    plain = path.connect(port)
    try:
        return Connection(context.wrap_socket(plain, server_hostname=name))
    except OSError:
        plain.close()
        raise


def refused(path: EnvoyPath, port: int, authority: Authority, name: str | None) -> bool:
    with suppress(OSError):
        connect(path, port, authority, name).__exit__()
        return False
    return True


def names(*texts: str) -> frozenset[NamePattern]:
    return frozenset(NamePattern(pattern=text) if "*" in text else NamePattern(exact=text) for text in texts)


# ---- names, TLS as it comes ----------------------------------------------------------------------------------


def test_server_names_are_enforced_without_ending_tls(path: EnvoyPath, outside: Authority) -> None:
    """The server's own certificate is seen; a name that is not allowed never leaves, nor what is no TLS."""
    path.serve({443: frozenset({L7(server_names=names("api.test", "*.more.test", "**.deep.test"))})})
    pair = outside.pair("api.test", "a.more.test", "a.b.deep.test", "x.test", "a.b.more.test", "deep.test")
    with Server(path.server, SERVER_V4, 443, tls=pair.server_context()) as server:
        for name in ("api.test", "API.test", "a.more.test", "a.b.deep.test"):
            with connect(path, 443, outside, name) as connection:
                assert connection.get("/any").status == 200
        assert [one.server_name for one in server.take()] == ["api.test", "API.test", "a.more.test", "a.b.deep.test"]
        accepted = server.accepted
        for denied in ("x.test", "a.b.more.test", "deep.test", None):
            assert refused(path, 443, outside, denied), denied
        with Connection(path.connect(443)) as connection:
            assert connection.get("/").status == 0
        assert server.accepted == accepted


def test_refused_names_are_logged(path: EnvoyPath, outside: Authority) -> None:
    path.serve({444: frozenset({L7(server_names=names("api.test"))})})
    with Server(path.server, SERVER_V4, 444, tls=outside.pair("api.test").server_context()):
        assert refused(path, 444, outside, "secret.test")
        denied = path.log.of_port(444, 1)[0]
        with connect(path, 444, outside, "api.test") as connection:
            connection.get("/")
        allowed = path.log.of_port(444, 2)[1]
    assert isinstance(denied.l7, Tls)
    assert isinstance(allowed.l7, Tls)
    assert (denied.l7.sni, denied.denied) == ("secret.test", True), denied
    assert (allowed.l7.sni, allowed.denied) == ("api.test", False), allowed


def test_no_names_allow_nothing(path: EnvoyPath, outside: Authority) -> None:
    path.serve({445: frozenset({L7(server_names=frozenset())})})
    with Server(path.server, SERVER_V4, 445, tls=outside.pair("api.test").server_context()) as server:
        assert refused(path, 445, outside, "api.test")
        assert server.accepted == 0


def test_names_and_http_in_the_clear_on_one_port(path: EnvoyPath, outside: Authority) -> None:
    path.serve({446: frozenset({L7(server_names=names("api.test")), L7(http=GET_PUBLIC)})})
    with Server(path.server, SERVER_V4, 446, tls=outside.pair("api.test").server_context()):
        with connect(path, 446, outside, "api.test") as connection:
            assert connection.get("/secret").status == 200
        assert refused(path, 446, outside, "other.test")
    with Server(path.server, SERVER_V4, 446), Connection(path.connect(446)) as connection:
        assert [connection.get(target).status for target in ("/public/a", "/secret")] == [200, 403]


# ---- TLS that ends at Envoy ----------------------------------------------------------------------------------


def test_rules_judge_within_tls_and_what_goes_on_is_tls(
    path: EnvoyPath, inside: Authority, outside: Authority, materials: dict[TlsContext, TlsMaterial]
) -> None:
    demands: Demands = frozenset({L7(http=GET_PUBLIC, terminating=CERTIFICATE, originating=ORIGINATE)})
    path.serve({447: demands}, materials=materials)
    with (
        Server(path.server, SERVER_V4, 447, tls=outside.pair("api.test").server_context()) as server,
        connect(path, 447, inside, "api.test") as connection,
    ):
        assert connection.get("/public/a", host="api.test").status == 200
        assert connection.get("/secret", host="api.test").status == 403
        (seen,) = server.take()
    assert (seen.target, seen.server_name) == ("/public/a", "api.test")
    with Server(path.server, SERVER_V4, 447), Connection(path.connect(447)) as plain:
        assert plain.get("/public/a").status == 0  # the rules are about TLS


@pytest.mark.parametrize(("has", "host"), [("other.test", "api.test"), ("api.test", "other.test")])
def test_a_server_that_is_not_who_was_asked_for_gets_nothing(
    path: EnvoyPath,
    inside: Authority,
    outside: Authority,
    materials: dict[TlsContext, TlsMaterial],
    has: str,
    host: str,
) -> None:
    path.serve({448: frozenset({L7(http=GET_PUBLIC, terminating=CERTIFICATE, originating=ORIGINATE)})}, None, materials)
    with (
        Server(path.server, SERVER_V4, 448, tls=outside.pair(has).server_context()) as server,
        connect(path, 448, inside, host) as connection,
    ):
        assert connection.get("/public/a", host=host).status == 503
        assert server.take() == []


def test_a_server_of_another_authority_gets_nothing(
    path: EnvoyPath, inside: Authority, materials: dict[TlsContext, TlsMaterial]
) -> None:
    path.serve({449: frozenset({L7(http=GET_PUBLIC, terminating=CERTIFICATE, originating=ORIGINATE)})}, None, materials)
    with (
        Server(path.server, SERVER_V4, 449, tls=inside.pair("api.test").server_context()) as server,
        connect(path, 449, inside, "api.test") as connection,
    ):
        assert connection.get("/public/a", host="api.test").status == 503
        assert server.take() == []


def test_tls_begun_for_a_client_in_the_clear(
    path: EnvoyPath, outside: Authority, materials: dict[TlsContext, TlsMaterial]
) -> None:
    path.serve({450: frozenset({L7(http=GET_PUBLIC, originating=ORIGINATE)})}, None, materials)
    with (
        Server(path.server, SERVER_V4, 450, tls=outside.pair("api.test").server_context()) as server,
        Connection(path.connect(450)) as connection,
    ):
        assert connection.get("/public/a", host="api.test").status == 200
        assert connection.get("/secret", host="api.test").status == 403
        assert [one.server_name for one in server.take()] == ["api.test"]


def test_names_choose_among_tls_that_ends_here(
    path: EnvoyPath, inside: Authority, materials: dict[TlsContext, TlsMaterial]
) -> None:
    """By name: HTTP rules, everything, nothing; each name with its own rules."""
    tagged = HttpRule("GET", "/tag", headers=(HeaderMatch("x-tag", "here", Mismatch.REPLACE),))
    demands: Demands = frozenset(
        {
            L7(http=GET_PUBLIC, terminating=CERTIFICATE, server_names=names("api.test")),
            L7(http=frozenset({HttpRule("POST")}), terminating=CERTIFICATE, server_names=names("other.test")),
            L7(http=frozenset({tagged}), terminating=CERTIFICATE, server_names=names("tag.more.test")),
            L7(terminating=CERTIFICATE, server_names=names("all.more.test")),
        }
    )
    path.serve({451: demands}, None, materials)
    expected = {"api.test": [200, 403, 403], "other.test": [403, 200, 403], "tag.more.test": [403, 403, 200]}
    with Server(path.server, SERVER_V4, 451) as server:
        for name, statuses in (expected | {"all.more.test": [200, 200, 200]}).items():
            with connect(path, 451, inside, name) as connection:
                answers = [
                    connection.get("/public/a"),
                    connection.get("/x", "content-length: 0", method="POST"),
                    connection.get("/tag"),
                ]
            assert [answer.status for answer in answers] == statuses, name
        assert refused(path, 451, inside, "none.more.test")
        assert [one.header("x-tag") for one in server.take() if one.target == "/tag"] == [["here"], []]


def test_secret_that_is_not_there_allows_nothing_until_it_is(
    path: EnvoyPath, inside: Authority, materials: dict[TlsContext, TlsMaterial]
) -> None:
    demands: Demands = frozenset({L7(http=GET_PUBLIC, terminating=CERTIFICATE), L7(http=GET_PUBLIC)})
    number = path.serve({452: demands}, None, {})[452].number
    assert "default/shown" in path.compiler.problems[number][0]
    with Server(path.server, SERVER_V4, 452), Connection(path.connect(452)) as plain:
        assert plain.get("/public/a").status == 200
        assert refused(path, 452, inside, "api.test")
        path.serve({}, None, materials)
        assert number not in path.compiler.problems
        with connect(path, 452, inside, "api.test") as connection:
            assert connection.get("/public/a").status == 200


def test_rotated_certificate_is_shown_and_live_connections_go_on(
    path: EnvoyPath, inside: Authority, materials: dict[TlsContext, TlsMaterial]
) -> None:
    path.serve({453: frozenset({L7(http=GET_PUBLIC, terminating=CERTIFICATE)})}, None, materials)
    fresh = inside.pair("new.test")
    with Server(path.server, SERVER_V4, 453), connect(path, 453, inside, "api.test") as live:
        assert live.get("/public/a").status == 200
        rotated = materials | {CERTIFICATE: TlsMaterial(fresh.certificate, fresh.private_key)}
        path.serve({}, None, rotated)
        with connect(path, 453, inside, "new.test") as connection:
            assert connection.get("/public/a").status == 200
        with pytest.raises(ssl.SSLError):
            connect(path, 453, inside, "api.test")
        assert live.get("/public/a").status == 200
        path.serve({}, None, materials)


def test_keys_are_never_shown(path: EnvoyPath, materials: dict[TlsContext, TlsMaterial]) -> None:
    """Not even where Envoy refuses them, which it is asked to here behind the compiler's back."""
    name = path.serve({454: frozenset({L7(http=GET_PUBLIC, terminating=CERTIFICATE)})}, None, materials)[454].name
    good = path.ads.snapshot
    assert good is not None
    broken = TlsMaterial(materials[CERTIFICATE].certificate, b"-----BEGIN PRIVATE KEY-----\nSECRETKEY\n")
    secret = clusters.certificate(CERTIFICATE, broken)
    path.set_snapshot(Snapshot([secret if one.key == secret.key else one for one in good]))
    standing = path.standing([name])
    assert standing.rejected
    shown = repr((broken, materials, list(good), secret, standing, path.compiler.problems)) + path.log_text()
    body = materials[CERTIFICATE].private_key.decode().splitlines()[1]
    assert body not in shown
    assert "SECRETKEY" not in shown
    path.serve({})
