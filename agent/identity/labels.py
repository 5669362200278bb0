"""Which labels make an identity, and the canonical key of an identity."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from fnmatch import translate
from hashlib import blake2b

NOISY: tuple[str, ...] = (
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "controller-uid",
    "job-name",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/cronjob-scheduled-timestamp",
    "topology.kubernetes.io/*",
)
"""Keys that controllers write anew for every pod or revision: each value would cost an identity of its own."""


REMEMBERED = 4096
"""Keys."""


class LabelFilter:
    """Which label keys tell identities apart. Patterns are shell wildcards (`*`, `?`, `[…]`) over the whole key.

    A key counts where an include pattern matches it (no include patterns: every key) and no exclude pattern does.
    """

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self._include = _any_of(tuple(include) or ("*",))
        self._exclude = _any_of((*NOISY, *exclude))
        self._known: dict[str, bool] = {}

    def relevant(self, key: str) -> bool:
        """Remembered: there are many pods and policies, and few keys."""
        if (known := self._known.get(key)) is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._include.fullmatch(key) is not None and self._exclude.fullmatch(key) is None
            self._known[key] = known
        return known

    def select(self, labels: Mapping[str, str], named: Container[str] = ()) -> dict[str, str]:
        """The labels an identity is made of. `named`: keys that a policy selects by; they always count, for a
        selector must see each pod's own value."""
        return {key: value for key, value in labels.items() if key in named or self.relevant(key)}


def identity_key(namespace: str, labels: Mapping[str, str], service_account: str) -> tuple[str, ...]:
    """The canonical form of an identity: sorted, every part with the kind of thing it is.

    A pod's own labels carry the kind `pod:`, so none can pass for the namespace or the service account. The API server
    lets no `=`, `%` or line break into any of them; other sources might, so these are escaped.
    """
    return (
        f"namespace={_escape(namespace)}",
        f"service-account={_escape(service_account)}",
        *sorted(f"pod:{_escape(key)}={_escape(value)}" for key, value in labels.items()),
    )


def key_digest(key: Iterable[str]) -> str:
    """16 hexadecimal digits by which nodes tell each other what they take a number to mean."""
    return blake2b("\n".join(key).encode(), digest_size=8).hexdigest()


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("=", "%3D").replace("\n", "%0A")


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(pattern) for pattern in patterns))
