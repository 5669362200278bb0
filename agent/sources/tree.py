"""What a set of manifest files puts in force, changed file by file. Pure.

* An object that several documents define is the first one's, by file and line; when that one goes, the next takes over.
* Of a document that is not valid the last version that was stays in force, until no document names the object any more.
* A new policy that is not valid isolates the pods it clearly selects.
* Text in which no object can be told may be any object of its file: those that the file no longer names stay.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.objects import Change, Object, PolicySet, Problem
from agent.sources.items import Item
from agent.sources.manifest import Manifest
from policies.kinds import KINDS
from policies.model import ObjectRef, Policy

KEPT = "the last good version stays in force"
ISOLATED = "the pods it selects are isolated"
ALL_KEPT = "what the file held before stays in force"

# Policies come before the pods they are about, and what numbers mean before who has them. Pods and services go first,
# so that what replaces them finds their addresses free; policies go last, when nothing they were about is unguarded.
_COMING = {
    "Namespace": 3,
    "Node": 3,
    "Secret": 3,
    "SecurityIdentity": 3,
    "Service": 5,
    "EndpointSlice": 6,
    "NodeEndpoints": 7,
    "Pod": 7,
} | dict.fromkeys(KINDS, 4)
_GOING = {
    "Pod": 0,
    "NodeEndpoints": 0,
    "EndpointSlice": 1,
    "Service": 2,
    "Namespace": 9,
    "Node": 9,
    "Secret": 9,
    "SecurityIdentity": 9,
} | dict.fromkeys(KINDS, 8)


class Tree:
    def __init__(self) -> None:
        self.in_force: dict[ObjectRef, Object] = {}
        self.manifests: dict[str, Manifest] = {}
        self._claims: dict[ObjectRef, Item | tuple[Item, ...]] = {}  # nearly all have but one
        self._ghosts: dict[str, tuple[Item, ...]] = {}
        self._troubled: dict[str, tuple[Item, ...]] = {}  # items with problems, by file
        self._verdicts: dict[ObjectRef, tuple[str, tuple[Problem, ...]]] = {}  # effect, duplicates
        self._recalled: dict[ObjectRef, Object] = {}
        self._dirty: dict[ObjectRef, None] = {}
        self._problems: list[Problem] | None = []

    def put(self, manifest: Manifest) -> None:
        """The content of a file, new or changed."""
        old = self.manifests.get(manifest.file)
        if manifest is not old:
            self.manifests[manifest.file] = manifest
            self._replace(manifest.file, old.items if old else (), manifest.items)

    def recall(self, manifest: Manifest, good: Mapping[ObjectRef, Object]) -> None:
        """What the objects of a file that was put were before it broke, known from an earlier run."""
        self._recalled.update(good)
        named = tuple(Item(value.origin, ref) for ref, value in good.items())
        self._replace(manifest.file, (*manifest.items, *named), manifest.items)

    def remove(self, file: str) -> None:
        """The file is gone, and with it what it held."""
        old = self.manifests.pop(file, None)
        if old is not None:
            self._replace(file, old.items, ())

    def settle(self) -> list[Change]:
        """What changed since the last call, in the order in which it should take effect.

        A change of the origin alone is a change too: its object is equal but for `origin`.
        """
        changes = []
        for ref in self._dirty:
            old, new = self.in_force.get(ref), self._resolve(ref)
            if old == new:
                continue
            if new is None:
                del self.in_force[ref]
            else:
                self.in_force[ref] = new
            changes.append(Change(ref, new))
        self._dirty.clear()
        self._recalled.clear()
        changes.sort(key=lambda change: (_GOING if change.object is None else _COMING)[change.ref.kind])
        return changes

    @property
    def problems(self) -> list[Problem]:
        """All there are, by file and line. The same list until something about it changes."""
        if self._problems is None:
            found = [
                problem if problem.warning else _with_effect(problem, self._effect(item))
                for items in self._troubled.values()
                for item in items
                for problem in item.problems
            ]
            found += [problem for _, duplicates in self._verdicts.values() for problem in duplicates]
            self._problems = sorted(found)
        return self._problems

    def kept(self, file: str) -> dict[ObjectRef, str]:
        """Objects in force only as they were before the file's present text; with the file that text was in."""
        found = {}
        for item in (*self.manifests[file].items, *self._ghosts.get(file, ())):
            if item.ref is not None and item.object is None:
                held = self.in_force.get(item.ref)
                if held is not None and _is_good(held) and not self._provided(item.ref, held):
                    found[item.ref] = held.origin.file
        return found

    # ---- claims

    def _replace(self, file: str, before: tuple[Item, ...], after: tuple[Item, ...]) -> None:
        before = (*before, *self._ghosts.get(file, ()))
        ghosts: tuple[Item, ...] = ()
        if any(item.unidentified for item in after):
            named = {item.ref for item in after}
            lost = {item.ref: item for item in before if item.ref is not None and item.ref not in named}
            ghosts = tuple(Item(item.origin, ref) for ref, item in lost.items())
        present = {id(item) for item in after}
        held = {id(item) for item in before}
        for item in before:
            if id(item) not in present:
                self._drop(item)
        for item in (*after, *ghosts):
            if id(item) not in held:
                self._claim(item)
        self._set(self._ghosts, file, ghosts)
        troubled = tuple(item for item in after if item.problems)
        if troubled != self._troubled.get(file, ()):
            self._set(self._troubled, file, troubled)
            self._problems = None

    @staticmethod
    def _set(index: dict[str, tuple[Item, ...]], file: str, items: tuple[Item, ...]) -> None:
        if items:
            index[file] = items
        else:
            index.pop(file, None)

    def _drop(self, item: Item) -> None:
        if item.ref is None:
            return
        claims = tuple(claim for claim in self._claims_of(item.ref) if claim is not item)
        if claims:
            self._claims[item.ref] = claims if len(claims) > 1 else claims[0]
        else:
            self._claims.pop(item.ref, None)
        self._dirty[item.ref] = None

    def _claim(self, item: Item) -> None:
        if item.ref is None:
            return
        claims = (*self._claims_of(item.ref), item)
        if len(claims) > 1:
            claims = tuple(sorted(claims, key=lambda claim: (claim.origin.file, claim.origin.line)))
        self._claims[item.ref] = claims if len(claims) > 1 else item
        self._dirty[item.ref] = None

    def _claims_of(self, ref: ObjectRef) -> tuple[Item, ...]:
        """The items that name an object, in the order of their files and lines."""
        claims = self._claims.get(ref, ())
        return claims if isinstance(claims, tuple) else (claims,)

    # ---- what is in force

    def _resolve(self, ref: ObjectRef) -> Object | None:
        claims = self._claims_of(ref)
        found, effect = self._choose(ref, claims)
        duplicates: tuple[Problem, ...] = ()
        if len(claims) > 1 and found is not None:
            duplicates = tuple(
                _duplicate(claim, found) for claim in claims if claim.object is not None and claim.object is not found
            )
        verdict = (effect, duplicates)
        if self._verdicts.get(ref, ("", ())) != verdict:
            self._problems = None
            if effect or duplicates:
                self._verdicts[ref] = verdict
            else:
                del self._verdicts[ref]
        return found

    def _choose(self, ref: ObjectRef, claims: tuple[Item, ...]) -> tuple[Object | None, str]:
        held = self.in_force.get(ref) or self._recalled.get(ref)
        good = held if held is not None and _is_good(held) else None
        for claim in claims:
            if claim.object is not None:
                return claim.object, ""
            if good is not None and good.origin.file == claim.origin.file and not _valid_in(claims, claim.origin.file):
                return good, KEPT
        if not claims:
            return None, ""
        if good is not None:
            return good, KEPT
        isolating = next((claim.isolating for claim in claims if claim.isolating is not None), held)
        return isolating, ISOLATED if isolating is not None else ""

    def _provided(self, ref: ObjectRef, value: Object) -> bool:
        return any(claim.object is value for claim in self._claims_of(ref))

    def _effect(self, item: Item) -> str:
        if item.unidentified:
            return ALL_KEPT if item.origin.file in self._ghosts else ""
        return self._verdicts.get(item.ref, ("", ()))[0] if item.ref is not None and item.object is None else ""


def _is_good(value: Object) -> bool:
    """Whether it was valid as written, rather than made of a policy that was not."""
    if isinstance(value, PolicySet):
        return not value.salvaged
    return not (isinstance(value, Policy) and value.problem)


def _valid_in(claims: tuple[Item, ...], file: str) -> bool:
    return any(claim.object is not None and claim.origin.file == file for claim in claims)


def _with_effect(problem: Problem, effect: str) -> Problem:
    if not effect:
        return problem
    return Problem(problem.file, problem.line, problem.message, problem.path, problem.subject, effect)


def _duplicate(claim: Item, winner: Object) -> Problem:
    message = f"defined twice: {winner.origin} comes first and is in force"
    return Problem(claim.origin.file, claim.origin.line, message, "metadata.name", str(claim.ref))
