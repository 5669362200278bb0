"""Addresses: fromCIDR, fromCIDRSet and their egress namesakes. They mean addresses outside the cluster alone."""

from __future__ import annotations

from contextlib import suppress

from policies.address import Prefix, parse_address
from policies.fields import Field
from policies.model import CidrBlock
from policies.syntax import read_cidr

NOWHERE = Prefix.host(bytes(16))
"""In place of a block that is none."""


def parse_block(field: Field) -> CidrBlock:
    """A member of fromCIDR: a block, or one address."""
    text = _text(field)
    if text is not None and "/" not in text:
        with suppress(ValueError):  # what it is not is said below
            text = str(Prefix.host(parse_address(text)))
    return CidrBlock(read_cidr(field, text) or NOWHERE, inside=False)


def parse_block_with_excepts(field: Field) -> CidrBlock:
    """A member of fromCIDRSet."""
    if not field.given:
        field.problem("must be an object, not null")
    field.expect_object(("cidr", "except", "cidrGroupRef", "cidrGroupSelector"))
    for name in ("cidrGroupRef", "cidrGroupSelector"):
        field.get(name).refuse("is not supported: list the group's blocks")
    cidr = field.get("cidr")
    block = read_cidr(cidr, _text(cidr))
    excepts = []
    for item in field.get("except").items():
        inner = read_cidr(item, _text(item))
        if inner is not None and block is not None and not block.covers(inner):
            item.problem(f"{item.value} must lie within cidr {cidr.value}")
        if inner is not None:
            excepts.append(inner)
    return CidrBlock(block or NOWHERE, tuple(excepts), inside=False)


def _text(field: Field) -> str | None:
    if not field.given:
        field.problem("must be given")
    return field.string()
