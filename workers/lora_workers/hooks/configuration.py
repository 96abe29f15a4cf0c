"""The hooks file: which hooks there are, of which kind, with which rules; and the secrets that it refers to."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from lora_registry.errors import Configuration
from lora_registry.events import describe_validation_error
from lora_workers.hooks.cloud_events import CloudEventsHook
from lora_workers.hooks.hook import Hook
from lora_workers.hooks.huggingface import HubHook
from lora_workers.hooks.mlflow import MlflowHook
from lora_workers.hooks.s3 import S3Hook
from lora_workers.hooks.standard_webhooks import StandardHook
from lora_workers.hooks.wandb import WandbHook

AnyHook = Annotated[
    HubHook | MlflowHook | WandbHook | S3Hook | CloudEventsHook | StandardHook, Field(discriminator="kind")
]
HookName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
_REMEDY = "Correct the file that LORA_REGISTRY_HOOKS_FILE names; deploy/hooks/README.md describes it."


class HooksFile(BaseModel):
    """The whole file: `[hooks.NAME]` tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hooks: dict[HookName, AnyHook] = {}


@dataclass(frozen=True)
class HookSecrets:
    """The secrets of one hook, read."""

    secrets: tuple[str, ...] = field(repr=False)
    tokens: tuple[str, ...] = field(default=(), repr=False)

    @property
    def all(self) -> tuple[str, ...]:
        """All of them, the longest first, to take them out of what is kept."""
        return tuple(sorted({*self.secrets, *self.tokens}, key=len, reverse=True))


def load_hooks(path: Path | None) -> dict[str, AnyHook]:
    """The hooks of a file, TOML or JSON; none without one.

    Raises:
        Configuration: it cannot be read, or says what is not legal; the message names it.
    """
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        told: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        hooks = HooksFile.model_validate(told).hooks
    except OSError as error:
        raise Configuration(f"{path}: {error.strerror}", remedy=_REMEDY) from error
    except ValidationError as error:
        raise Configuration(f"{path}: {describe_validation_error(error)}", remedy=_REMEDY) from error
    except ValueError as error:  # TOMLDecodeError, JSONDecodeError and UnicodeDecodeError are ones
        raise Configuration(f"{path}: {error}", remedy=_REMEDY) from error
    for name, hook in hooks.items():
        if not hook.references and not getattr(hook, "topics", ()):
            raise Configuration(f"{path}: hook {name!r} has no secrets", remedy=_REMEDY)
    return dict(hooks)


def read_secrets(name: str, hook: Hook, *, environment: Mapping[str, str] = os.environ) -> HookSecrets:
    """The secrets that a hook refers to.

    Raises:
        Configuration: one is not there, is empty, or has not the form that the kind needs; no message holds a secret.
    """
    secrets = tuple(_read(name, each, environment) for each in hook.secrets)
    for each in secrets:
        hook.check_secret(each)
    return HookSecrets(secrets, tuple(_tokens(name, getattr(hook, "tokens", ()), environment)))


def _tokens(name: str, references: Iterable[str], environment: Mapping[str, str]) -> Iterable[str]:
    return (_read(name, each, environment) for each in references)


def _read(name: str, reference: str, environment: Mapping[str, str]) -> str:
    kind, _, where = reference.partition(":")
    try:
        secret = environment.get(where, "") if kind == "env" else Path(where).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise Configuration(f"hook {name!r}: {reference}: {why}", remedy=_REMEDY) from error
    if len(secret) < 8:
        raise Configuration(
            f"hook {name!r}: {reference} has no secret of at least 8 characters",
            remedy="Set it where the gateway runs, to at least 8 characters.",
        )
    return secret
