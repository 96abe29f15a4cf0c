"""What a training job calls when an adapter is saved. It imports no more than the client does, and breaks no training.

from lora_workers.training import register_adapter

register_adapter("sql-writer", "out/checkpoint-900", "tiny-llama", inbox="/shared/inbox")
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import redis
from pydantic import ValidationError

from lora_registry.client import RegistrationClient
from lora_registry.connection import connect
from lora_registry.copies import copied, place_copy, remove_copy, remove_old_copies
from lora_registry.errors import Configuration, NotFound, RegistryError, Rejected, Transient
from lora_registry.events import Follow, RegistrationRequested, describe_validation_error
from lora_registry.names import DEFAULT_NAMESPACE, parse_adapter
from lora_registry.registrations import Outcome, Registration
from lora_registry.settings import Settings, load_settings
from lora_workers.local_paths import local_path

OnError = Literal["raise", "warn"]
ANSWER_S = 5.0
"""Redis has so long to answer; a training job must not hang because of it."""
_MOST_RESUBMISSIONS = 100
_COMMIT = re.compile(r"@[0-9a-f]{40}(/|$)")
_FAILED = frozenset({Outcome.REJECTED, Outcome.DEAD_LETTERED})
logger = logging.getLogger(__name__)


@runtime_checkable
class HubCommit(Protocol):
    """What `push_to_hub` and `upload_folder` return: a `CommitInfo` of huggingface_hub."""

    oid: str
    repo_url: Any


@dataclass(frozen=True)
class Staged:
    """What is registered.

    Attributes:
        source: where workers find the bytes.
        key: idempotency key for these bytes and this request; None where the bytes are not known.
        is_copy: whether it is a copy that was made for the workers.
    """

    source: str
    key: str | None = None
    is_copy: bool = False


def register_adapter(
    name: str,
    path_or_repo: str | Path | HubCommit,
    base_model: str,
    *,
    inbox: str | Path | None = None,
    revision: str | None = None,
    namespace: str = DEFAULT_NAMESPACE,
    labels: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    supersede: bool = False,
    follow: Follow | str = Follow.LATEST,
    idempotency_key: str | None = None,
    wait: bool = False,
    timeout_s: float = 300.0,
    on_error: OnError = "warn",
    redis_url: str | None = None,
) -> Registration | None:
    """Register an adapter that was just saved or pushed. Calling it again with the same bytes registers it once.

    Args:
        name: the adapter's name, `NAME` or `NAMESPACE.NAME`.
        path_or_repo: directory that save_pretrained wrote, which is copied to the inbox first; or a repository
            (`org/repo`, any URL that the workers know), or what `push_to_hub` returned, which is passed on.
        base_model: registered name of the base model.
        inbox: directory or URL that every worker can read; None: LORA_REGISTRY_ADAPTER_INBOX. Without any, the
            directory itself is registered and must stay as it is until the outcome.
        revision: of a repository; a commit makes the call repeatable.
        namespace: of a bare name.
        labels, metadata, supersede, follow: see `RegistrationRequested`.
        idempotency_key: instead of the one that is made from the bytes and the request.
        wait: wait for the outcome.
        timeout_s: longest wait.
        on_error: `warn` logs whatever goes wrong as one warning; `raise` raises it.
        redis_url: the registry's server; None: LORA_REGISTRY_REDIS_URL.

    Returns:
        The registration, with its outcome if that was waited for; None if there is none because of an error.

    Raises:
        Rejected: with `on_error="raise"`: no adapter is there, or (if waited for) it was rejected; with the findings.
        RegistryError: with `on_error="raise"`: whatever else went wrong.
    """
    done: list[Registration] = []
    try:
        fields = {
            "labels": dict(labels or {}),
            "metadata": dict(metadata or {}),
            "supersede": supersede,
            "follow": follow,
            "base_model": base_model,
        }
        settings = load_settings(redis_url=redis_url, adapter_inbox=None if inbox is None else str(inbox))
        adapter = parse_adapter(name, namespace=namespace)
        fields |= {"namespace": adapter.namespace, "name": adapter.name}
        staged = stage(path_or_repo, settings, request=fields, revision=revision, idempotency_key=idempotency_key)
        client = RegistrationClient(_connect(settings), settings)
        done.append(submit(client, staged, fields, idempotency_key=idempotency_key))
        if wait:
            done.append(client.wait(done[0].id, timeout_s=timeout_s))
        forget(done[-1], staged, settings)
        if wait:
            _raise_if_failed(done[-1])
    except Exception as error:  # the boundary between a training run and everything that is not its business
        if on_error == "raise":
            raise
        _warn(name, error)
    return done[-1] if done else None


def stage(
    path_or_repo: str | Path | HubCommit,
    settings: Settings,
    *,
    request: Mapping[str, Any],
    revision: str | None = None,
    idempotency_key: str | None = None,
) -> Staged:
    """Make what is to be registered readable for the workers.

    Args:
        path_or_repo: see `register_adapter`.
        settings: with the inbox; without one, a directory is registered where it is.
        request: what is asked for, in plain JSON types: another request makes another copy.
        revision: of a repository.
        idempotency_key: the caller's, if any: a registration of its own has a copy of its own.

    Raises:
        Rejected: there is no adapter in the directory, or the source names another revision.
        Configuration: the inbox is of no known scheme.
        Transient: a file system or the inbox is out of reach.
    """
    source = locate(path_or_repo, revision=revision)
    if "://" in source:
        return Staged(source, _key_of(source, request))
    directory = settings.adapter_inbox.removeprefix("file://")
    is_remote = "://" in directory
    with copied(Path(source), below=Path(directory).absolute() if directory and not is_remote else None) as copy:
        if not directory:
            return Staged(source, f"content:{copy.key({**request, 'source': source})}")
        key = copy.key({**request, **({"idempotency_key": idempotency_key} if idempotency_key else {})})
        place = f"{directory.rstrip('/')}/{request['namespace']}/{request['name']}/{key}"
        if is_remote:
            from lora_workers.remote_copies import send_copy  # fsspec, which a directory does without

            send_copy(copy, place, settings=settings)
        else:
            place = str(Path(place).absolute())
            place_copy(copy, Path(place))
    return Staged(place, f"content:{key}", is_copy=True)


def locate(path_or_repo: str | Path | HubCommit, *, revision: str | None = None) -> str:
    """An absolute path, or a URL: `org/repo` that is no directory here is a repository on the Hub.

    Raises:
        Rejected: the source is empty, or `revision` is given for what has none, or has one already.
    """
    if isinstance(path_or_repo, HubCommit):
        return f"hf://{path_or_repo.repo_url.repo_id}@{path_or_repo.oid}"
    if path := local_path(path_or_repo):
        return path
    text = str(path_or_repo)
    source = text.removeprefix("file://") if "://" in text else f"hf://{text}"
    return _at_revision(source, revision) if revision else source


def _at_revision(source: str, revision: str) -> str:
    """`hf://org/repo/folder` and `main` → `hf://org/repo@main/folder`."""
    scheme, _, rest = source.partition("://")
    organisation, repository, *folder = [*rest.split("/", 2), ""][:3]
    if scheme != "hf" or not repository or "@" in rest:
        raise Rejected(
            f"revision={revision!r} cannot be put into this source",
            remedy="Give `revision` with a repository of the Hub that names none itself.",
        )
    return "/".join(part for part in (f"hf://{organisation}", f"{repository}@{revision}", *folder) if part)


def submit(
    client: RegistrationClient, staged: Staged, fields: Mapping[str, Any], *, idempotency_key: str | None = None
) -> Registration:
    """Submit what was staged. What was rejected or dead-lettered before is tried anew, everything else is found again.

    Raises:
        Rejected: a field is not legal.
        Transient: Redis is out of reach, not admitted, or full.
    """
    try:
        event = RegistrationRequested(source=staged.source, **fields)
    except ValidationError as error:
        raise Rejected(describe_validation_error(error)) from error
    key = idempotency_key or staged.key
    for _ in range(_MOST_RESUBMISSIONS):
        accepted = client.accept(event, idempotency_key=key)
        registration = client.status(accepted.registration_id)
        if accepted.created or idempotency_key or registration.outcome not in _FAILED:
            return registration
        key = f"{staged.key}:after:{registration.id}"
    raise Transient(f"{event.adapter} failed {_MOST_RESUBMISSIONS} times with these bytes")


def forget(registration: Registration, staged: Staged, settings: Settings) -> None:
    """Remove the copy of what is in the artifact store by now."""
    if staged.is_copy and registration.outcome in (Outcome.PUBLISHED, Outcome.UNCHANGED):
        if "://" in staged.source:
            from lora_workers.remote_copies import remove_remote_copy

            remove_remote_copy(staged.source, settings=settings)
        else:
            remove_copy(Path(staged.source))


def forget_published(registrations: Iterable[Registration], *, redis_url: str | None = None) -> list[Registration]:
    """Remove the copies of those that are published by now; returns those whose copies are still needed.

    Raises:
        Transient: Redis or the inbox is out of reach.
    """
    settings, left = load_settings(redis_url=redis_url), []
    client = RegistrationClient(_connect(settings), settings)
    for each in registrations:
        try:
            now = client.status(each.id)
        except NotFound:
            continue  # long ago: the inbox is swept
        forget(now, Staged(now.source, is_copy=True), settings)
        if now.outcome is None:
            left.append(each)
    return left


def sweep_inbox(settings: Settings) -> int:
    """Remove copies that nobody wanted for `settings.inbox_retention_s`; returns how many.

    Raises:
        Transient: the inbox is out of reach.
    """
    inbox = settings.adapter_inbox.removeprefix("file://")
    if "://" in inbox:
        from lora_workers.remote_copies import remove_old_remote_copies

        return remove_old_remote_copies(inbox, older_than_s=settings.inbox_retention_s, settings=settings)
    return remove_old_copies(Path(inbox), older_than_s=settings.inbox_retention_s) if inbox else 0


def require_inbox(inbox: str | Path | None) -> str:
    """The inbox given, or the setting's.

    Raises:
        Configuration: there is none.
    """
    found = str(inbox or load_settings().adapter_inbox)
    if not found:
        raise Configuration(
            "checkpoints are removed by the trainer, and there is no inbox to copy them to",
            remedy="Give `inbox`, or set LORA_REGISTRY_ADAPTER_INBOX to a directory or URL that the workers read.",
        )
    return found


def _connect(settings: Settings) -> redis.Redis:
    return connect(settings.redis_url, name="lora-training", retries=0, timeout_s=ANSWER_S)


def _key_of(source: str, request: Mapping[str, Any]) -> str | None:
    """A key for a source whose bytes its commit fixes."""
    if not _COMMIT.search(source):
        return None
    described = RegistrationRequested.model_construct(source=source, **request)
    return f"source:{described.payload_digest()}"


def _raise_if_failed(registration: Registration) -> None:
    if registration.outcome is Outcome.REJECTED:
        first = registration.findings[0].message if registration.findings else "no finding was kept"
        raise Rejected(f"{registration.id} was rejected: {first}", findings=registration.findings)
    if registration.outcome is Outcome.DEAD_LETTERED:
        raise Transient(
            f"{registration.id} is a dead letter",
            remedy=f"See `lora-registry dead-letters show {registration.id}`.",
        )


def _warn(name: str, error: Exception) -> None:
    """One line that says what to do."""
    if not isinstance(error, RegistryError):
        logger.warning("adapter %s is not registered: %s: %s", name, type(error).__name__, error)
        return
    codes = sorted({finding.code for finding in getattr(error, "findings", ())})
    because = f"{error.code}: {error.message}" + (f" ({', '.join(codes)})" if codes else "")
    logger.warning("adapter %s is not registered: %s. %s", name, because.rstrip("."), error.remedy)
