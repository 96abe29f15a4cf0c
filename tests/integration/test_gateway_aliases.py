"""Aliases over HTTP and a real server: compare-and-swap, who may, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_registry.lifecycle import Lifecycle
from lora_registry.names import AdapterName
from lora_registry.tokens import Scope, Tokens
from tests.helpers.adapters import make_base
from tests.helpers.gateway import running_gateway
from tests.helpers.registry import BASE, Registry

ADAPTER = AdapterName("team", "support-bot")
ALIASES = "/v1/adapters/team/support-bot/aliases"
STABLE = f"{ALIASES}/stable"


@pytest.fixture
def filled(registry: Registry) -> Registry:
    """An adapter with three versions."""
    registry.catalog.bases.add(make_base(name=BASE))
    for content in ("one", "two", "three"):
        registry.register("support-bot", namespace="team", content=content)
    return registry


@pytest.fixture
def gateway(filled: Registry) -> Iterator[httpx.Client]:
    """A gateway on loopback, without tokens."""
    with running_gateway(filled.settings) as client:
        yield client


def target(registry: Registry, alias: str = "stable") -> int | None:
    """The version that an alias points at."""
    found = registry.catalog.aliases(ADAPTER).get(alias)
    return found.version if found else None


def code_of(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a problem."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


def test_an_alias_is_made_moved_shown_and_removed(filled: Registry, gateway: httpx.Client) -> None:
    """Each step answers with what is so now, and the history says who moved it."""
    made = gateway.put(STABLE, json={"version": 1, "expect": 0})
    assert made.status_code == 200
    assert (made.json()["alias"], made.json()["version"]["served_name"]) == (
        "team.support-bot@stable",
        "team.support-bot.v1",
    )
    assert gateway.put(STABLE, json={"version": 2, "expect": 1}).json()["version"]["version"] == 2
    shown = gateway.get(STABLE).json()
    assert (shown["version"], shown["mode"]) == (2, "pinned")
    moves = [(each["before"], each["after"], each["how"], each["by"]) for each in shown["history"]]
    assert moves == [(1, 2, "set", "gateway"), (None, 1, "set", "gateway")]
    removed = gateway.delete(STABLE, params={"expect": 2})
    assert removed.json() == {"alias": "team.support-bot@stable", "before": 2}
    assert target(filled) is None
    assert code_of(gateway.get(STABLE)) == (404, "NOT_FOUND")


def test_the_adapters_own_alias_is_pinned_and_follows_again(filled: Registry, gateway: httpx.Client) -> None:
    """Back to an earlier version, and with null on to the newest; no other alias follows, and it is not removed."""
    own = f"{ALIASES}/support-bot"
    assert gateway.put(own, json={"version": 1}).status_code == 200
    assert gateway.get(own).json()["mode"] == "pinned"
    assert gateway.put(own, json={"version": None}).json()["version"]["version"] == 3
    assert gateway.get(own).json()["mode"] == "follow"
    assert code_of(gateway.put(STABLE, json={"version": None})) == (422, "REJECTED")
    assert code_of(gateway.delete(own)) == (422, "REJECTED")
    assert target(filled, "support-bot") == 3


def test_what_is_not_expected_is_a_conflict_that_says_what_is(filled: Registry, gateway: httpx.Client) -> None:
    """409 with the version that the alias points at, 0 for none; nothing is moved or removed."""
    answer = gateway.put(STABLE, json={"version": 1, "expect": 2})
    assert (*code_of(answer), answer.json()["current_version"]) == (409, "CONFLICT", 0)
    gateway.put(STABLE, json={"version": 1})
    for refused in (
        gateway.put(STABLE, json={"version": 2, "expect": 0}),
        gateway.put(STABLE, json={"version": 2, "expect": 3}),
        gateway.delete(STABLE, params={"expect": 2}),
    ):
        assert (*code_of(refused), refused.json()["current_version"]) == (409, "CONFLICT", 1)
    assert target(filled) == 1
    assert "current_version" not in gateway.get(f"{ALIASES}/none").json()


def test_of_many_who_expect_the_same_one_wins(filled: Registry, gateway: httpx.Client) -> None:
    """Round after round, whatever the timing: one 200, all others 409, and the alias is where the winner put it."""
    gateway.put(STABLE, json={"version": 1, "expect": 0})
    now = 1
    with ThreadPoolExecutor(8) as writers:
        for _ in range(25):
            others = [version for version in (1, 2, 3) if version != now]
            wanted = [{"version": others[number % 2], "expect": now} for number in range(8)]
            answers = list(writers.map(lambda body: gateway.put(STABLE, json=body), wanted))
            winners = [each.json()["version"]["version"] for each in answers if each.status_code == 200]
            assert len(winners) == 1, [each.text for each in answers]
            losers = [each for each in answers if each.status_code != 200]
            assert {(*code_of(each), each.json()["current_version"]) for each in losers} == {
                (409, "CONFLICT", winners[0])
            }
            now = winners[0]
            assert target(filled) == now
    assert len(Lifecycle(filled.client, filled.settings).history(ADAPTER, "stable")) == 26


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/adapters/team/nobody/aliases/stable", {"version": 1}, (404, "NOT_FOUND")),
        (STABLE, {"version": 9}, (404, "NOT_FOUND")),
        (f"{ALIASES}/v3", {"version": 1}, (422, "NAME_INVALID")),
        (f"{ALIASES}/Not%20One", {"version": 1}, (422, "NAME_INVALID")),
        ("/v1/adapters/team/Support/aliases/stable", {"version": 1}, (422, "NAME_INVALID")),
        (STABLE, {}, (422, "REQUEST_INVALID")),
        (STABLE, {"version": 0}, (422, "REQUEST_INVALID")),
        (STABLE, {"version": "latest"}, (422, "REQUEST_INVALID")),
        (STABLE, {"version": 1, "expected": 2}, (422, "REQUEST_INVALID")),
    ],
)
def test_what_is_wrong_is_said_and_moves_nothing(
    filled: Registry, gateway: httpx.Client, path: str, body: dict[str, Any], expected: tuple[int, str]
) -> None:
    """Unknown adapters and versions are 404, illegal names and bodies 422; a misspelt `expect` is not ignored."""
    assert code_of(gateway.put(path, json=body)) == expected
    assert filled.catalog.aliases(ADAPTER).keys() == {"support-bot"}


def test_a_body_that_is_too_long_or_no_json_is_refused(filled: Registry, gateway: httpx.Client) -> None:
    """As with events."""
    assert code_of(gateway.put(STABLE, content=b"{}")) == (415, "UNSUPPORTED_MEDIA_TYPE")
    long = b" " * (filled.settings.gateway_max_body_bytes + 1)
    headers = {"Content-Type": "application/json"}
    assert code_of(gateway.put(STABLE, content=long, headers=headers)) == (413, "BODY_TOO_LARGE")


def test_only_an_admin_of_the_namespace_moves_aliases(filled: Registry) -> None:
    """Publishers and readers may not, nor an admin of another namespace; the history names the token."""
    made = {}
    for scope, namespace in (
        (Scope.PUBLISH, "team"),
        (Scope.READ, "team"),
        (Scope.ADMIN, "other"),
        (Scope.ADMIN, "team"),
    ):
        secret, token = Tokens(filled.client, filled.settings).create(scopes=[scope], namespaces=[namespace])
        made[scope, namespace] = secret.get_secret_value(), token.id
    admin, admin_id = made.pop((Scope.ADMIN, "team"))
    for secret, _ in made.values():
        with running_gateway(filled.settings, token=secret) as client:
            assert code_of(client.put(STABLE, json={"version": 1})) == (403, "FORBIDDEN")
            assert code_of(client.delete(STABLE)) == (403, "FORBIDDEN")
    assert target(filled) is None
    with running_gateway(filled.settings, token=admin) as client:
        assert client.put(STABLE, json={"version": 1}).status_code == 200
        assert client.get(STABLE).json()["history"][0]["by"] == f"token {admin_id}"
        assert client.delete(STABLE).status_code == 200
    with running_gateway(filled.settings) as client:
        assert code_of(client.put(STABLE, json={"version": 1})) == (401, "UNAUTHENTICATED")


def test_without_redis_or_before_it_is_admitted_nothing_moves(filled: Registry, tmp_path: Path) -> None:
    """503 with a pause, whether all of Redis is away or only the user who moves aliases has no way to it."""
    away = filled.settings.model_copy(update={"alias_redis_url": f"unix://{tmp_path}/nobody.sock"})
    with running_gateway(away) as client:
        for answer in (client.put(STABLE, json={"version": 1}), client.delete(STABLE)):
            assert code_of(answer) == (503, "REDIS_UNAVAILABLE")
            assert "retry-after" in answer.headers
        assert client.get("/v1/adapters/team/support-bot").status_code == 200
    filled.forget_server()
    with running_gateway(filled.settings) as client:
        assert code_of(client.put(STABLE, json={"version": 1})) == (503, "SERVER_NOT_ADMITTED")
    filled.admit()
    assert target(filled) is None
