"""Whatever is written in a CiliumNetworkPolicy is read or refused."""

from __future__ import annotations

import copy
from typing import Any

from cilium_rules import (
    HERE,
    INGRESS_PEERS,
    WHERE,
    with_rules,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.cilium.policy import parse, salvage, spec_paths
from policies.fields import InvalidPolicy
from policies.model import (
    Action,
)

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 70000), st.text(max_size=8), st.just([]), st.just({}), st.just([None]),
    st.just([{}]), st.just({"matchLabels": {"reserved:host": ""}}), st.dictionaries(st.text(max_size=4), st.none()),
    st.sampled_from(["*", "80", "a.org", "10.0.0.0/8", "all", "TCP", "(", "reserved:"]),
    st.floats(allow_nan=False), st.binary(max_size=3),
)  # fmt: skip

WHOLE = [
    with_rules(f"ingress: [{{{rule}}}], ingressDeny: [{{{rule}}}], enableDefaultDeny: {{egress: true}}")
    for rule, _ in INGRESS_PEERS
] + [with_rules(f"egress: [{{toEntities: [world], {where}}}]") for where, _ in WHERE]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, member in members for place in places(member, (*path, key)))]


def mutated(raw: Any, path: tuple[Any, ...], junk: Any, rename: bool) -> Any:
    if not path:
        return junk
    changed = copy.deepcopy(raw)
    holder = changed
    for step in path[:-1]:
        holder = holder[step]
    if rename and isinstance(holder, dict):
        holder[f"{path[-1]}x"] = holder.pop(path[-1])
    else:
        holder[path[-1]] = junk
    return changed


@settings(max_examples=600)
@given(data=st.data())
def test_whatever_is_written_is_read_or_refused_with_paths(data: st.DataObject) -> None:
    raw: Any = data.draw(st.sampled_from(WHOLE))
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(places(raw)))
        raw = mutated(raw, where, data.draw(JUNK), data.draw(st.booleans()))
    try:
        policies = parse(raw, HERE)
    except InvalidPolicy as invalid:
        assert invalid.problems
        assert all(problem.message for problem in invalid.problems)
        for policy in salvage(raw, HERE):
            assert policy.problem
            assert all(rule.action is Action.DENY for rule in policy.rules)
        return
    assert policies
    assert salvage(raw, HERE) == ()
    assert len(spec_paths(raw)) == len(policies)
    assert hash(policies) == hash(parse(raw, HERE))
