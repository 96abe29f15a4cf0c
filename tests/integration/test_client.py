"""What a publisher sees: submit, status and wait, on a real server."""

from __future__ import annotations

import threading

import pytest

from lora_registry import client as module
from lora_registry.client import RegistrationClient
from lora_registry.connection import connect
from lora_registry.errors import (
    Configuration,
    NotFound,
    RedisUnavailable,
    Rejected,
    ServerNotAdmitted,
    WaitTimeout,
)
from lora_registry.registrations import Outcome
from lora_registry.stages import ALWAYS
from tests.helpers.registry import BASE, Registry
from tests.helpers.waiting import wait_until

EVENT = {"name": "support-bot", "base_model": BASE, "source": "/one"}


def client_of(registry: Registry) -> RegistrationClient:
    """A publisher's client of the registry."""
    return RegistrationClient(registry.client, registry.settings)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Support-Bot"),
        ("name", "image"),
        ("name", "v3"),
        ("name", "../evil"),
        ("namespace", "a.b"),
        ("base_model", "../x y"),
        ("source", ""),
        ("labels", {"k": "v" * 257}),
        ("labels", {f"k{number}": "" for number in range(33)}),
    ],
)
def test_illegal_request_is_refused_at_once_and_not_queued(registry: Registry, field: str, value: object) -> None:
    """The publisher learns of a bad field from `submit` itself, with the field's name or the rule."""
    with pytest.raises(Rejected) as rejected:
        client_of(registry).submit(**(EVENT | {field: value}))
    assert rejected.value.message
    assert registry.inbox.waiting() == 0


def test_wait_is_woken_by_the_outcome(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting publisher hears of the outcome by its ring, not by asking again and again."""
    monkeypatch.setattr(module, "_RECHECK_S", 3600.0)
    client = client_of(registry)
    registration = client.submit(**EVENT)
    channel = registry.keys.outcome_channel(registration)

    def publish() -> None:
        wait_until(lambda: registry.client.pubsub_numsub(channel)[0][1], what="the waiting publisher")
        registry.publish_in_order([registration])

    thread = threading.Thread(target=publish)
    thread.start()
    ended = client.wait(registration, timeout_s=60)
    thread.join()
    assert (ended.outcome, ended.served_name) == (Outcome.PUBLISHED, "support-bot.v1")
    assert ended.timings_ms.keys() == set(ALWAYS)


def test_wait_gives_up_after_its_timeout_and_the_registration_goes_on(registry: Registry) -> None:
    """A timeout says how far it came; it ends nothing."""
    registration = registry.submit()
    with pytest.raises(WaitTimeout, match="received"):
        client_of(registry).wait(registration, timeout_s=0.05)
    assert registry.publish_in_order([registration])[0].outcome is Outcome.PUBLISHED


def test_unknown_registration_is_not_found(registry: Registry) -> None:
    """Neither `status` nor `wait` invents a registration."""
    with pytest.raises(NotFound):
        client_of(registry).status("reg_nothing")
    with pytest.raises(NotFound):
        client_of(registry).wait("reg_nothing", timeout_s=60)


def test_submit_waits_for_the_dispatcher_to_admit_the_server(registry: Registry) -> None:
    """Right after a restart of the server `submit` is answered as soon as a dispatcher has admitted it."""
    registry.forget_server()
    thread = threading.Timer(0.1, registry.admit)
    thread.start()
    registration = client_of(registry).submit(**EVENT)
    thread.join()
    assert client_of(registry).status(registration).state == "received"


def test_submit_says_so_when_no_dispatcher_admits_the_server(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a dispatcher the publisher is told what is missing."""
    monkeypatch.setattr(module, "_ADMISSION_WAIT_S", 0.1)
    registry.forget_server()
    with pytest.raises(ServerNotAdmitted):
        client_of(registry).submit(**EVENT)
    registry.admit()


def test_server_that_is_not_there_is_redis_unavailable(registry: Registry) -> None:
    """A connection that cannot be made is an error of ours, with a remedy, and not a stack of redis-py's."""
    gone = RegistrationClient(connect("unix:///nowhere/valkey.sock", retries=0), registry.settings)
    with pytest.raises(RedisUnavailable) as away:
        gone.submit(**EVENT)
    assert "LORA_REGISTRY_REDIS_URL" in away.value.remedy


def test_url_that_is_none_is_a_configuration_error() -> None:
    """A mistyped URL fails at the start, and the message names the setting."""
    with pytest.raises(Configuration, match="REDIS_URL"):
        RegistrationClient.from_url("http://127.0.0.1")
