"""Spellings the Kubernetes API accepts (apimachinery validation): names, labels, ports, CIDR blocks."""

from __future__ import annotations

import re

from policies.address import Prefix
from policies.fields import Field

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
_CIDR = re.compile(r"[0-9A-Fa-f:.]+/[0-9]{1,3}")


def label_key_problem(key: str) -> str | None:
    """Why a label key (qualified name) is none; None where it is fine. So with all of these."""
    prefix, slash, name = key.rpartition("/")
    if slash and dns_subdomain_problem(prefix):
        return f"the prefix of label key {key!r} must be a DNS subdomain of at most 253 lower-case characters"
    if not _LABEL_NAME.fullmatch(name):
        return (
            f"label key {key!r} must be 1–63 letters, digits, '-', '_' or '.', and begin and end with a letter or digit"
        )
    return None


def label_value_problem(value: str) -> str | None:
    if value and not _LABEL_NAME.fullmatch(value):
        return (
            f"label value {value!r} must be at most 63 letters, digits, '-', '_' or '.', "
            "and begin and end with a letter or digit"
        )
    return None


def dns_label_problem(name: str) -> str | None:
    if not _DNS_LABEL.fullmatch(name):
        return f"{name!r} must be 1–63 lower-case letters, digits or '-', and begin and end with a letter or digit"
    return None


def dns_subdomain_problem(name: str) -> str | None:
    if len(name) > 253 or not _DNS_SUBDOMAIN.fullmatch(name):
        return (
            f"{name!r} must be at most 253 lower-case letters, digits, '-' or '.', "
            "each part beginning and ending with a letter or digit"
        )
    return None


def port_name_problem(name: str) -> str | None:
    """An IANA service name, as container ports are named."""
    if not _PORT_NAME.fullmatch(name):
        return (
            f"port name {name!r} must be 1–15 lower-case letters, digits or '-', with at least one letter, "
            "no '--', and no '-' at either end"
        )
    return None


def parse_cidr(text: str) -> Prefix:
    """A block in CIDR notation; raises ValueError. Host bits are cleared.

    IPv4-mapped IPv6 blocks are refused: they could be meant as either family.
    """
    if not _CIDR.fullmatch(text):
        raise ValueError(f"{text!r} must be a CIDR block such as 10.0.0.0/8 or 2001:db8::/32")
    try:
        prefix = Prefix.parse(text)
    except ValueError:
        raise ValueError(f"{text!r} must be a CIDR block such as 10.0.0.0/8 or 2001:db8::/32") from None
    if ":" in text and prefix.is_v4:
        raise ValueError(f"{text!r} is an IPv4-mapped IPv6 block: write it as an IPv4 block")
    return prefix


def read_cidr(field: Field, text: str | None) -> Prefix | None:
    """What a field says, given its text; a problem is noted where that is no block. None: there is none."""
    if text is None:
        return None
    try:
        return parse_cidr(text)
    except ValueError as error:
        field.problem(str(error))
        return None
