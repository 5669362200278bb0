"""Labels and label selectors (metav1.LabelSelector) as every policy language writes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from sys import intern

from policies.fields import Field
from policies.model import LabelSelector, Operator, Requirement
from policies.syntax import label_key_problem, label_value_problem

KeyCheck = Callable[[str], str | None]
"""What is wrong with a label key, None where it is fine."""


def parse_labels(field: Field, key_check: KeyCheck = label_key_problem) -> dict[str, str]:
    """A map of labels; null is an empty one. Problems are noted at the label's own path."""
    labels: dict[str, str] = {}
    for key, value in field.string_map().items():
        label = Field(value, f"{field.path}[{key}]", field.problems)
        label.check(key_check(key))
        label.check(label_value_problem(value))
        labels[intern(key)] = intern(value)
    return labels


def parse_selector(field: Field, key_check: KeyCheck = label_key_problem) -> LabelSelector:
    """Null is an empty selector, which matches everything: whoever allows must ask `field.given` first."""
    field.expect_object(("matchLabels", "matchExpressions"))
    labels = parse_labels(field.get("matchLabels"), key_check)
    requirements = [requirement(key, Operator.IN, (value,)) for key, value in labels.items()]
    requirements += [_expression(item, key_check) for item in field.get("matchExpressions").items()]
    return selector(frozenset(requirements))


@lru_cache(maxsize=4096)
def selector(requirements: frozenset[Requirement]) -> LabelSelector:
    """Shared between policies, as requirements are."""
    return LabelSelector(requirements)


def _expression(field: Field, key_check: KeyCheck) -> Requirement:
    field.expect_object(("key", "operator", "values"))
    key, operator, values = field.get("key"), field.get("operator"), field.get("values")
    name = key.string() or ""
    if isinstance(key.value, str):
        key.check(key_check(key.value))
    elif not key.given:
        key.problem("must be given")
    given = _values(values)
    wanted = operator.string()
    if wanted is None or wanted not in set(Operator):
        if wanted is not None or not operator.given:
            operator.problem("must be In, NotIn, Exists or DoesNotExist")
        return requirement(name, Operator.EXISTS, ())
    meant = Operator(wanted)
    takes_values = meant in (Operator.IN, Operator.NOT_IN)
    if takes_values and not values.value:
        values.problem(f"must be given where the operator is {meant}")
    elif not takes_values and values.value:
        values.problem(f"must not be given where the operator is {meant}")
    return requirement(intern(name), meant, tuple(sorted(given)))


def _values(field: Field) -> list[str]:
    out = []
    for item in field.items():
        value = item.string()
        if not item.given:
            item.problem('must be a string, not null (write "" for an empty one)')
        elif value is not None and item.check(label_value_problem(value)):
            out.append(intern(value))
    return out


@lru_cache(maxsize=4096)
def requirement(key: str, operator: Operator, values: tuple[str, ...]) -> Requirement:
    """Shared between policies: most require one of few labels."""
    return Requirement(key, operator, frozenset(values))
