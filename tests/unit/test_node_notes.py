"""Notes in a node's cache: what names and aliases stand for, for who has no Redis or starts anew."""

from __future__ import annotations

from pathlib import Path

from tests.unit.test_node_plan import make_record

from lora_workers.node.note_files import NoteFiles


def test_names_are_remembered_and_forgotten(tmp_path: Path) -> None:
    """A note for each served name; a broken one is no note."""
    notes = NoteFiles(tmp_path / "cache")
    record = make_record()
    assert notes.recall(record.served_name) is None
    notes.remember(record)
    notes.remember(record)
    assert notes.recall(record.served_name) == record
    note = tmp_path / "cache" / "served" / f"{record.served_name}.json"
    note.chmod(0o644)
    note.write_text("{")
    assert notes.recall(record.served_name) is None
    notes.forget(record.served_name)
    notes.forget(record.served_name)
    assert not note.exists()


def test_routes_are_kept_and_broken_ones_are_none(tmp_path: Path) -> None:
    """Whoever starts anew begins with them; what is no such file says nothing."""
    notes, routes = NoteFiles(tmp_path / "cache"), {"default.bot@bot": "bot.v1"}
    assert notes.recall_routes() == {}
    notes.remember_routes(routes)
    assert notes.recall_routes() == routes
    for broken in (b"{", b"[]", b'{"a": 1}', b"\xff"):
        file = tmp_path / "cache" / "routes.json"
        file.chmod(0o644)
        file.write_bytes(broken)
        assert notes.recall_routes() == {}
    notes.remember_routes(routes)
    assert notes.recall_routes() == routes
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["routes.json"]
