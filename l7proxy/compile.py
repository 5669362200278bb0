"""Listenings to a snapshot of Envoy's resources. What did not change since the last time is not built again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from l7proxy import clusters
from l7proxy.listeners import Listener, Materials
from l7proxy.listening import Listening, Override, ProxySettings, TlsMaterial, contexts, envoy_serves
from l7proxy.resource import Resource
from l7proxy.snapshot import Snapshot
from policies.l7 import TlsContext

_Built = tuple[tuple[Resource, ...], tuple[str, ...]]
_Input = tuple[Listening, tuple[Override, ...], frozenset[tuple[TlsContext, TlsMaterial]]]


class Compiler:
    """`problems`: of the last snapshot, by listener number: what some of its demands lack, which thus allow nothing."""

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._always = (clusters.direct(settings), clusters.refused())
        self._built: dict[_Input, _Built] = {}
        self.problems: Mapping[int, tuple[str, ...]] = {}

    def snapshot(
        self,
        listenings: Iterable[Listening],
        overrides: Mapping[int, Sequence[Override]] | None = None,
        materials: Materials | None = None,
    ) -> Snapshot:
        """`overrides` by listener number. Raises InconsistentSnapshot where ports are shared."""
        made: dict[_Input, _Built] = {}
        problems: dict[int, tuple[str, ...]] = {}
        for asked in listenings:
            if not envoy_serves(asked.demands):
                continue
            mine = tuple((overrides or {}).get(asked.number, ()))
            wanted = frozenset(
                (context, material)
                for context in contexts([asked.demands, *(one.demands or () for one in mine)])
                if (material := (materials or {}).get(context))
            )
            key = (asked, mine, wanted)
            built = made[key] = self._built.get(key) or self._build(asked, mine, dict(wanted))
            if built[1]:
                problems[asked.number] = built[1]
        snapshot = Snapshot([*self._always, *(one for resources, _ in made.values() for one in resources)])
        self._built, self.problems = made, problems
        return snapshot

    def _build(self, asked: Listening, overrides: tuple[Override, ...], materials: Materials) -> _Built:
        listener = Listener(asked, overrides, materials, self._settings)
        return tuple(listener.resources()), tuple(listener.problems)
