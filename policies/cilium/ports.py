"""On which ports, and what else is asked there: `toPorts` and `icmps` of a rule."""

from __future__ import annotations

from collections.abc import Iterator
from sys import intern

from policies.cilium.http import parse_http_rule
from policies.cilium.names import parse_name, pattern_of
from policies.cilium.peers import Section
from policies.fields import Field
from policies.l7 import L7, TlsContext
from policies.model import Direction, NamedPort, Port, PortRange, Protocol
from policies.syntax import dns_label_problem, dns_subdomain_problem, port_name_problem

FIELDS = ("toPorts", "icmps")
MAX_PORTS = 40
"""In one member of toPorts, and ICMP types in one of icmps (Cilium's own limits)."""

TCP, UDP, SCTP = (Protocol.BY_NAME[name] for name in ("TCP", "UDP", "SCTP"))
ICMP = {"ICMP": 1, "ICMPV6": 58}
_ANY = (TCP, UDP, SCTP)
_PROTOCOLS = {"ANY": _ANY, **{name: (number,) for name, number in {**Protocol.BY_NAME, **ICMP}.items()}}
_ICMP_TYPES = {
    "IPv4": {
        "EchoReply": 0, "DestinationUnreachable": 3, "Redirect": 5, "Echo": 8, "EchoRequest": 8,
        "RouterAdvertisement": 9, "RouterSelection": 10, "TimeExceeded": 11, "ParameterProblem": 12, "Timestamp": 13,
        "TimestampReply": 14, "Photuris": 40, "ExtendedEchoRequest": 42, "ExtendedEchoReply": 43,
    },
    "IPv6": {
        "DestinationUnreachable": 1, "PacketTooBig": 2, "TimeExceeded": 3, "ParameterProblem": 4, "EchoRequest": 128,
        "EchoReply": 129, "MulticastListenerQuery": 130, "MulticastListenerReport": 131, "MulticastListenerDone": 132,
        "RouterSolicitation": 133, "RouterAdvertisement": 134, "NeighborSolicitation": 135,
        "NeighborAdvertisement": 136, "RedirectMessage": 137, "RouterRenumbering": 138,
        "ICMPNodeInformationQuery": 139, "ICMPNodeInformationResponse": 140,
        "InverseNeighborDiscoverySolicitation": 141, "InverseNeighborDiscoveryAdvertisement": 142,
        "HomeAgentAddressDiscoveryRequest": 144, "HomeAgentAddressDiscoveryReply": 145,
        "MobilePrefixSolicitation": 146, "MobilePrefixAdvertisement": 147, "DuplicateAddressRequestCodeSuffix": 157,
        "DuplicateAddressConfirmationCodeSuffix": 158, "ExtendedEchoRequest": 160, "ExtendedEchoReply": 161,
    },
}  # fmt: skip
"""By IANA's registries, in the spelling of cilium.io/v2."""

PortRule = tuple[tuple[Port, ...], L7 | None]


def parse_port_rules(rule: Field, section: Section) -> list[PortRule] | None:
    """Ports of a rule, with what is asked on them; None where it says nothing of ports. Those on which nothing else is
    asked come first, together."""
    to_ports, icmps = rule.get("toPorts"), rule.get("icmps")
    if to_ports.given and icmps.given:
        rule.problem("must not have both toPorts and icmps: write a rule for each")
    for field in (to_ports, icmps):
        if field.value == []:
            field.problem("must not be empty: leave it out for every port")
    if not (to_ports.given or icmps.given):
        return None
    found = [_port_rule(item, section) for item in to_ports.items()]
    found += [(tuple(_icmp_types(item)), None) for item in icmps.items()]
    plain = dict.fromkeys(port for ports, l7 in found if l7 is None for port in ports)
    return [*([(tuple(plain), None)] if plain else ()), *(one for one in found if one[1] is not None)]


# ---- toPorts


_L7_FIELDS = ("rules", "serverNames", "terminatingTLS", "originatingTLS")


def _port_rule(field: Field, section: Section) -> PortRule:
    if not field.given:
        field.problem("must be an object, not null")
    field.expect_object(("ports",) if section.deny else ("ports", *_L7_FIELDS, "listener"))
    field.get("listener").refuse("is not supported: a listener of one's own is not enforced")
    ports = field.get("ports")
    if not ports.value:
        ports.problem('must list at least one port (port "0" for all)')
    elif isinstance(ports.value, list) and len(ports.value) > MAX_PORTS:
        ports.problem(f"must list at most {MAX_PORTS} ports")
    l7 = None if section.deny else _l7(field, section)
    found: dict[Port, None] = {}
    for item in ports.items():
        found.update(dict.fromkeys(_ports(item, l7)))
    return tuple(found), l7


def _ports(field: Field, l7: L7 | None) -> Iterator[Port]:
    if not field.given:
        field.problem("must be an object, not null")
    field.expect_object(("port", "endPort", "protocol"))
    protocols = _protocols(field.get("protocol"), l7)
    port, end = field.get("port"), field.get("endPort")
    text, last = port.string(), end.integer() or None
    if port.value in (None, ""):
        port.problem('must be given (port "0" for all)')
        return
    if text is None:
        return
    if not text.isdecimal():
        if port.check(port_name_problem(text.lower())) and last is not None:
            end.problem("must not be given with a port name")
        if protocols and protocols[0] in ICMP.values():
            port.problem("must be an ICMP type: a number")
        yield from (NamedPort(protocol, intern(text.lower())) for protocol in protocols)
        return
    if len(text) > 5 or int(text) > 65535 or (text.startswith("0") and text != "0"):
        port.problem(f"must be 0–65535 without leading zeros, not {text}")
        return
    yield from _ranges(port, end, int(text), last, protocols, l7)


def _ranges(
    port: Field, end: Field, first: int, last: int | None, protocols: tuple[int, ...], l7: L7 | None
) -> Iterator[Port]:
    most = 255 if protocols and protocols[0] in ICMP.values() else 65535
    if first > most:
        port.problem(f"must be an ICMP type, at most {most}")
    if last is not None and not first <= last <= most:
        end.problem(f"must be {first}–{most}, not {last}")
    elif last is not None and first == 0:
        end.problem('must not be given with port "0"')
    if l7 is not None and l7.dns is not None and last not in (None, first):
        end.problem("must not be given with dns rules")
    if first == 0 and l7 is not None and (l7.http is not None or l7.dns is not None):
        port.problem('must not be "0" with rules: name the ports')
    for protocol in protocols:
        yield PortRange(protocol, first, (last or first) if first else most)


def _protocols(field: Field, l7: L7 | None) -> tuple[int, ...]:
    """TCP alone where requests or TLS are looked at, TCP and UDP for DNS: of ANY only these are meant."""
    name = (field.string() or "ANY").upper()
    if name not in _PROTOCOLS:
        field.problem(f"must be ANY, TCP, UDP, SCTP, ICMP or ICMPv6; {field.value!r} is not supported")
        return ()
    asked = _PROTOCOLS[name]
    if l7 is None:
        return asked
    if l7.http is not None and name == "ANY":
        field.problem("must be TCP where there are http rules")
    possible = (TCP, UDP) if l7.dns is not None else (TCP,)
    left = tuple(protocol for protocol in asked if protocol in possible)
    if not left:
        what = "dns rules" if l7.dns is not None else "http rules, serverNames or TLS"
        field.problem(f"must be {'TCP or UDP' if l7.dns is not None else 'TCP'} where there are {what}")
    return left


# ---- what else is asked


def _l7(field: Field, section: Section) -> L7 | None:
    rules, names = field.get("rules"), field.get("serverNames")
    terminating = _tls(field.get("terminatingTLS"), section)
    originating = _tls(field.get("originatingTLS"), section)
    rules.expect_object(("http", "dns", "kafka", "l7proto", "l7"))
    for name in ("kafka", "l7proto", "l7"):
        rules.get(name).refuse("is not supported: http and dns are")
    http, dns = rules.get("http"), rules.get("dns")
    if http.given and dns.given:
        rules.problem("must not have both http and dns")
    if rules.value == {}:
        rules.problem("must have http or dns: leave it out to allow whatever is sent")
    if dns.given and section.direction is Direction.INGRESS:
        dns.problem("is for egress alone")
    if dns.given and (terminating or originating):
        dns.problem("must not be given with terminatingTLS or originatingTLS")
    if names.given and rules.given and terminating is None:
        names.problem("must not be given with rules, but for terminatingTLS: what is encrypted cannot be looked into")
    if names.value == []:
        names.problem("must not be empty: leave it out to allow every name")
    if not (rules.given or names.given or terminating or originating):
        return None
    return L7(
        http=frozenset([parse_http_rule(item) for item in http.items()]) if http.given else None,
        dns=frozenset([parse_name(item) for item in dns.items()]) if dns.given else None,
        server_names=frozenset([pattern_of(n, n.string() or "") for n in names.items()]) if names.given else None,
        terminating=terminating,
        originating=originating,
    )


def _tls(field: Field, section: Section) -> TlsContext | None:
    """A secret without a namespace is in the policy's own."""
    if not field.given:
        return None
    field.expect_object(("secret", "trustedCA", "certificate", "privateKey"))
    secret = field.get("secret")
    secret.expect_object(("namespace", "name"))
    namespace, name = secret.get("namespace"), secret.get("name")
    where, called = namespace.string() or section.home, name.string() or ""
    if not called:
        name.problem("must be given")
    else:
        name.check(dns_subdomain_problem(called))
    if not where:
        namespace.problem("must be given: the policy is in no namespace")
    else:
        namespace.check(dns_label_problem(where))
    keys = [field.get(key).string() or "" for key in ("certificate", "privateKey", "trustedCA")]
    return TlsContext(where, called, *keys)


# ---- icmps


def _icmp_types(field: Field) -> Iterator[Port]:
    if not field.given:
        field.problem("must be an object, not null")
    field.expect_object(("fields",))
    fields = field.get("fields")
    if not fields.value:
        fields.problem("must list at least one type")
    elif isinstance(fields.value, list) and len(fields.value) > MAX_PORTS:
        fields.problem(f"must list at most {MAX_PORTS} types")
    for item in fields.items():
        if not item.given:
            item.problem("must be an object, not null")
        item.expect_object(("family", "type"))
        family = item.get("family").string() or "IPv4"
        if family not in _ICMP_TYPES:
            item.get("family").problem(f"must be IPv4 or IPv6, not {family!r}")
            continue
        number = _icmp_type(item.get("type"), family)
        protocol = ICMP["ICMP"] if family == "IPv4" else ICMP["ICMPV6"]
        yield PortRange(protocol, number, number)


def _icmp_type(field: Field, family: str) -> int:
    """A number, or a name of IANA's."""
    value = field.value
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) <= 3 else _ICMP_TYPES[family].get(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        field.problem(f"must be an ICMP type of {family}: 0–255, or a name such as EchoRequest")
        return 0
    return value
