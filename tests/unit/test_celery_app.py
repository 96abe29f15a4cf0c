"""The Celery app: JSON, late acknowledgement, a queue for each stage, and messages that hold a stage's name only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery
import pytest
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError

from lora_registry.settings import Settings
from lora_registry.stages import ORDER, Stage
from lora_workers.celery_app import PROMOTIONS_TASK, make_app, send_wake_ups, task_name, wake_for_promotions
from lora_workers.tasks import Station, register_tasks

SETTINGS = Settings(broker_url="memory://", stage_time_limit_s=100)
"""A broker in this process's memory: no socket is opened."""


class CountingStation(Station):
    """A station that notes what it was to work on."""

    def __init__(self) -> None:
        self.ran: list[Stage] = []

    def run(self, stage: Stage) -> int:
        """Note it."""
        self.ran.append(stage)
        return 3

    def settle_promotions(self) -> int:
        """Say how many."""
        return 7


def messages(app: Any, stage: Stage) -> list[Any]:
    """The messages that wait in a stage's queue, taken off it."""
    with app.connection_for_read() as connection:
        queue = next(queue for queue in app.conf.task_queues if queue.name == stage.value)(connection.default_channel)
        taken = []
        while (message := queue.get(no_ack=True)) is not None:
            taken.append(message)
        return taken


def test_a_message_holds_the_name_of_the_stage_and_nothing_else() -> None:
    """No arguments, no registration: what is to be done is in the ledger, so a message can be lost or doubled."""
    app = make_app(SETTINGS)
    send_wake_ups(app, Stage.RESOLVE, 1)
    (message,) = messages(app, Stage.RESOLVE)
    arguments, keywords, embedded = json.loads(message.body)
    assert (arguments, keywords) == ([], {})
    assert not any(embedded.values())
    assert message.headers["task"] == task_name(Stage.RESOLVE) == "lora_registry.resolve"
    assert message.content_type == "application/json"
    assert not any(message.headers.get(name) for name in ("group", "chord", "stamps", "eta", "expires"))


def test_those_that_publish_are_woken_for_promotions() -> None:
    """One message of no content in their queue, for a task that every worker knows."""
    app = make_app(SETTINGS)
    wake_for_promotions(app)
    (message,) = messages(app, Stage.PUBLISH)
    assert json.loads(message.body)[:2] == [[], {}]
    register_tasks(app, CountingStation())
    assert message.headers["task"] == PROMOTIONS_TASK
    assert app.tasks[PROMOTIONS_TASK]() == 7


@pytest.mark.parametrize("stage", ORDER)
def test_wake_ups_go_to_the_queue_of_their_stage_and_to_no_other(stage: Stage) -> None:
    """Each stage has its own queue, with its own routing key, so a flood in one delays no other."""
    app = make_app(SETTINGS)
    send_wake_ups(app, stage, 3)
    assert {each: len(messages(app, each)) for each in ORDER} == {each: 3 * (each is stage) for each in ORDER}


def test_queues_are_those_of_the_stages() -> None:
    """One for each, bound by its own routing key, and a typo makes no other."""
    app = make_app(SETTINGS)
    assert [(queue.name, queue.routing_key) for queue in app.conf.task_queues] == [(each, each) for each in ORDER]
    assert len({queue.exchange.name for queue in app.conf.task_queues}) == 1
    assert app.conf.task_create_missing_queues is False


def test_only_json_is_written_and_read() -> None:
    """A pickle in the queue is not even looked at."""
    conf = make_app(SETTINGS).conf
    assert (conf.task_serializer, conf.accept_content) == ("json", ["json"])


def test_messages_are_acknowledged_late_one_at_a_time_and_without_results() -> None:
    """What a worker has not begun waits in the queue for whoever is free; the ledger has the state."""
    conf = make_app(SETTINGS).conf
    assert (conf.task_acks_late, conf.worker_prefetch_multiplier, conf.task_ignore_result) == (True, 1, True)
    assert conf.result_backend is None


def test_a_message_that_killed_its_worker_is_not_sent_again() -> None:
    """The lease brings the work back, a bounded number of times; the message would do so for ever."""
    conf = make_app(SETTINGS).conf
    assert (conf.task_reject_on_worker_lost, conf.task_acks_on_failure_or_timeout) == (False, True)
    assert (conf.task_acks_on_failure, conf.task_acks_on_timeout) == (True, True)


def test_no_message_is_delivered_again_while_it_is_worked_on() -> None:
    """The broker waits longer than the longest task may run, and a task is warned before it is killed."""
    conf = make_app(SETTINGS).conf
    assert conf.task_time_limit == 100
    assert 0 < conf.task_soft_time_limit < conf.task_time_limit
    assert conf.broker_transport_options["visibility_timeout"] > conf.task_time_limit
    tight = make_app(SETTINGS.model_copy(update={"stage_time_limit_s": 2.0})).conf
    assert 0 < tight.task_soft_time_limit < tight.task_time_limit


def test_all_of_celerys_keys_lie_in_their_own_part() -> None:
    """Under the registry's prefix, where the Redis users may write for Celery."""
    app = make_app(SETTINGS.model_copy(update={"key_prefix": "{other}"}))
    assert app.conf.broker_transport_options["global_keyprefix"] == "{other}:celery:"


def test_broker_is_the_registrys_unless_another_is_named() -> None:
    """A unix socket is written as Celery reads it, with user and password."""
    app = make_app(Settings(redis_url="unix://worker:password@/run/valkey.sock"))
    assert app.conf.broker_url == "redis+socket://worker:password@/run/valkey.sock"


def test_app_is_nobodys_current_app() -> None:
    """A program that imports this package keeps its own Celery."""
    app = make_app(SETTINGS)
    assert celery._state.default_app is not app
    assert celery.current_app._get_current_object() is not app


def test_each_stage_has_a_task_that_does_that_stages_work() -> None:
    """The task is a plain function around the station, called as such here."""
    app, station = make_app(SETTINGS), CountingStation()
    register_tasks(app, station)
    for stage in Stage:
        assert app.tasks[task_name(stage)]() == 3
    assert station.ran == list(Stage)


def test_a_worker_removes_what_killed_ones_left_in_staging(tmp_path: Path) -> None:
    """When it opens the store, before its first work, yesterday's half-made artifacts go."""
    stale = tmp_path / "artifacts" / "staging" / "stale"
    stale.mkdir(parents=True)
    os.utime(stale, (0, 0))
    settings = SETTINGS.model_copy(update={"artifact_store": str(tmp_path / "artifacts")})
    assert set(Station(make_app(settings), settings)._perform) == set(Stage)
    assert not stale.exists()


@pytest.mark.parametrize("connection", [None, SimpleNamespace(client=None)], ids=["no connection", "no client"])
def test_a_channel_whose_connection_is_gone_says_so(connection: Any) -> None:
    """kombu would die of AttributeError, and with it the worker; a lost connection is reconnected."""
    make_app(SETTINGS)
    channel: Any = SimpleNamespace(connection=connection)
    with pytest.raises(RedisConnectionError, match="gone"):
        kombu_redis.Channel._create_client(channel)


def test_a_channel_with_a_connection_makes_its_client_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard stands before kombu's own method, once however many apps are made, and passes everything on."""

    def create_client(channel: Any, asynchronous: bool = False) -> tuple[Any, bool]:
        return channel, asynchronous

    monkeypatch.setattr(kombu_redis.Channel, "_create_client", create_client)
    make_app(SETTINGS)
    guard = kombu_redis.Channel._create_client
    make_app(SETTINGS)
    assert kombu_redis.Channel._create_client is guard is not create_client
    channel: Any = SimpleNamespace(connection=SimpleNamespace(client=object()))
    assert guard(channel, asynchronous=True) == (channel, True)
