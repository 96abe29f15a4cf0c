from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_registry.base_profile import BaseProfile


@dataclass(frozen=True)
class Corpus:
    """The corpus on disk, and the profiles of its bases."""

    root: Path
    profiles: dict[str, BaseProfile]
    of_headers: dict[str, BaseProfile]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Everything that the corpus has, made anew."""
    pytest.importorskip("peft")
    from tests.corpus.make import make_corpus, read_profiles

    root = tmp_path_factory.mktemp("corpus")
    make_corpus(root)
    bases = root / "bases"
    return Corpus(root, read_profiles(bases), read_profiles(bases, with_model=False))
