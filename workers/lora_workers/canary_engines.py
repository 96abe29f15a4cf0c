"""The engines that try candidates before they are published: node drivers, and where the engines see the files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

from lora_registry import node_codes
from lora_registry.errors import CanaryEngineUnfit, Configuration
from lora_registry.settings import Settings
from lora_registry.stages.canary import CANDIDATE_PREFIX, DEFAULT_PROMPTS, MAX_TOKENS, Answer
from lora_workers.artifact_store import open_artifact_store
from lora_workers.node.cache import Cache, Origin
from lora_workers.node.drivers import AnsweringDriver, open_driver
from lora_workers.node.failures import NodeFailure

_MOST_PROMPTS = 64
_MOST_PROMPT_BYTES = 64 * 1024


class Shelf(Protocol):
    """Where an engine sees artifacts."""

    def path(self, digest: str) -> Path:
        """Have the artifact there; returns its directory."""

    def clear(self) -> None:
        """Remove what is not needed there any more: no candidate is loaded."""


class StoreShelf:
    """The artifact store itself, which the engine sees under the same path.

    Args:
        directory: of the store.
    """

    def __init__(self, directory: Path) -> None:
        self._cache = Cache(directory)

    def path(self, digest: str) -> Path:
        """See `Shelf`."""
        return self._cache.path(digest)

    def clear(self) -> None:
        """See `Shelf`: nothing there is ours."""


class CopyShelf:
    """A directory of one engine's own, with verified copies.

    Args:
        directory: the engine sees it under the same path.
        origin: opens the artifact store, on first use.
    """

    def __init__(self, directory: Path, origin: Callable[[], Origin]) -> None:
        self._cache = Cache(directory)
        self._origin = origin

    def path(self, digest: str) -> Path:
        """See `Shelf`."""
        return self._cache.fetch(digest, self._origin())

    def clear(self) -> None:
        """See `Shelf`."""
        for digest in self._cache.digests():
            self._cache.remove(digest)


class DrivenEngine:
    """A canary engine behind a node driver; see `lora_registry.stages.canary.CanaryEngine`.

    Args:
        url: where it answers.
        driver: how it is driven.
        shelf: where it sees candidates.
    """

    def __init__(self, url: str, driver: AnsweringDriver, shelf: Shelf) -> None:
        self._url = url
        self._driver = driver
        self._shelf = shelf

    @property
    def id(self) -> str:
        """See `CanaryEngine`."""
        return engine_id(self._url)

    def candidates(self) -> Sequence[str]:
        """See `CanaryEngine`."""
        with self._failures():
            return [name for name in self._driver.listed() if name.startswith(CANDIDATE_PREFIX)]

    def load(self, name: str, digest: str) -> str | None:
        """See `CanaryEngine`."""
        with self._failures():
            path = str(self._shelf.path(digest))
            try:
                self._driver.load(name, path)
            except NodeFailure as failure:
                if failure.code == node_codes.NODE_ENGINE_REFUSED.code and not failure.may_pass:
                    return failure.message
                raise
            if self._driver.listed().get(name) != path:
                raise NodeFailure(node_codes.NODE_NOT_LISTED, may_pass=True)
        return None

    def unload(self, name: str) -> None:
        """See `CanaryEngine`; its files go, too, unless the engine may still read them."""
        with self._failures():
            self._driver.unload(name)
            if not self.candidates():
                self._shelf.clear()

    def ask(self, name: str | None, prompt: str) -> Answer:
        """See `CanaryEngine`."""
        with self._failures():
            return self._driver.answer(name, prompt, max_tokens=MAX_TOKENS)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except NodeFailure as failure:
            raise CanaryEngineUnfit(f"{self._url}: {failure.code}: {failure.message}") from failure


def open_canary_engines(settings: Settings) -> dict[str, DrivenEngine]:
    """Base model → its canary engine; nothing is sent yet.

    Raises:
        Configuration: the engines can see no artifacts, or the file of their API key cannot be read.
    """
    api_key = _read_text(settings.canary_api_key_file, "CANARY_API_KEY_FILE").strip()
    shelves = _shelves(settings)
    engines = {}
    for base, told in settings.canary_engines.items():
        kind, _, url = told.partition("@")
        driver = cast(AnsweringDriver, open_driver(kind, url, api_key=api_key))
        engines[base] = DrivenEngine(url, driver, shelves(url))
    return engines


def read_prompts(settings: Settings) -> Sequence[str]:
    """What candidates are asked.

    Raises:
        Configuration: the file cannot be read, has no prompt, or too many.
    """
    if settings.canary_prompts is None:
        return DEFAULT_PROMPTS
    lines = _read_text(settings.canary_prompts, "CANARY_PROMPTS").splitlines()
    prompts = [line for line in lines if line.strip()]
    if not 1 <= len(prompts) <= _MOST_PROMPTS:
        raise Configuration(
            f"LORA_REGISTRY_CANARY_PROMPTS: {settings.canary_prompts} has {len(prompts)} prompts, "
            f"and 1 to {_MOST_PROMPTS} are asked"
        )
    return prompts


def check_canary(settings: Settings) -> None:
    """Make sure that a canary worker can work.

    Raises:
        Configuration: it cannot; see `open_canary_engines` and `read_prompts`.
    """
    open_canary_engines(settings)
    read_prompts(settings)


def engine_id(url: str) -> str:
    """The name of an engine in Redis keys and directories."""
    return hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def _shelves(settings: Settings) -> Callable[[str], Shelf]:
    copies, store = settings.canary_directory, settings.artifact_directory
    if copies is not None:
        directory = copies.absolute()
        return lambda url: CopyShelf(directory / engine_id(url), lambda: open_artifact_store(settings))
    if store is None:
        raise Configuration(
            "LORA_REGISTRY_CANARY_DIRECTORY: name a directory that canary workers and engines share, "
            "because the artifact store is none"
        )
    shelf = StoreShelf(store)
    return lambda _: shelf


def _read_text(path: Path | None, setting: str) -> str:
    if path is None:
        return ""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_PROMPT_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise Configuration(f"LORA_REGISTRY_{setting}: {path} cannot be read: {error}") from error
    if len(text) > _MOST_PROMPT_BYTES:
        raise Configuration(f"LORA_REGISTRY_{setting}: {path} is longer than {_MOST_PROMPT_BYTES} bytes")
    return text
