"""Opening the artifact store where a library for it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_registry.errors import Configuration
from lora_registry.settings import Settings
from lora_workers.artifact_store import open_artifact_store
from lora_workers.node.lookup import LazyOrigin


def settings_of(store: str) -> Settings:
    """Settings of a registry with this store."""
    return Settings(redis_url="redis://127.0.0.1:1/0", artifact_store=store)


def test_a_missing_library_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node's own environment need not have fsspec, and an operator must not read a traceback."""
    monkeypatch.delitem(sys.modules, "lora_workers.object_artifacts", raising=False)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(Configuration, match="needs fsspec") as refused:
        open_artifact_store(settings_of("s3://bucket/artifacts"))
    assert "s3fs" in refused.value.remedy


def test_a_node_learns_at_its_start_that_it_can_never_open_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And not with the first adapter; a store that is only out of reach does not keep it from starting."""
    monkeypatch.delitem(sys.modules, "lora_workers.object_artifacts", raising=False)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(Configuration):
        LazyOrigin(settings_of("s3://bucket/artifacts")).check()
    (tmp_path / "file").write_text("no directory")
    LazyOrigin(settings_of(str(tmp_path / "file" / "artifacts"))).check()
