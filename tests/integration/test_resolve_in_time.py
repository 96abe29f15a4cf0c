from __future__ import annotations

import threading
from typing import Any

import pytest
from redis.connection import AbstractConnection

from lora_registry.errors import SourceTooSlow
from lora_workers.celery_app import make_app
from lora_workers.tasks import Station
from tests.helpers.registry import Registry


def test_an_answer_that_was_not_waited_for_is_no_later_commands(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarm may ring between a command and its answer; whoever asks next must not be given that one."""
    settings = registry.settings.model_copy(update={"resolve_time_limit_s": 0.05})
    station = Station(make_app(settings), settings)
    client, lease = station._client, object()
    client.ping()

    def ask(_lease: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(AbstractConnection, "read_response", lambda *_, **__: threading.Event().wait())
            client.blpop([f"{settings.key_prefix}:nothing"], timeout=0.2)

    with pytest.raises(SourceTooSlow):
        station._resolve_in_time(ask)(lease)  # type: ignore[arg-type]
    assert client.echo("mine") == "mine"
    client.close()
