"""What a watched place holds now, said as its sender would say it.

So the rules, origins and contents are the same as a delivery's, and what was seen can be read again like one.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.hook_events import HookEvent
from lora_registry.ready_marker import MARKER_FILE
from lora_workers.hooks.hook import Hook
from lora_workers.hooks.huggingface import HubHook
from lora_workers.hooks.request import HookRequest
from lora_workers.hooks.s3 import S3Hook
from lora_workers.sources.remote import StoredObject

_MAIN = "refs/heads/main"


@dataclass(frozen=True)
class Head:
    """One adapter as it lies at a watched place now.

    Attributes:
        event: what a delivery about it asks for.
        request: that delivery, to be kept and read again.
        rank: of several that lead to one adapter, the one with the highest rank is the newest; equal: nobody knows.
    """

    event: HookEvent
    request: str
    rank: float = 0.0

    @property
    def adapter(self) -> tuple[str, str]:
        """Which adapter it leads to, and what that is named after: heads that differ in either are no rivals."""
        return self.event.event.adapter.qualified, self.event.named_after


def heads_of_repo(hook: HubHook, repo: str, refs: Mapping[str, str], *, quiet_s: float) -> list[Head]:
    """The heads of a repository.

    Args:
        hook: its rules say which refs are meant.
        repo: `owner/name`.
        refs: full ref → commit.
        quiet_s: as of a delivery.
    """
    heads = []
    for ref, sha in refs.items():
        body = {
            "event": {"action": "update", "scope": "repo.content"},
            "repo": {"type": "model", "name": repo},
            "updatedRefs": [{"ref": ref, "oldSha": None, "newSha": sha}],
        }
        heads += _read(hook, body, quiet_s=quiet_s, rank=float(ref == _MAIN))
    return heads


def heads_of_bucket(hook: S3Hook, bucket: str, objects: Iterable[StoredObject], *, quiet_s: float) -> list[Head]:
    """The heads among the objects of a bucket: directories with an adapter's two files and what a rule waits for."""
    directories: dict[str, dict[str, StoredObject]] = defaultdict(dict)
    for each in objects:
        directory, _, file = each.key.rpartition("/")
        directories[directory][file] = each
    markers = dict.fromkeys(rule.marker for rule in hook.rules)
    heads = []
    for files in directories.values():
        if CONFIG_FILE in files and WEIGHTS_FILE in files:  # else the upload goes on
            for marker in (each for each in markers if each in files):
                body = {"Records": [_record(bucket, files[marker], _etag(marker, files))]}
                heads += _read(hook, body, quiet_s=quiet_s, rank=max(each.modified_s for each in files.values()))
    return heads


def newest(heads: Sequence[Head]) -> tuple[list[Head], list[Head]]:
    """Those that count, one for each adapter; and those of which nobody knows which is newer."""
    of_adapter: dict[tuple[str, str], list[Head]] = defaultdict(list)
    for head in heads:
        of_adapter[head.adapter].append(head)
    clear: list[Head] = []
    unclear: list[Head] = []
    for rivals in of_adapter.values():
        rank = max(each.rank for each in rivals)
        best = [each for each in rivals if each.rank == rank]
        (clear if len(best) == 1 else unclear).extend(best)
    return clear, unclear


def _read(hook: Hook, body: dict[str, Any], *, quiet_s: float, rank: float) -> list[Head]:
    request = HookRequest({"content-type": "application/json"}, json.dumps(body).encode())
    kept = request.without_secrets(()).to_text()
    return [Head(each, kept, rank) for each in hook.read(request, quiet_s=quiet_s).events]


def _record(bucket: str, stored: StoredObject, etag: str) -> dict[str, Any]:
    told = {"bucket": {"name": bucket}, "object": {"key": quote_plus(stored.key, safe="/"), "eTag": etag}}
    return {"eventVersion": "2.2", "eventName": "ObjectCreated:Put", "s3": told}


def _etag(marker: str, files: Mapping[str, StoredObject]) -> str:
    """What the directory's content is known by: our marker stands for the other files, another object does not."""
    if marker == MARKER_FILE:
        return files[marker].etag
    stated = "\n".join(f"{name} {files[name].etag}" for name in sorted({CONFIG_FILE, WEIGHTS_FILE, marker}))
    return f"head-{hashlib.sha256(stated.encode()).hexdigest()[:32]}"
