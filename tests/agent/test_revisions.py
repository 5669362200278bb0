"""What is desired and what is realized, as batches come and may come."""

from __future__ import annotations

from agent.revisions import Revisions


def figures(revisions: Revisions) -> tuple[int, int, bool]:
    """Desired, realized, whether it is behind."""
    shown = revisions.shown()
    return shown.desired, shown.realized, revisions.behind_since is not None


def test_what_is_realized_is_what_is_whole_in_the_kernel() -> None:
    revisions = Revisions()
    assert figures(revisions) == (0, 0, True)
    revisions.read()
    revisions.took(1, whole=True)
    assert figures(revisions) == (1, 1, False)
    revisions.read()
    revisions.took(2, whole=False)
    assert figures(revisions) == (2, 1, True)
    revisions.took(2, whole=True)
    assert figures(revisions) == (2, 2, False)


def test_what_may_have_come_is_desired_and_stays_so() -> None:
    revisions = Revisions()
    revisions.read()
    revisions.took(1, whole=True)
    revisions.promise()
    assert (revisions.shown().desired, revisions.desired, revisions.broken_promise) == (2, 1, True)
    revisions.read()
    assert (revisions.shown().desired, revisions.broken_promise) == (2, False)
