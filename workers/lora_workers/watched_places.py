"""The places that hooks watch: what lies in a user's or organisation's repositories, and below a bucket's prefix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from lora_registry import hook_codes
from lora_registry.code import Code
from lora_registry.settings import Settings
from lora_workers.credentials import Credentials
from lora_workers.hooks.heads import Head, heads_of_bucket, heads_of_repo
from lora_workers.hooks.huggingface import HubHook
from lora_workers.hooks.s3 import S3Hook
from lora_workers.hooks.templates import matches

if TYPE_CHECKING:
    from lora_workers.sources.hub import HubStore
    from lora_workers.sources.s3 import S3Store

MOST_REPOS: Final = 1_000
MOST_OBJECTS: Final = 10_000
"""Looked at of one watched place; each repository is one request, and each thousand objects."""
WatchingHook = HubHook | S3Hook


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        places: narrower places to look at.
        heads: what lies there.
        lacks: why that is not all of it.
    """

    places: tuple[str, ...] = ()
    heads: tuple[Head, ...] = ()
    lacks: Code | None = None


class WatchedPlaces:
    """Asks the stores, with the credentials that hooks name.

    Args:
        settings: the registry's settings.

    Raises:
        Configuration: the credentials file is not legal.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._credentials = Credentials(settings.credentials_file)

    def below(self, hook: WatchingHook, place: str) -> Found:
        """The repositories that `hf://owner/pattern` means and a rule is about; any other place as it is.

        Raises:
            Rejected: it cannot be had, with the finding.
            Transient: it cannot be had now.
        """
        if isinstance(hook, S3Hook):
            return Found((place,))
        owner, _, pattern = place.removeprefix("hf://").partition("/")
        if not set(pattern) & set("*?["):
            return Found((place,))
        repos = self._hub.repos(owner, credential=hook.credential, limit=MOST_REPOS + 1)
        wanted = [each for each in repos if matches(each, [f"{owner}/{pattern}"])]
        meant = [each for each in wanted if any(matches(each, [rule.repo]) for rule in hook.rules)]
        lacks = None if meant else hook_codes.WATCH_EMPTY
        if len(repos) > MOST_REPOS:
            lacks = hook_codes.WATCH_TOO_LARGE
        return Found(tuple(f"hf://{each}" for each in meant[:MOST_REPOS]), lacks=lacks)

    def look(self, hook: WatchingHook, place: str, *, quiet_s: float) -> Found:
        """What lies at a place that `below` gave.

        Raises:
            Rejected: it cannot be had, with the finding.
            Transient: it cannot be had now.
        """
        if isinstance(hook, HubHook):
            repo = place.removeprefix("hf://")
            refs = self._hub.refs(repo, credential=hook.credential)
            return Found(heads=tuple(heads_of_repo(hook, repo, refs, quiet_s=quiet_s)))
        objects = self._s3.walk(place, credential=hook.credential, limit=MOST_OBJECTS + 1)
        bucket = place.removeprefix("s3://").partition("/")[0]
        heads = heads_of_bucket(hook, bucket, objects[:MOST_OBJECTS], quiet_s=quiet_s)
        return Found(heads=tuple(heads), lacks=hook_codes.WATCH_TOO_LARGE if len(objects) > MOST_OBJECTS else None)

    @cached_property
    def _hub(self) -> HubStore:
        from lora_workers.sources.hub import HubStore

        settings = self._settings
        return HubStore(self._credentials, endpoint=settings.hub_endpoint, is_offline=settings.hub_offline)

    @cached_property
    def _s3(self) -> S3Store:
        from lora_workers.sources.s3 import S3Store

        return S3Store(self._credentials)
