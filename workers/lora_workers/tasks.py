"""Celery's side of the stages: a wake-up comes in, one stage's due work is done, the next stage is woken."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from functools import cached_property, partial

import redis
from celery import Celery

from lora_registry.adapter_config import AdapterConfig
from lora_registry.base_profile import BaseProfile
from lora_registry.catalog import Catalog
from lora_registry.connection import connect
from lora_registry.engine_profiles import find_profiles
from lora_registry.errors import ProcessUnfit, SourceTooSlow
from lora_registry.leases import LeaseKeeper
from lora_registry.ledger import Lease, Ledger
from lora_registry.lifecycle import Lifecycle
from lora_registry.numeric_report import NumericPass, StartNumericPass
from lora_registry.open_promotions import OpenPromotions
from lora_registry.policies import Policies
from lora_registry.promotion import Promotions
from lora_registry.rollout import Rollouts
from lora_registry.settings import Settings
from lora_registry.stages import Stage
from lora_registry.stages.allocate import allocate
from lora_registry.stages.canary import canary
from lora_registry.stages.publish import publish
from lora_registry.stages.resolve import resolve
from lora_registry.stages.validate import validate
from lora_registry.work import Perform, work
from lora_workers.artifact_store import open_artifact_store
from lora_workers.celery_app import PROMOTIONS_TASK, child_number, make_app, send_wake_ups, task_name
from lora_workers.credentials import Credentials
from lora_workers.linear_patterns import linear_time_patterns
from lora_workers.logs import log_to_stderr
from lora_workers.mlflow_registry import MlflowRegistry
from lora_workers.sources import open_sources
from lora_workers.time_limit import time_limit

_BUDGET_S = 10.0
_UNFIT = 70
"""Exit code of a process that cannot work any more. Source: sysexits.h, EX_SOFTWARE."""
Around = Callable[[Stage, Perform], Perform]
"""Puts something around a stage's function: tracing, or a fault that a test injects."""

logger = logging.getLogger(__name__)


class Station:
    """What one worker process needs to work on its stages; everything is opened on first use, after any fork."""

    def __init__(self, app: Celery, settings: Settings, *, around: Around | None = None) -> None:
        self._app = app
        self._settings = settings
        self._around = around or (lambda _, perform: perform)

    def run(self, stage: Stage) -> int:
        """Work on the due registrations of `stage`; returns how many.

        A process that cannot work any more ends instead, and the pool starts another.
        """
        try:
            return work(
                stage,
                self._around(stage, self._perform[stage]),
                ledger=self._ledger,
                keeper=self._keeper,
                wake=self._wake,
                owner=self._owner,
                budget_s=_BUDGET_S,
            )
        except ProcessUnfit as error:
            logger.error("%s: this process ends, to be replaced: %s", stage, error)
            os._exit(_UNFIT)  # nothing is lost: what failed is recorded, and the sweep wakes the stage again

    def settle_promotions(self) -> int:
        """Decide the promotions whose promoter is gone; returns how many."""
        settings = self._settings
        lifecycle, rollouts = Lifecycle(self._client, settings), Rollouts(self._client, settings)
        promotions = Promotions(lifecycle, rollouts, OpenPromotions(self._client, settings))
        decided = promotions.settle(by=f"worker {self._owner}")
        for each in decided:
            logger.warning("whoever promoted is gone; %s", each)
        return len(decided)

    @cached_property
    def _perform(self) -> dict[Stage, Perform]:
        ledger, catalog, settings = self._ledger, self._catalog, self._settings
        source, store = open_sources(settings), open_artifact_store(settings)
        store.remove_stale_staging()
        locate = MlflowRegistry(settings.mlflow_url, Credentials(settings.credentials_file)).locate
        look = partial(resolve, locate=locate, max_adapter_bytes=settings.max_adapter_bytes)
        judge = partial(
            validate,
            max_lora_rank=settings.max_lora_rank,
            compile_pattern=linear_time_patterns(),
            profiles=find_profiles(settings.engine_profiles),
            numeric=None if settings.numeric == "off" else self._start_numeric_pass,
        )
        return {
            Stage.ALLOCATE: partial(allocate, ledger=ledger, catalog=catalog),
            Stage.RESOLVE: self._resolve_in_time(
                partial(look, source=source, policies=Policies(self._client, settings), catalog=catalog)
            ),
            Stage.VALIDATE: partial(judge, catalog=catalog, source=source, store=store, ledger=ledger),
            Stage.CANARY: self._try_on_engine,
            Stage.PUBLISH: partial(publish, ledger=ledger, catalog=catalog),
        }

    def _resolve_in_time(self, perform: Perform) -> Perform:
        limit_s = self._settings.resolve_time_limit_s

        def limited(lease: Lease) -> Mapping[str, str | int] | None:
            try:
                with time_limit(limit_s, SourceTooSlow(f"nothing was found within {limit_s:g} s")):
                    return perform(lease)
            except SourceTooSlow:
                # It may have rung between a command and its answer, which the next command would be given.
                self._client.connection_pool.disconnect(inuse_connections=False)
                raise

        return limited

    def _start_numeric_pass(self, config: AdapterConfig, base: BaseProfile, *, size_bytes: int) -> NumericPass:
        return self._numeric_checks(config, base, size_bytes=size_bytes)

    @cached_property
    def _numeric_checks(self) -> StartNumericPass:
        # Not before there are weights to look at: this imports torch, which must not be in the parent of a fork.
        from lora_workers.numeric.numeric_pass import NumericChecks

        return NumericChecks(self._settings.device, index=child_number())

    def _try_on_engine(self, lease: Lease) -> Mapping[str, str | int] | None:
        return self._canary(lease)

    @cached_property
    def _canary(self) -> Perform:
        from lora_workers.canary_engines import open_canary_engines, read_prompts  # httpx, for canary workers only

        engines, prompts = open_canary_engines(self._settings), read_prompts(self._settings)
        return partial(canary, ledger=self._ledger, engines=engines, prompts=prompts)

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger(self._client, self._settings)

    @cached_property
    def _keeper(self) -> LeaseKeeper:
        return LeaseKeeper(self._ledger)

    @cached_property
    def _catalog(self) -> Catalog:
        return Catalog(self._client, self._settings)

    @cached_property
    def _client(self) -> redis.Redis:
        return connect(self._settings.redis_url, name="lora-worker")

    @cached_property
    def _owner(self) -> str:
        # The random part keeps owners apart when a process id comes again.
        return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    def _wake(self, stage: Stage, count: int) -> None:
        try:
            send_wake_ups(self._app, stage, count)
        except Exception as error:  # noqa: BLE001 - whatever it is: the dispatcher's sweep wakes the stage later
            logger.warning("could not wake %s: %s", stage, error)


def register_tasks(app: Celery, station: Station) -> None:
    """Register one task for each stage with `app`, and the one for promotions."""

    def task_of(stage: Stage) -> Callable[[], int]:
        def run_stage() -> int:
            return station.run(stage)

        return run_stage

    for stage in Stage:
        # Not shared: Celery would add this app's tasks to every app that is made later.
        app.task(task_of(stage), name=task_name(stage), shared=False)

    def settle_promotions() -> int:
        return station.settle_promotions()

    app.task(settle_promotions, name=PROMOTIONS_TASK, shared=False)


def rebuild_app(settings_json: str, log_level: int) -> Celery:
    """The worker's app, made again in a spawned child, which knows nothing of its parent.

    Args:
        settings_json: the parent's settings.
        log_level: the parent's, a number of `logging`.
    """
    log_to_stderr(log_level)
    settings = Settings.model_validate_json(settings_json)
    app = make_app(settings)
    register_tasks(app, Station(app, settings))
    return app
