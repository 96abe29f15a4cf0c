"""The bare pipeline: four Celery tasks that do nothing but enqueue the next; and one of its worker processes.

python -m tests.benchmarks.bare_pipeline URL QUEUE
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise

from celery import Celery
from kombu import Queue

from lora_registry.connection import connect
from lora_registry.settings import load_settings
from lora_workers.celery_app import make_app
from lora_workers.worker import _run

QUEUES = ("bare-1", "bare-2", "bare-3", "bare-4")
CHANNEL = "bare-done"


def make_bare_app(url: str) -> Celery:
    """Its Celery app: the project's own settings, with other queues and tasks."""
    app = make_app(load_settings(redis_url=url, key_prefix="{bare}"))
    app.conf.update(task_queues=[Queue(queue) for queue in QUEUES], task_default_queue=QUEUES[0])
    for queue, following in pairwise(QUEUES):
        app.task(_enqueue(app, following), name=queue)
    app.task(_announce(url), name=QUEUES[-1])
    return app


def send(app: Celery, items: list[str]) -> None:
    """Start the pipeline once for each item."""
    with app.producer_pool.acquire(block=True) as producer:
        for item in items:
            app.send_task(QUEUES[0], args=[item], queue=QUEUES[0], producer=producer)


def _enqueue(app: Celery, queue: str) -> Callable[[str], None]:
    def enqueue(item: str) -> None:
        with app.producer_pool.acquire(block=True) as producer:
            app.send_task(queue, args=[item], queue=queue, producer=producer)

    return enqueue


def _announce(url: str) -> Callable[[str], None]:
    client = cache(connect)  # opened in the child process, by its first task

    def announce(item: str) -> None:
        client(url).publish(CHANNEL, item)

    return announce


if __name__ == "__main__":
    # Started just as the project's own workers are: same pool, same arguments.
    sys.exit(_run(make_bare_app(sys.argv[1]), [sys.argv[2]], 1))  # type: ignore[list-item]
