"""Where a rollback goes, by an alias's history alone."""

from __future__ import annotations

from itertools import product

import pytest

from lora_registry.catalog_records import MovedBy
from lora_registry.lifecycle import AliasMove, version_before


def moves(*steps: str) -> list[AliasMove]:
    """A history, newest first, from steps such as `1>2` and, for a rollback, `2<1`."""
    found = []
    for step in steps:
        how = MovedBy.ROLLBACK if "<" in step else MovedBy.SET
        before, after = step.replace("<", ">").split(">")
        found.append(
            AliasMove(
                int(before) if before else None, int(after) if after else None, "pinned", how, "", float(len(found))
            )
        )
    return found[::-1]


@pytest.mark.parametrize(
    ("steps", "before"),
    [
        ([], None),
        ([">1"], None),
        ([">1", "1>2"], 1),
        ([">1", "1>2", "2>3"], 2),
        ([">1", "1>2", "2>3", "3<2"], 1),
        ([">1", "1>2", "2>3", "3<2", "2<1"], None),
        ([">1", "1>2", "2<1", "1>3"], 1),
        ([">1", "1>2", "2>1"], 2),
        ([">1", "1>1"], None),
        ([">1", "1>2", "2>2"], 1),
        ([">1", "1>", ">2"], 1),
        (["5<4"], None),
        (["5<4", "4>6"], 4),
        ([">2", "2<"], None),
        ([">2", "2<", ">1"], None),
        ([">1", "1>", ">2", "2<", ">3"], 1),
        ([">1", "1>", ">3", "3<1", "1>4", "4<1"], None),
    ],
)
def test_rollback_undoes_the_last_move_that_was_not_undone(steps: list[str], before: int | None) -> None:
    """Again goes further back; a change of mode is no move; nothing is known of a move that the history forgot."""
    assert version_before(moves(*steps)) == before


class Life:
    """An alias to which things happen: what its history says, and whether anybody wanted where it stood.

    Versions count up, so that each is one that somebody chose, or one that a promotion tried, and never both.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.wanted: list[int] = []
        """The versions that a rollback may go to, and last the one that the alias points at."""
        self.at: int | None = None
        self._newest = 0

    def chosen(self) -> None:
        """Somebody sets it, or a promotion comes to its good end."""
        self._newest += 1
        self._move(">", self._newest)
        self.wanted.append(self._newest)

    def taken_back(self) -> None:
        """A promotion moves it, fails, and takes that back."""
        before = self.at
        self._newest += 1
        self._move(">", self._newest)
        self._move("<", before)

    def pinned(self) -> None:
        """Its mode changes."""
        if self.at:
            self._move(">", self.at)

    def removed(self) -> None:
        """Somebody removes it."""
        if self.at:
            self._move(">", None)

    def rolled_back(self) -> None:
        """Somebody rolls it back: to the newest version that was wanted before the one it points at."""
        before = version_before(moves(*self.steps))
        if self.at is None:
            return
        expected = self.wanted[-2] if len(self.wanted) > 1 else None
        assert before == expected, f"{' '.join(self.steps)}: {before}, not {expected}"
        if before:
            self.wanted.pop()
            self._move("<", before)

    def _move(self, how: str, to: int | None) -> None:
        self.steps.append(f"{self.at or ''}{how}{to or ''}")
        self.at = to


@pytest.mark.parametrize("first", ["chosen", "taken_back"])
def test_rollback_never_goes_to_what_a_promotion_took_back_nor_forward(first: str) -> None:
    """Whatever happens to an alias, six things long, with a rollback at every point of it."""
    happenings = ("chosen", "taken_back", "pinned", "removed", "rolled_back")
    for rest in product(happenings, repeat=6):
        life = Life()
        for each in (first, *rest, "rolled_back", "rolled_back"):
            getattr(life, each)()
