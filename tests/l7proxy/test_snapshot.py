"""Snapshots: what fits together, and what does not is said in full."""

from __future__ import annotations

import pytest
from certificates import Authority

from l7proxy.compile import Compiler
from l7proxy.listening import Listening, Override, ProxySettings, TlsMaterial, envoy_serves, judges_again
from l7proxy.resource import CLUSTER, LISTENER, ROUTES, SECRET, Resource
from l7proxy.snapshot import InconsistentSnapshot, Snapshot
from policies.l7 import L7, Demands, HttpRule, NamePattern, TlsContext
from policies.model import Direction

SETTINGS = ProxySettings(mark_from_egress=2, mark_from_ingress=3, mark_answers=4)
CONTEXT = TlsContext("default", "web")
AUTHORITY = Authority("test")
PAIR = AUTHORITY.pair("a.test")
MATERIAL = TlsMaterial(PAIR.certificate, PAIR.private_key, AUTHORITY.pem)


def http(*rules: HttpRule) -> Demands:
    return frozenset({L7(http=frozenset(rules))})


def listening(number: int, demands: Demands, port: int = 0) -> Listening:
    return Listening(number, port or 20_000 + number, Direction.EGRESS, demands)


def test_every_difference_is_listed() -> None:
    def listener(name: str, needs: set[tuple[str, str]], port: int, version: str = "1") -> Resource:
        return Resource(LISTENER, name, version, b"", frozenset(needs), frozenset({port}))

    with pytest.raises(InconsistentSnapshot) as caught:
        Snapshot(
            [
                listener("a", {(ROUTES, "a"), (CLUSTER, "there")}, 80),
                listener("b", {(SECRET, "key")}, 80),
                listener("b", set(), 81, version="2"),
                Resource(CLUSTER, "there", "1", b""),
            ]
        )
    assert caught.value.differences == [
        "listener a and listener b both listen on port 80",
        "listener a names routes a, which is not there",
        "listener b is given twice, with versions 1 and 2",
        "listener b names secret key, which is not there",
    ]


def test_equal_content_has_equal_versions_and_other_content_others() -> None:
    rules = [HttpRule("GET", f"/{at}") for at in range(20)]
    first = Compiler(SETTINGS).snapshot([listening(1, http(*rules))])
    again = Compiler(SETTINGS).snapshot([listening(1, http(*reversed(rules)))])
    assert {one.key: one.version for one in first} == {one.key: one.version for one in again}
    other = Compiler(SETTINGS).snapshot([listening(1, http(*rules[1:]))])
    assert {one.key for one in first if other.get(one.key) != one} == {(ROUTES, f"{1:016x}")}
    assert first.version(ROUTES) != other.version(ROUTES)
    assert first.version(LISTENER) == other.version(LISTENER)


def test_overrides_change_routes_alone() -> None:
    compiler = Compiler(SETTINGS)
    plain = compiler.snapshot([listening(1, http(HttpRule())), listening(2, http())])
    changed = compiler.snapshot([listening(1, http(HttpRule())), listening(2, http())], {1: [Override(http())]})
    assert {one.key for one in plain if changed.get(one.key) != one} == {(ROUTES, f"{1:016x}")}


def test_what_did_not_change_is_not_built_again() -> None:
    compiler = Compiler(SETTINGS)
    many = [listening(at, http(HttpRule(path=f"/{at}"))) for at in range(1, 50)]
    first = compiler.snapshot(many)
    second = compiler.snapshot([*many[1:], listening(99, http())])
    assert all(second.get(one.key) is one for one in first if one.name not in (f"{1:016x}",))
    assert compiler.snapshot([]).of_type(LISTENER) == {}


def test_needs_are_followed_to_the_end() -> None:
    demands: Demands = frozenset({L7(http=frozenset({HttpRule()}), terminating=CONTEXT, originating=CONTEXT)})
    snapshot = Compiler(SETTINGS).snapshot([listening(1, demands)], materials={CONTEXT: MATERIAL})
    name = f"{1:016x}"
    needed = snapshot.closure([(LISTENER, name)])
    assert (ROUTES, f"{name}.tls0") in needed
    assert {key[1] for key in needed if key[0] == SECRET} == {"certificate default/web", "authority default/web"}
    assert needed.keys() <= {one.key for one in snapshot}


@pytest.mark.parametrize("instead", [b"", b"nonsense", AUTHORITY.pair("b.test").private_key])
@pytest.mark.parametrize("missing", ["certificate", "private_key", "trusted_ca"])
def test_alternative_without_its_secret_is_left_out_and_said(missing: str, instead: bytes) -> None:
    demands: Demands = frozenset({L7(http=frozenset({HttpRule()}), terminating=CONTEXT, originating=CONTEXT)})
    fields = {name: getattr(MATERIAL, name) for name in MATERIAL.__struct_fields__} | {missing: instead}
    compiler = Compiler(SETTINGS)
    snapshot = compiler.snapshot([listening(1, demands)], materials={CONTEXT: TlsMaterial(**fields)})
    assert "default/web" in compiler.problems[1][0]
    assert not snapshot.of_type(ROUTES)


def test_nothing_shown_holds_a_key() -> None:
    demands: Demands = frozenset({L7(http=frozenset({HttpRule()}), terminating=CONTEXT)})
    snapshot = Compiler(SETTINGS).snapshot([listening(1, demands)], materials={CONTEXT: MATERIAL})
    line = PAIR.private_key.splitlines()[1]
    assert line in b"".join(one.value for one in snapshot)
    assert line.decode() not in repr([list(snapshot), MATERIAL, {CONTEXT: MATERIAL}])


def test_dns_is_not_envoys() -> None:
    dns = L7(dns=frozenset({NamePattern(pattern="*")}))
    assert not envoy_serves(frozenset({dns}))
    assert not Compiler(SETTINGS).snapshot([listening(1, frozenset({dns}))]).of_type(LISTENER)
    assert envoy_serves(frozenset({dns, L7(http=frozenset())}))


def test_which_connections_are_judged_again() -> None:
    named = L7(server_names=frozenset({NamePattern(exact="a.test")}))
    assert judges_again(http(HttpRule()))
    assert not judges_again(frozenset({named, L7(http=frozenset())}))


def test_two_listeners_may_not_share_a_port() -> None:
    with pytest.raises(InconsistentSnapshot, match="port 7"):
        Compiler(SETTINGS).snapshot([listening(1, http(), 7), listening(2, http(HttpRule()), 7)])
