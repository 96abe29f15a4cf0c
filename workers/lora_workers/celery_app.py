"""The Celery app: one queue for each stage, and messages that only say "this stage has work".

What a message carries is never needed: the ledger holds the work, so a lost message costs a sweep interval and a
doubled one finds nothing to claim. The settings keep Celery's own ways of losing, doubling and hanging small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from billiard import current_process
from celery import Celery
from kombu import Exchange, Queue
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError

from lora_registry.settings import Settings
from lora_registry.stages import ORDER, Stage

TASK_PREFIX = "lora_registry."
PROMOTIONS_TASK = f"{TASK_PREFIX}promotions"
"""Name of the task that decides promotions whose promoter is gone; those do it that publish."""


class StageApp(Celery):  # type: ignore[misc] # celery has no types
    """A Celery app that a spawned child can make again, tasks included, once `rebuild` is set."""

    rebuild: tuple[Callable[..., Celery], tuple[object, ...]] | None = None

    def __reduce__(self) -> Any:
        return self.rebuild or super().__reduce__()


def make_app(settings: Settings) -> StageApp:
    """The Celery app for `settings`; nothing connects before it is used."""
    _guard_restored_channels()
    app = StageApp("lora-registry", set_as_current=False, broker=settings.celery_broker_url)
    app.conf.update(_configuration(settings))
    return app


def spawn_children(app: StageApp, *, rebuild: Callable[..., Celery], arguments: tuple[object, ...]) -> None:
    """Have the pool's children start as fresh interpreters, which CUDA needs, instead of as forks.

    Args:
        app: the app of the worker.
        rebuild: makes the same app in a child, from `arguments`; both are pickled.
        arguments: for `rebuild`.
    """
    app.rebuild = (rebuild, arguments)
    app.conf.worker_pool_start_method = "spawn"


def child_number() -> int:
    """Which of its pool's children this process is, from 0; a child that is replaced leaves its number to the next."""
    return getattr(current_process(), "index", 0)


def task_name(stage: Stage) -> str:
    """Name of the task, and so of the message, that works on `stage`."""
    return f"{TASK_PREFIX}{stage}"


def send_wake_ups(app: Celery, stage: Stage, count: int) -> None:
    """Send `count` wake-up messages to `stage`.

    Raises:
        kombu.exceptions.OperationalError: the broker is out of reach.
    """
    with app.producer_pool.acquire(block=True, timeout=10) as producer:
        for _ in range(count):
            app.send_task(task_name(stage), queue=stage.value, producer=producer)


def wake_for_promotions(app: Celery) -> None:
    """Have a publish worker look at the promotions whose promoter is gone.

    Raises:
        kombu.exceptions.OperationalError: the broker is out of reach.
    """
    with app.producer_pool.acquire(block=True, timeout=10) as producer:
        app.send_task(PROMOTIONS_TASK, queue=Stage.PUBLISH.value, producer=producer)


def _configuration(settings: Settings) -> dict[str, Any]:
    limit_s = int(settings.stage_time_limit_s)
    exchange = Exchange("stages", type="direct")
    return {
        # One queue for each stage; a typo must not create one that nobody consumes.
        "task_queues": [Queue(stage.value, exchange, routing_key=stage.value) for stage in ORDER],
        "task_create_missing_queues": False,
        "task_default_queue": ORDER[0].value,
        # JSON only, and no results: the ledger has the state.
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        # Late acknowledgement and one message at a time: a message waits in the queue, for whoever is free first.
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        # A message whose worker process died is dropped, not sent again: sending it again makes a registration that
        # kills its worker kill workers for ever. The lease that runs out brings the work back, a bounded number of
        # times.
        "task_reject_on_worker_lost": False,
        "task_acks_on_failure": True,
        "task_acks_on_timeout": True,
        # Longer than the longest task, so that no message is delivered again while it is being worked on. Messages of
        # dead workers are looked for often: the defaults take this timeout plus 100 s.
        "task_time_limit": limit_s,
        "task_soft_time_limit": max(1, limit_s - 15),
        "broker_transport_options": {
            "visibility_timeout": limit_s + 60,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "global_keyprefix": f"{settings.key_prefix}:celery:",
        },
        # A broker that is away is waited for, for ever; one that was demoted is reconnected to.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_pool_acquire_timeout": 10,
        "task_publish_retry_policy": {
            "max_retries": 3,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 1,
        },
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_soft_shutdown_timeout": 10,
        # A spawned child imports torch before it says that it is alive.
        "worker_proc_alive_timeout": 90,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def _guard_restored_channels() -> None:
    """Make kombu report a lost connection as one.

    When the broker goes away while a message is unacknowledged, kombu builds a client from a connection that is
    already gone and dies of AttributeError, and the worker exits. Told that the connection is lost, it reconnects.
    Source: kombu 5.7.0, kombu/transport/redis.py (Channel._create_client) and celery 5.7.0,
    celery/worker/consumer/consumer.py (on_connection_error_after_connected).
    """
    channel_class: Any = kombu_redis.Channel
    original = channel_class._create_client
    if getattr(original, "guarded", False):
        return

    def create_client(channel: Any, *args: Any, **kwargs: Any) -> Any:
        if channel.connection is None or channel.connection.client is None:
            raise RedisConnectionError("the connection to the broker is gone")
        return original(channel, *args, **kwargs)

    create_client.guarded = True  # type: ignore[attr-defined]
    channel_class._create_client = create_client
