from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from lora_registry.errors import Transient
from lora_registry.readiness import Readiness
from lora_registry.sources import PinnedFile
from lora_workers.sources.remote import RemoteSource


class EndlessStore:
    """A store that sends more of a file than it listed, without an end."""

    def stream(self, _file: PinnedFile) -> Iterator[bytes]:
        """Some more, a bounded number of times so that this test ends."""
        yield from repeat(b"x" * 1000, 1000)


def test_no_more_is_copied_than_was_listed(tmp_path: Path) -> None:
    """What was small enough when it was looked at does not fill the disk when it is copied."""
    store: Any = EndlessStore()
    with pytest.raises(Transient):
        RemoteSource("hf", store, Readiness()).copy(PinnedFile("hf://a/b", "", 1500, "weights"), str(tmp_path / "to"))
    assert (tmp_path / "to").stat().st_size <= 1500
