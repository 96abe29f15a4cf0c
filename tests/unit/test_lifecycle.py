"""Where a rollback goes, by an alias's history alone."""

from __future__ import annotations

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
        (["5<4"], 5),
    ],
)
def test_rollback_undoes_the_last_move_that_was_not_undone(steps: list[str], before: int | None) -> None:
    """Again goes further back; a change of mode is no move; a rollback whose move is forgotten is one itself."""
    assert version_before(moves(*steps)) == before
