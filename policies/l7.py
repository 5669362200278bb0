"""What a rule asks of the requests, names or TLS connections on a port that it allows. Values, as policies.model.

The words are those of cilium.io/v2: `toPorts[].rules`, `serverNames`, `terminatingTLS`, `originatingTLS`.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Mismatch(StrEnum):
    """What becomes of a request whose header does not match: refused, or let through (logged, header changed)."""

    FAIL = "FAIL"
    LOG = "LOG"
    ADD = "ADD"
    DELETE = "DELETE"
    REPLACE = "REPLACE"


class HeaderMatch(msgspec.Struct, frozen=True, order=True, gc=False):
    """`name` in lower case. `value` None: the header must be there, whatever it says; else it must be just that."""

    name: str
    value: str | None = None
    mismatch: Mismatch = Mismatch.FAIL


class HttpRule(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """All that is given must hold. Regular expressions, each matched against the whole of the method, of the path with
    its query, of the host without its port; "": any."""

    method: str = ""
    path: str = ""
    host: str = ""
    headers: tuple[HeaderMatch, ...] = ()


class NamePattern(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """A DNS name (`exact`) or a pattern of names, in lower case, without the dot at the end; one of the two is "".

    In a pattern `*` stands for any characters of one label (none included), and a leading `**.` for one or more labels;
    `*` alone for every name (cilium.io/v2 matchPattern).
    """

    exact: str = ""
    pattern: str = ""

    def __str__(self) -> str:
        return self.exact or self.pattern


class TlsContext(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """Where certificates are: a Secret, and the keys of its data that hold them ("": by the names Kubernetes uses)."""

    namespace: str
    name: str
    certificate: str = ""
    private_key: str = ""
    trusted_ca: str = ""


class L7(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """What one rule asks at one port. None: nothing of that kind; an empty set: nothing is allowed.

    At most one of `http` and `dns` is given. `server_names`: the SNI of the TLS connection must match one of them, as
    matchPattern does; what is not TLS is refused.
    """

    http: frozenset[HttpRule] | None = None
    dns: frozenset[NamePattern] | None = None
    server_names: frozenset[NamePattern] | None = None
    terminating: TlsContext | None = None
    originating: TlsContext | None = None


Demands = frozenset[L7]
"""What passes if one of these allows it: those of all rules that meet at a port. Never empty."""
