"""All that Envoy is to be: an immutable set of resources that fit together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from l7proxy.resource import CLUSTER, LISTENER, ROUTES, SECRET, SHORT, Key, Resource, content_version

MAKE_ORDER = (CLUSTER, SECRET, LISTENER, ROUTES)
"""In which order types are sent, so that what is named is there before it is named. Routes follow their listener,
since Envoy asks for them by name once it knows it."""
BREAK_ORDER = (LISTENER, ROUTES, SECRET, CLUSTER)
"""In which order resources go: who names them first."""


class InconsistentSnapshot(Exception):
    """Resources that do not fit together. `differences` lists all of them."""

    def __init__(self, differences: list[str]) -> None:
        super().__init__("; ".join(differences))
        self.differences = differences


class Snapshot:
    """Resources by type and name. Raises InconsistentSnapshot where a name occurs twice with other content, what one
    needs is missing, or two listeners want one port."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        by_type: dict[str, dict[str, Resource]] = {type_url: {} for type_url in MAKE_ORDER}
        differences: list[str] = []
        for one in resources:
            known = by_type[one.type_url].setdefault(one.name, one)
            if known.version != one.version:
                differences.append(f"{_say(one.key)} is given twice, with versions {known.version} and {one.version}")
        self._by_type: Mapping[str, Mapping[str, Resource]] = by_type
        differences.extend(self._missing())
        differences.extend(self._shared_ports())
        if differences:
            raise InconsistentSnapshot(sorted(differences))
        self._versions: dict[str, str] = {}

    def of_type(self, type_url: str) -> Mapping[str, Resource]:
        """By name; empty for a type that is not served here."""
        return self._by_type.get(type_url, {})

    def get(self, key: Key) -> Resource | None:
        return self.of_type(key[0]).get(key[1])

    def version(self, type_url: str) -> str:
        """Of all resources of the type together: what state-of-the-world calls the version."""
        if (version := self._versions.get(type_url)) is None:
            names = sorted(f"{one.name} {one.version}" for one in self.of_type(type_url).values())
            version = self._versions[type_url] = content_version("\n".join(names).encode())
        return version

    def closure(self, keys: Iterable[Key]) -> dict[Key, str]:
        """These resources and all they need, with their versions. KeyError if one is not here."""
        found: dict[Key, str] = {}
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            if key not in found:
                one = self._by_type[key[0]][key[1]]
                found[key] = one.version
                waiting.extend(one.needs)
        return found

    def __iter__(self) -> Iterator[Resource]:
        for resources in self._by_type.values():
            yield from resources.values()

    def __len__(self) -> int:
        return sum(map(len, self._by_type.values()))

    def _missing(self) -> Iterator[str]:
        for one in self:
            for key in one.needs:
                if self.get(key) is None:
                    yield f"{_say(one.key)} names {_say(key)}, which is not there"

    def _shared_ports(self) -> Iterator[str]:
        owners: dict[int, str] = {}
        for one in self.of_type(LISTENER).values():
            for port in one.ports:
                if (owner := owners.setdefault(port, one.name)) != one.name:
                    yield f"{_say((LISTENER, owner))} and {_say(one.key)} both listen on port {port}"


def _say(key: Key) -> str:
    return f"{SHORT.get(key[0], key[0])} {key[1]}"
