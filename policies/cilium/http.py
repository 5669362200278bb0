"""HTTP rules: `toPorts[].rules.http`."""

from __future__ import annotations

import re
from sys import intern

from policies.cilium.regex import portable
from policies.fields import Field
from policies.l7 import HeaderMatch, HttpRule, Mismatch

_CHARACTERS = r"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_NAME = re.compile(_CHARACTERS)
_HEADER = re.compile(rf"({_CHARACTERS})(?:(?::[ \t]*|[ \t]+)(.*\S))?[ \t]*")
_VALUE = re.compile(r"[ -~]*")
_CHANGES = (Mismatch.ADD, Mismatch.REPLACE)


def parse_http_rule(field: Field) -> HttpRule:
    """{} is every request."""
    if not field.given:
        field.problem("must be an object, not null (write {} for every request)")
    field.expect_object(("method", "path", "host", "headers", "headerMatches"))
    headers = [_header(item) for item in field.get("headers").items()]
    headers += [_header_match(item) for item in field.get("headerMatches").items()]
    return HttpRule(
        method=_regex(field.get("method")),
        path=_regex(field.get("path")),
        host=_regex(field.get("host")),
        headers=tuple(sorted(set(filter(None, headers)), key=_order)),
    )


def _order(header: HeaderMatch) -> tuple[str, str, str]:
    return header.name, header.value or "", header.mismatch


def _regex(field: Field) -> str:
    text = field.string() or ""
    try:
        return intern(portable(text))
    except ValueError as error:
        field.problem(str(error))
        return ""


def _header(field: Field) -> HeaderMatch | None:
    """`Name: value`, or `Name` alone: it must be there."""
    text = field.string()
    found = _HEADER.fullmatch(text or "")
    if text is None or found is None or not _VALUE.fullmatch(found[2] or ""):
        if text is not None or not field.given:
            field.problem("must be 'Name: value', or 'Name' for a header that must be there")
        return None
    return HeaderMatch(intern(found[1].lower()), found[2])


def _header_match(field: Field) -> HeaderMatch | None:
    """Without a value the header must be there, whatever it says."""
    if not field.given:
        field.problem("must be an object, not null")
    field.expect_object(("mismatch", "name", "secret", "value"))
    field.get("secret").refuse("is not supported: give the value")
    name, value, mismatch = field.get("name"), field.get("value"), field.get("mismatch")
    called, wanted, then = name.string() or "", value.string() or None, mismatch.string() or Mismatch.FAIL
    if not _NAME.fullmatch(called):
        name.problem("must be the name of a header" if name.given else "must be given")
    if wanted is not None and (not _VALUE.fullmatch(wanted) or wanted != wanted.strip()):
        value.problem("must be printable ASCII without blanks at its ends")
    if then not in set(Mismatch) or (then == Mismatch.FAIL and mismatch.value == Mismatch.FAIL):
        mismatch.problem(f"must be LOG, ADD, DELETE or REPLACE, not {then!r}")
        return None
    if then in _CHANGES and wanted is None and not field.get("secret").given:
        value.problem(f"must be given where mismatch is {then}")
    return HeaderMatch(intern(called.lower()), wanted, Mismatch(then))
