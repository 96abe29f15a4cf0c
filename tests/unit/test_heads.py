from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.helpers import hooks
from tests.helpers.hooks import RULES, write_hooks

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.errors import Configuration
from lora_registry.ready_marker import MARKER_FILE
from lora_workers.hooks.configuration import HooksFile, load_hooks, watching
from lora_workers.hooks.heads import Head, heads_of_bucket, heads_of_repo, newest
from lora_workers.hooks.request import HookRequest
from lora_workers.sources.remote import StoredObject

A, B = "a" * 40, "b" * 40
HUB, S3 = RULES["hub"], RULES["s3"]


def hook(kind: str, **fields: Any) -> Any:
    """A configured hook."""
    return HooksFile.model_validate({"hooks": {"a": RULES[kind] | fields}}).hooks["a"]


def stored(directory: str, *files: str, etag: str = "e", modified_s: float = 1.0) -> list[StoredObject]:
    """Objects of a directory."""
    return [StoredObject(f"{directory}/{each}", f"{etag}-{each}", modified_s) for each in files]


def contents(heads: list[Head]) -> list[tuple[str, str]]:
    """Source and content of each head."""
    return [(each.event.event.source, each.event.content) for each in heads]


def test_a_head_of_a_repository_is_what_its_webhook_would_say() -> None:
    """Origin and content are those of a delivery about the same commit, so each knows what the other asked for."""
    [head] = heads_of_repo(hook("hub"), "acme/bot", {"refs/heads/main": A}, quiet_s=1.0)
    [told] = hook("hub").read(hooks.hub(hooks.hub_push("acme/bot", sha=A)).request, quiet_s=1.0).events
    assert head.event == told
    assert head.event.origin == told.origin


def test_only_refs_and_repositories_of_rules_are_heads() -> None:
    """Pull requests, conversions, and what no rule is about are nothing to register."""
    refs = {"refs/heads/main": A, "refs/pr/1": B, "refs/convert/parquet": B, "refs/heads/try": B}
    assert contents(heads_of_repo(hook("hub"), "acme/bot", refs, quiet_s=0)) == [("hf://acme/bot@main", A)]
    other = hook("hub", rules=[{"repo": "other/*", "base": "tiny-llama"}])
    assert heads_of_repo(other, "acme/bot", refs, quiet_s=0) == []


def test_a_head_of_a_bucket_is_what_its_notification_would_say() -> None:
    """A marker is known by its ETag, whoever tells of it, and whatever else a notification says of the object."""
    objects = stored("team/my bot", CONFIG_FILE, WEIGHTS_FILE, MARKER_FILE)
    [head] = heads_of_bucket(hook("s3"), "adapters", objects, quiet_s=0)
    told = hooks.minio("team/my bot", eTag=f"e-{MARKER_FILE}", sequencer="1A2B", versionId="v7")
    [event] = hook("s3").read(hooks.bucket(told).request, quiet_s=0).events
    assert (head.event.origin, head.event.content) == (event.origin, event.content)
    assert head.event.event.source == "s3://adapters/team/my bot"


def test_an_upload_that_goes_on_is_no_head() -> None:
    """Without its weights, or without the object that a rule waits for, a directory is left for the next round."""
    for files in ((CONFIG_FILE, MARKER_FILE), (CONFIG_FILE, WEIGHTS_FILE), (WEIGHTS_FILE, MARKER_FILE)):
        assert heads_of_bucket(hook("s3"), "adapters", stored("bot", *files), quiet_s=0) == []


def test_without_a_marker_the_weights_count_too() -> None:
    """Where the configuration asks, new weights beside the same configuration are new content."""
    directory = f"{hooks.CONFIG_FIRST}/bot"
    config = StoredObject(f"{directory}/{CONFIG_FILE}", "same", 1.0)
    seen = {
        heads_of_bucket(hook("s3"), "adapters", [config, *stored(directory, WEIGHTS_FILE, etag=etag)], quiet_s=0)[
            0
        ].event.content
        for etag in ("one", "two", "two")
    }
    assert len(seen) == 2


def test_of_several_directories_of_one_adapter_the_newest_counts() -> None:
    """Two runs wrote an adapter of one name: only the one that was written last is asked for."""
    files = (CONFIG_FILE, WEIGHTS_FILE, MARKER_FILE)
    objects = stored("run-1/bot", *files, modified_s=20.0) + stored("run-2/bot", *files, modified_s=10.0)
    clear, unclear = newest(heads_of_bucket(hook("s3"), "adapters", objects, quiet_s=0))
    assert ([each.event.event.source for each in clear], unclear) == (["s3://adapters/run-1/bot"], [])


def test_of_several_refs_of_one_adapter_main_counts_and_of_tags_nobody_knows() -> None:
    """The Hub gives no times with its refs."""
    tags = {"refs/tags/v1": A, "refs/tags/v2": B}
    clear, unclear = newest(heads_of_repo(hook("hub"), "acme/bot", tags | {"refs/heads/main": B}, quiet_s=0))
    assert (contents(clear), unclear) == ([("hf://acme/bot@main", B)], [])
    clear, unclear = newest(heads_of_repo(hook("hub"), "acme/bot", tags, quiet_s=0))
    assert (clear, len(unclear)) == ([], 2)
    named = [{"repo": "*", "refs": ["refs/tags/*"], "base": "tiny-llama", "name": "{repo_name}-{ref_name}"}]
    clear, unclear = newest(heads_of_repo(hook("hub", rules=named), "acme/bot", tags, quiet_s=0))
    assert (len(clear), unclear) == (2, [])


def test_what_was_seen_can_be_read_again() -> None:
    """The history keeps it as a delivery, so `hooks redeliver` asks for the same."""
    [head] = heads_of_repo(hook("hub"), "acme/bot", {"refs/heads/main": A}, quiet_s=0)
    assert hook("hub").read(HookRequest.from_text(head.request), quiet_s=0).events == (head.event,)


@pytest.mark.parametrize(
    ("kind", "watch"),
    [
        ("hub", "acme/bot"),
        ("hub", "hf://acme"),
        ("hub", "hf://*/bot"),
        ("hub", "hf://acme/bot@main"),
        ("hub", "s3://bucket/prefix"),
        ("s3", "hf://acme/bot"),
        ("s3", "s3://bucket/*"),
        ("mlflow", "hf://acme/bot"),
    ],
)
def test_places_that_cannot_be_watched_are_refused_at_the_start(tmp_path: Path, kind: str, watch: str) -> None:
    """The message names the field; a whole Hub, and what has no listing, cannot be watched."""
    with pytest.raises(Configuration, match="watch"):
        load_hooks(write_hooks(tmp_path / "hooks.json", {"a": RULES[kind] | {"watch": [watch]}}))


def test_a_hook_that_only_watches_needs_no_secret(tmp_path: Path) -> None:
    """Where no webhook can be had; every delivery to it is refused then."""
    given = {
        "a": HUB | {"secrets": [], "watch": ["hf://acme/*"]},
        "b": S3 | {"secrets": [], "topics": [], "watch": ["s3://adapters/team"]},
        "c": HUB,
    }
    loaded = load_hooks(write_hooks(tmp_path / "hooks.json", given))
    assert list(watching(loaded)) == ["a", "b"]
