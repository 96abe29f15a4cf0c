"""Settings: read once from the environment (`LORA_REGISTRY_…`) at the entry point and passed down."""

from __future__ import annotations

import re
import tempfile
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lora_registry.errors import Configuration
from lora_registry.events import describe_validation_error

SECONDS_PER_DAY = 86_400
_CANARY_ENGINE = re.compile(r"(vllm|sglang)@https?://[^\s,@]+")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,31}")
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """All settings, with units in their names.

    Raises:
        ValidationError: a value is out of range; `load_settings` turns it into `Configuration`.
    """

    model_config = SettingsConfigDict(env_prefix="LORA_REGISTRY_", frozen=True, extra="ignore")

    redis_url: Annotated[str, Field(repr=False)] = "redis://127.0.0.1:6379/0"
    """Registry's server: `redis://`, `rediss://` or `unix://`."""
    broker_url: Annotated[str, Field(repr=False)] = ""
    """Celery's server; empty: the registry's. It may be another server; it must not be a Redis Cluster."""
    alias_redis_url: Annotated[str, Field(repr=False)] = ""
    """Registry's server as a user who may move aliases, for the gateway; empty: `redis_url` is that, too."""
    key_prefix: Annotated[str, Field(pattern=r"^\{[A-Za-z0-9_-]{1,32}\}$")] = "{lora}"
    """Hash tag that every key starts with: all keys a script touches share one slot."""

    source_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Directories that local sources may lie in, separated by ':'; empty: no local source is allowed."""
    artifact_store: str = "lora-registry-data/artifacts"
    """Artifact store, which every validate worker and every node sees: a directory, or any fsspec URL (`s3://bucket/prefix`)."""
    scratch: Path = Path(tempfile.gettempdir())
    """Local directory in which adapters are judged before they go to an artifact store that is no directory."""
    gc_grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3600.0
    """How long an artifact must have been without any reference before `store gc` removes it."""
    allowed_schemes: Annotated[tuple[str, ...], NoDecode] = ("file", "hf", "s3")
    """Schemes of sources, by commas; besides these: `https`, `http`, and fsspec's (`gs`, `az`, …)."""
    allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks that are not public and that `http(s)` sources may lie in all the same, by commas."""
    credentials_file: Path | None = None
    """JSON file of named credentials, which workers read; see `lora_workers.credentials`."""
    hub_endpoint: str = "https://huggingface.co"
    """Where `hf://` leads; a credential may name another endpoint."""
    hub_offline: bool = False
    """Refuse `hf://` sources; HF_HUB_OFFLINE=1 does the same."""
    mlflow_url: str = ""
    """MLflow server that says what `mlflow://` sources mean, such as an alias that a webhook announced."""
    incomplete_deadlines_s: Annotated[dict[str, float], NoDecode] = {"file": 0.0, "*": 900.0}
    """How long after its event an upload may stay incomplete, by scheme (`file=0,s3=600,*=900`); 0: not at all."""
    marker_required: Annotated[tuple[str, ...], NoDecode] = ()
    """Schemes whose sources must have the marker file _ADAPTER_READY.json, by commas."""
    adapter_inbox: str = ""
    """Where training jobs put copies of adapters: a directory or fsspec URL that the workers read; empty: nowhere."""
    inbox_retention_s: Annotated[int, Field(gt=0)] = 7 * SECONDS_PER_DAY
    """Copies in it that nobody wanted for so long are removed by `store gc`."""

    require_namespace_policy: bool = False
    """Whether a namespace without a policy may register nothing; otherwise it may whatever these settings allow."""
    gateway_max_body_bytes: Annotated[int, Field(gt=0)] = 256 * 1024
    """Longest body of an HTTP request."""

    max_queued_events: Annotated[int, Field(gt=0)] = 100_000
    """Accepted events that no dispatcher has taken yet; beyond it `submit` raises QueueFull."""
    max_attempts: Annotated[int, Field(gt=0, le=100)] = 5
    """Tries of one stage, lost workers included, before a registration is dead-lettered."""
    backoff_first_s: Seconds = 1.0
    backoff_max_s: Seconds = 300.0
    lease_s: Seconds = 30.0
    """How long a registration stays with a worker, or an open promotion with its promoter, without a sign of life."""
    stage_time_limit_s: Seconds = 600.0
    """Longest run of one task; a worker process that exceeds it is killed."""
    resolve_time_limit_s: Seconds = 120.0
    """Longest look for an adapter at its place: then the registration is tried again later, and another one now."""
    sweep_interval_s: Seconds = 1.0
    wake_timeout_s: Seconds = 5.0
    """After so long without a claim a wake-up counts as lost and is sent again (then after twice as long, …)."""
    stall_timeout_s: Seconds = 60.0
    """After so long with due work, no claim and no lease, the supervisor restarts a stage's workers."""

    retention_s: Annotated[int, Field(gt=0)] = 7 * SECONDS_PER_DAY
    """How long a finished registration and its idempotency key are kept."""
    dead_letter_retention_s: Annotated[int, Field(gt=0)] = 30 * SECONDS_PER_DAY
    log_length: Annotated[int, Field(gt=0)] = 10_000
    """Announcements kept per base model; a cursor older than that gets a reset."""
    keep_last: Annotated[int, Field(ge=0)] = 0
    """Versions kept of each adapter, besides those that an alias points at; 0: all. Namespaces and adapters may have
    a number of their own."""
    heartbeat_s: Seconds = 5.0
    """How often a serving node says that it lives."""
    node_timeout_s: Seconds = 20.0
    """After so long without a heartbeat a node counts as dead, and what it acknowledged counts no more."""
    node_retention_s: Annotated[int, Field(gt=0)] = SECONDS_PER_DAY
    """How long a dead node is remembered, and what it holds is kept in the artifact store."""
    id_gap: Annotated[int, Field(gt=0)] = 10_000
    """By how much the id counter is raised when a new server is admitted: more than can be issued in the seconds
    that a crash or failover can lose."""
    number_gap: Annotated[int, Field(gt=0)] = 1_000
    """The same for each adapter's version numbers."""
    max_lora_rank: Annotated[int, Field(gt=0)] = 512
    """Largest rank that any engine serves. Source: vLLM 0.33.0, vllm/config/lora.py:27-89 (MaxLoRARanks)."""
    max_adapter_bytes: Annotated[int, Field(gt=0)] = 64 * 1024**3
    """Largest weights that are copied at all. The largest adapters that engines serve are less than half: rank 512 on
    every linear layer of a 70B model in float32, or rank 64 on all experts of a 235B one in bfloat16, is 26 GB."""

    hooks_file: Path | None = None
    """TOML or JSON file of the webhooks that the gateway takes; None: none."""
    hook_quiet_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    """How long nothing more must come about one origin before what a hook asks for is registered."""
    hook_max_body_bytes: Annotated[int, Field(gt=0)] = 2 * 1024 * 1024
    """Longest body of a delivery. Source: the Hub lists up to 10,000 changed files in one, about 170 bytes each."""
    hook_history: Annotated[int, Field(gt=0, le=10_000)] = 200
    """Deliveries kept of each hook, and as many refusals."""
    resync_interval_s: Seconds = 900.0
    """Pause between two rounds of `resync`; one request for each watched repository and round."""

    numeric: Literal["auto", "on", "off"] = "auto"
    """Whether validate workers look at the numbers of the weights too, which takes torch. auto: `up` and `demo` do
    where torch is installed; a worker of its own refuses to start without it, so that nobody goes without unawares."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What they compute on; auto: a GPU where there is one."""
    canary_engines: Annotated[dict[str, str], NoDecode] = {}
    """Engines that try candidates before they are published: BASE=vllm@URL or BASE=sglang@URL, by commas."""
    canary_prompts: Path | None = None
    """File of what they are asked, a prompt on each line; None: a few built-in ones."""
    canary_directory: Path | None = None
    """Where canary workers put candidates for them; they see it under the same path. None: they see the artifact
    store, a directory, under the same path."""
    canary_api_key_file: Path | None = None
    """File with the bearer token that they ask for; None: none."""
    engine_profiles: Annotated[tuple[str, ...], NoDecode] = ()
    """Nodes that every adapter is judged for: names of built-in engine profiles, or paths of JSON files, by commas."""

    @field_validator("canary_engines", mode="before")
    @classmethod
    def _split_engines(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        pairs = [pair.strip().partition("=") for pair in given.split(",") if pair.strip()]
        return {base: engine for base, _, engine in pairs}

    @field_validator("canary_engines")
    @classmethod
    def _check_engines(cls, engines: dict[str, str]) -> dict[str, str]:
        for base, engine in engines.items():
            if not base or not _CANARY_ENGINE.fullmatch(engine):
                raise ValueError("write BASE=vllm@URL or BASE=sglang@URL, separated by ','")
        return engines

    @field_validator("incomplete_deadlines_s", mode="before")
    @classmethod
    def _split_deadlines(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        pairs = [pair.partition("=") for pair in given.split(",") if pair.strip()]
        if any(not equals for _, equals, _ in pairs):
            raise ValueError("write SCHEME=SECONDS, separated by ','")
        return {"file": 0.0, "*": 900.0} | {scheme.strip(): seconds for scheme, _, seconds in pairs}

    @field_validator("incomplete_deadlines_s")
    @classmethod
    def _check_deadlines(cls, deadlines: dict[str, float]) -> dict[str, float]:
        if any(not 0 <= seconds < float("inf") for seconds in deadlines.values()):
            raise ValueError("a deadline is a number of seconds, at least 0")
        return deadlines

    @field_validator("allowed_schemes")
    @classmethod
    def _check_schemes(cls, schemes: tuple[str, ...]) -> tuple[str, ...]:
        if bad := next((scheme for scheme in schemes if not _SCHEME.fullmatch(scheme) or scheme == "local"), None):
            raise ValueError(f"{bad!r} is no scheme that can be allowed; local directories are SOURCE_ROOTS")
        return schemes

    @field_validator("engine_profiles", "allowed_schemes", "allowed_networks", "marker_required", mode="before")
    @classmethod
    def _split_commas(cls, names: object) -> object:
        return tuple(name.strip() for name in names.split(",") if name.strip()) if isinstance(names, str) else names

    @field_validator("artifact_store", mode="before")
    @classmethod
    def _store_as_text(cls, store: object) -> object:
        return str(store) if isinstance(store, Path) else store

    @field_validator("source_roots", mode="before")
    @classmethod
    def _split_roots(cls, roots: object) -> object:
        return tuple(Path(root) for root in roots.split(":") if root) if isinstance(roots, str) else roots

    @field_validator("source_roots")
    @classmethod
    def _check_roots(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        for root in roots:
            if not root.is_absolute():
                raise ValueError(f"{root} is not an absolute path")
        return roots

    def incomplete_deadline_s(self, scheme: str) -> float:
        """How long after its event an upload of `scheme` may stay incomplete."""
        return self.incomplete_deadlines_s.get(scheme, self.incomplete_deadlines_s.get("*", 0.0))

    @property
    def artifact_directory(self) -> Path | None:
        """Directory of the artifact store, made absolute; None if it is an object store."""
        path = self.artifact_store.removeprefix("file://")
        return None if "://" in path else Path(path).absolute()

    @property
    def celery_broker_url(self) -> str:
        """Where wake-ups travel, as Celery writes it (`redis+socket://` for a unix socket)."""
        url = self.broker_url or self.redis_url
        return url.replace("unix://", "redis+socket://", 1) if url.startswith("unix://") else url


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, with `overrides` (given by flags) on top; a None override is left out.

    Raises:
        Configuration: a value is not legal; the message names it.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type] # pydantic checks them
    except ValidationError as error:
        field, _, reason = describe_validation_error(error).partition(": ")
        raise Configuration(f"LORA_REGISTRY_{field.upper()}: {reason}") from error
