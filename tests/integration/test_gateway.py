"""The gateway over real HTTP and a real server: what it takes in, what it refuses and how, and what it shows."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lora_registry.base_profile import BaseProfile
from lora_registry.names import AdapterName
from lora_registry.namespaces import NamespacePolicy, Quotas, SourceRule
from lora_registry.policies import Policies
from lora_registry.registrations import Outcome
from lora_registry.stages import ALWAYS, Stage
from lora_registry.tokens import Scope, Tokens
from lora_workers.gateway import following
from tests.helpers.adapters import make_base
from tests.helpers.gateway import REGISTRATIONS, event, running_gateway
from tests.helpers.registry import BASE, Registry, make_event
from tests.helpers.waiting import wait_until


@pytest.fixture
def gateway(registry: Registry) -> Iterator[httpx.Client]:
    """A client of a gateway on loopback, without tokens."""
    with running_gateway(registry.settings) as client:
        yield client


def problem_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that an answer is."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:lora-registry:problem:{code.lower().replace('_', '-')}"
    assert problem["detail"]
    assert problem["remedy"]
    return problem


def test_an_event_is_queued_when_the_answer_comes(registry: Registry, gateway: httpx.Client) -> None:
    """202 has the id and where to ask; the event is in the queue and carries what was sent."""
    answer = gateway.post(REGISTRATIONS, json=event(labels={"team": "a"}))
    assert answer.status_code == 202
    registration_id = answer.json()["id"]
    assert answer.headers["location"] == f"{REGISTRATIONS}/{registration_id}"
    assert registry.inbox.waiting() == 1
    registry.dispatch()
    assert registry.ledger.get(registration_id).labels == {"team": "a"}


def test_a_repeated_key_answers_with_the_same_registration(registry: Registry, gateway: httpx.Client) -> None:
    """202 and then 200, one event; another body under the key is 409, and the same key in another namespace is free."""
    headers = {"Idempotency-Key": "run-1"}
    first = gateway.post(REGISTRATIONS, json=event(), headers=headers)
    again = gateway.post(REGISTRATIONS, json=event(), headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == {"id": first.json()["id"], "created": False}
    assert again.headers["location"] == first.headers["location"]
    problem_of(gateway.post(REGISTRATIONS, json=event("other"), headers=headers), 409, "IDEMPOTENCY_CONFLICT")
    assert registry.inbox.waiting() == 1
    assert gateway.post(REGISTRATIONS, json=event(namespace="team"), headers=headers).status_code == 202


@pytest.mark.parametrize(
    ("body", "subject"),
    [
        ({"name": "a", "base_model": BASE}, "source"),
        (event(labels={"k": 1}), "labels.k"),
        (event(follow="sometimes"), "follow"),
        (event(schema_version=2), "schema_version"),
        ([], "body"),
        ("text", "body"),
    ],
)
def test_illegal_fields_are_named_each(gateway: httpx.Client, registry: Registry, body: object, subject: str) -> None:
    """422 has a finding for each field, as a rejection has; nothing is queued."""
    problem = problem_of(gateway.post(REGISTRATIONS, json=body), 422, "REQUEST_INVALID")
    (finding,) = problem["findings"]
    assert (finding["code"], finding["subject"]) == ("FIELD_INVALID", subject)
    assert finding["message"]
    assert finding["remedy"]
    assert registry.inbox.waiting() == 0


def test_an_illegal_name_is_a_finding_too(gateway: httpx.Client) -> None:
    """What only our own rules know is answered in the same form."""
    problem = problem_of(gateway.post(REGISTRATIONS, json=event("v12")), 422, "NAME_INVALID")
    assert [each["code"] for each in problem["findings"]] == ["NAME_INVALID"]


def test_what_was_sent_is_not_repeated(gateway: httpx.Client) -> None:
    """A secret in the wrong field does not come back in the answer, where it would be logged."""
    answer = gateway.post(REGISTRATIONS, json=event(labels={"ok": ["hunter2"]}, metadata={"hunter2 ": "x"}))
    assert answer.status_code == 422
    assert "hunter2" not in answer.json()["detail"]


def test_broken_json_is_422_and_other_types_are_415(gateway: httpx.Client) -> None:
    """The type is looked at before the body."""
    headers = {"Content-Type": "application/json"}
    problem_of(gateway.post(REGISTRATIONS, content=b'{"name": ', headers=headers), 422, "REQUEST_INVALID")
    problem_of(gateway.post(REGISTRATIONS, content=b"\xff\xfe", headers=headers), 422, "REQUEST_INVALID")
    for kind in ("text/plain", "application/xml", "multipart/form-data", ""):
        answer = gateway.post(REGISTRATIONS, content=b"{}", headers={"Content-Type": kind})
        problem_of(answer, 415, "UNSUPPORTED_MEDIA_TYPE")
    with_charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert gateway.post(REGISTRATIONS, content=httpx.Request("POST", "/", json=event()).content, headers=with_charset)


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_an_oversized_body_is_refused_before_it_is_parsed(registry: Registry, chunked: bool) -> None:
    """413, whether its length is announced or not; one that just fits passes."""
    with running_gateway(registry.settings.model_copy(update={"gateway_max_body_bytes": 1000})) as client:

        def send(size: int) -> httpx.Response:
            whole = httpx.Request("POST", "/", json=event()).content.ljust(size)
            content = (whole[at : at + 100] for at in range(0, size, 100)) if chunked else whole
            return client.post(REGISTRATIONS, content=content, headers={"Content-Type": "application/json"})

        problem_of(send(1001), 413, "BODY_TOO_LARGE")
        assert send(1000).status_code == 202
    assert registry.inbox.waiting() == 1


def test_an_announced_body_is_refused_unread(registry: Registry) -> None:
    """A length beyond the cap is answered at once: nobody has to send a gigabyte to be told."""
    with running_gateway(registry.settings) as client:
        host, port = client.base_url.host, client.base_url.port or 0
        with socket.create_connection((host, port), timeout=10) as raw:
            head = f"POST {REGISTRATIONS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: 999999999999\r\n\r\n".encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("key", ["", "with space", "x" * 256, "hook:0123:1:4567"])
def test_an_illegal_idempotency_key_is_refused(gateway: httpx.Client, key: str) -> None:
    """A key that is cut or changed on the way would let two requests be one, as would one like those of hooks."""
    answer = gateway.post(REGISTRATIONS, json=event(), headers={"Idempotency-Key": key})
    if key == "tab\t":  # the wire takes blanks at the end away
        return
    problem = problem_of(answer, 422, "REQUEST_INVALID")
    assert problem["findings"][0]["subject"] == "header.Idempotency-Key"
    return


def test_while_the_server_is_not_admitted_nothing_is_accepted(registry: Registry, gateway: httpx.Client) -> None:
    """503 says when to come again; readiness says it too, and liveness does not."""
    registry.forget_server()
    answer = gateway.post(REGISTRATIONS, json=event())
    problem_of(answer, 503, "SERVER_NOT_ADMITTED")
    assert int(answer.headers["retry-after"]) > 0
    problem_of(gateway.get("/readyz"), 503, "SERVER_NOT_ADMITTED")
    assert gateway.get("/healthz").json() == {"status": "ok"}
    registry.admit()
    assert gateway.get("/readyz").json() == {"status": "ok"}
    assert gateway.post(REGISTRATIONS, json=event()).status_code == 202


def test_a_full_queue_is_503(registry: Registry) -> None:
    """The queue's bound reaches the sender as a reason to wait."""
    with running_gateway(registry.settings.model_copy(update={"max_queued_events": 1})) as client:
        assert client.post(REGISTRATIONS, json=event()).status_code == 202
        answer = client.post(REGISTRATIONS, json=event())
    problem_of(answer, 503, "QUEUE_FULL")
    assert "retry-after" in answer.headers


def test_events_that_come_together_are_each_answered(registry: Registry, gateway: httpx.Client) -> None:
    """Fifty at once, a conflict and an illegal one among them: none gets another's answer, and each is queued once."""
    gateway.post(REGISTRATIONS, json=event("taken"), headers={"Idempotency-Key": "taken"})
    answers: dict[int, httpx.Response] = {}

    def send(number: int) -> None:
        if number == 7:
            body, headers = event("other"), {"Idempotency-Key": "taken"}
        else:
            body, headers = event(f"bot-{number}"), {}
        answers[number] = gateway.post(REGISTRATIONS, json=body, headers=headers)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.pop(7).status_code == 409
    registry.dispatch()
    names = {number: registry.ledger.get(each.json()["id"]).adapter.name for number, each in answers.items()}
    assert names == {number: f"bot-{number}" for number in answers}


# Following


def test_a_registration_is_shown_from_acceptance_to_outcome(registry: Registry, gateway: httpx.Client) -> None:
    """Its state, and at the end the outcome, the served name and the findings."""
    path = gateway.post(REGISTRATIONS, json=event(source="/one")).headers["location"]
    assert gateway.get(path).json()["state"] == "received"
    registry.publish_in_order([path.rpartition("/")[2]])
    shown = gateway.get(path).json()
    assert (shown["outcome"], shown["served_name"], shown["version"]) == ("published", "support-bot.v1", 1)
    assert set(shown["timings_ms"]) == set(ALWAYS)


def test_an_unknown_registration_is_404_and_an_illegal_id_422(gateway: httpx.Client) -> None:
    """Neither is a server's error."""
    problem_of(gateway.get(f"{REGISTRATIONS}/reg_{'0' * 24}"), 404, "NOT_FOUND")
    problem_of(gateway.get(f"{REGISTRATIONS}/reg_1"), 422, "REQUEST_INVALID")
    problem_of(gateway.get(f"{REGISTRATIONS}/reg_{'0' * 24}?wait_s=61"), 422, "REQUEST_INVALID")
    problem_of(gateway.get(f"{REGISTRATIONS}/reg_{'0' * 24}?wait_s=nan"), 422, "REQUEST_INVALID")


def test_a_long_poll_is_answered_by_the_change(
    registry: Registry, gateway: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by asking again and again: with that switched off, the bells alone bring each state and the outcome."""
    monkeypatch.setattr(following, "RECHECK_S", 3600.0)
    registration_id = gateway.post(REGISTRATIONS, json=event(source="/one")).json()["id"]
    registry.dispatch()
    (lease,) = registry.claim(Stage.ALLOCATE)
    channel = registry.keys.state_channel(registration_id)
    answers: list[dict[str, Any]] = []

    def poll(**query: Any) -> threading.Thread:
        path = f"{REGISTRATIONS}/{registration_id}"
        thread = threading.Thread(target=lambda: answers.append(gateway.get(path, params=query).json()))
        thread.start()
        wait_until(lambda: registry.client.pubsub_numsub(channel)[0][1], what="the waiting poll")
        return thread

    thread = poll(wait_s=60)
    registry.complete(lease)
    thread.join(20)  # less than it would take without the bell
    assert [each["state"] for each in answers] == ["allocated"]
    answers.clear()
    wait_until(lambda: not registry.client.pubsub_numsub(channel)[0][1], what="the end of the subscription")
    path = f"{REGISTRATIONS}/{registration_id}"
    assert gateway.get(path, params={"wait_s": 30, "seen": "received"}).json()["state"] == "allocated"  # at once
    thread = poll(wait_s=30, seen="allocated")
    registry.publish_in_order([registration_id])
    thread.join()
    assert answers.pop()["state"] in ("resolved", "validated", "published")


def test_a_long_poll_ends_with_its_time(registry: Registry, gateway: httpx.Client) -> None:
    """Without a change it answers with what there is."""
    registration_id = registry.submit()
    assert gateway.get(f"{REGISTRATIONS}/{registration_id}?wait_s=0.2").json()["state"] == "received"


def test_a_stream_of_events_ends_with_the_outcome(
    registry: Registry, gateway: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change of state comes as an event, a comment where nothing happens, and the stream closes by itself."""
    monkeypatch.setattr(following, "HEARTBEAT_S", 0.05)
    registration_id = registry.submit()
    lines: list[str] = []
    with gateway.stream("GET", f"{REGISTRATIONS}/{registration_id}", headers={"Accept": "text/event-stream"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            lines.append(line)
            if line.startswith(":") and sum(each.startswith(":") for each in lines) == 2:
                registry.publish_in_order([registration_id])
    assert lines[0] == "event: state"
    assert '"state":"received"' in lines[1]
    assert lines[-3] == "event: outcome"
    assert '"served_name":"support-bot.v1"' in lines[-2]


def test_many_who_wait_share_one_connection(registry: Registry, gateway: httpx.Client) -> None:
    """Sixty waiting requests add one connection to the server for their bells, and all hear the outcome."""
    ids = [registry.submit(f"bot-{number}") for number in range(20)]
    heard: list[str] = []

    def wait(registration_id: str) -> None:
        path = f"{REGISTRATIONS}/{registration_id}"
        while not (shown := gateway.get(path, params={"wait_s": 25}).json())["outcome"]:
            pass
        heard.append(shown["outcome"])

    threads = [threading.Thread(target=wait, args=(each,)) for each in ids for _ in range(3)]
    for thread in threads:
        thread.start()
    channels = [registry.keys.outcome_channel(each) for each in ids]
    wait_until(
        lambda: sum(count for _, count in registry.client.pubsub_numsub(*channels)) == len(ids),
        what="one subscription for each registration",
    )
    listeners = [each for each in registry.client.client_list() if each["name"] == "lora-gateway-bells"]
    assert len(listeners) == 1
    registry.publish_in_order(ids)
    for thread in threads:
        thread.join()
    assert heard == [Outcome.PUBLISHED] * 60


# What is published


def fill(registry: Registry) -> None:
    """Publish a few adapters: two versions of one, one in another namespace."""
    registry.register("support-bot", content="one", labels={"team": "support"})
    registry.register("support-bot", content="two", labels={"team": "support", "tier": "1"})
    registry.register("sql-writer", content="three", labels={"team": "data"})
    registry.register("sql-writer", content="four", namespace="team", labels={"team": "data"})


def names_of(answer: httpx.Response) -> list[str]:
    """Qualified names on a page."""
    return [f"{each['namespace']}.{each['name']}" for each in answer.json()["adapters"]]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["default.sql-writer", "default.support-bot", "team.sql-writer"]),
        ("?namespace=team", ["team.sql-writer"]),
        ("?base=tiny-llama&label=team=data", ["default.sql-writer", "team.sql-writer"]),
        ("?label=team=support&label=tier=1", ["default.support-bot"]),
        ("?label=team=support&label=tier=2", []),
        ("?base=other", []),
        ("?namespace=nobody", []),
    ],
)
def test_adapters_are_listed_and_filtered(
    registry: Registry, gateway: httpx.Client, query: str, names: list[str]
) -> None:
    """In the order of their names, by what their current version says of itself."""
    fill(registry)
    answer = gateway.get(f"/v1/adapters{query}")
    assert names_of(answer) == names
    assert answer.json()["next_cursor"] is None


def test_pages_hold_each_adapter_once(registry: Registry, gateway: httpx.Client) -> None:
    """Whoever follows the cursor sees all adapters in order, also those that came behind it meanwhile."""
    fill(registry)
    first = gateway.get("/v1/adapters?limit=2")
    registry.register("zebra", content="five")
    registry.register("aardvark", content="six")
    seen, cursor = names_of(first), first.json()["next_cursor"]
    while cursor:
        page = gateway.get("/v1/adapters", params={"limit": 2, "cursor": cursor})
        seen, cursor = seen + names_of(page), page.json()["next_cursor"]
    assert seen == ["default.sql-writer", "default.support-bot", "default.zebra", "team.sql-writer"]
    for wrong in ("%20", "e", "ü", "__8"):
        problem_of(gateway.get(f"/v1/adapters?cursor={wrong}"), 422, "REQUEST_INVALID")


def test_an_adapter_and_its_versions_are_shown(registry: Registry, gateway: httpx.Client) -> None:
    """Aliases, numbers, and the record of each version; what there is not is 404."""
    fill(registry)
    registry.catalog.move_alias(AdapterName("default", "support-bot"), "stable", 1)
    shown = gateway.get("/v1/adapters/default/support-bot").json()
    assert shown["versions"] == [1, 2]
    assert shown["aliases"] == {
        "stable": {"version": 1, "mode": "pinned"},
        "support-bot": {"version": 2, "mode": "follow"},
    }
    assert shown["current"]["served_name"] == "support-bot.v2"
    assert gateway.get("/v1/adapters/default/support-bot/versions/1").json()["lora_int_id"] == 1
    for path in ("default/nobody", "default/support-bot/versions/9", "team/support-bot"):
        problem_of(gateway.get(f"/v1/adapters/{path}"), 404, "NOT_FOUND")
    problem_of(gateway.get("/v1/adapters/Not A/name"), 422, "NAME_INVALID")


def test_base_models_are_listed_and_shown(registry: Registry, gateway: httpx.Client) -> None:
    """A name with slashes is a path; the profile is whole."""
    profile = make_base(name="acme/tiny-llama")
    registry.catalog.bases.add(profile)
    assert [each["name"] for each in gateway.get("/v1/bases").json()["bases"]] == ["acme/tiny-llama"]
    assert BaseProfile.model_validate_json(gateway.get("/v1/bases/acme/tiny-llama").text) == profile
    problem_of(gateway.get("/v1/bases/acme/other"), 404, "NOT_FOUND")


def test_paths_and_methods_that_there_are_not(gateway: httpx.Client) -> None:
    """Even what FastAPI itself refuses comes in our form; 405 says what is allowed."""
    problem_of(gateway.get("/v1/nothing"), 404, "NOT_FOUND")
    answer = gateway.delete("/v1/adapters")
    problem_of(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "GET"


# Who may do what


def make_token(registry: Registry, *scopes: Scope, namespaces: tuple[str, ...] = ("team",)) -> str:
    """A token of the registry."""
    return Tokens(registry.client, registry.settings).create(scopes=scopes, namespaces=namespaces)[0].get_secret_value()


def test_without_a_known_token_nobody_is_let_in(registry: Registry) -> None:
    """401 says what is wanted; what probes ask for stays open."""
    make_token(registry, Scope.ADMIN)
    with running_gateway(registry.settings) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic abc"}, {"Authorization": "x"}):
            for answer in (
                client.post(REGISTRATIONS, json=event(), headers=headers),
                client.get("/v1/adapters", headers=headers),
                client.get(f"{REGISTRATIONS}/reg_{'0' * 24}", headers=headers),
                client.get("/v1/bases", headers=headers),
            ):
                problem_of(answer, 401, "UNAUTHENTICATED")
                assert answer.headers["www-authenticate"].startswith("Bearer")
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
    assert registry.inbox.waiting() == 0


def test_beyond_loopback_no_token_means_nobody(registry: Registry) -> None:
    """Should the last token be revoked while the gateway runs, it closes instead of opening."""
    with running_gateway(registry.settings, on_loopback=False) as client:
        problem_of(client.post(REGISTRATIONS, json=event()), 401, "UNAUTHENTICATED")


def test_without_tokens_only_the_machine_itself_is_answered(gateway: httpx.Client) -> None:
    """A web page that reaches loopback under its own name (DNS rebinding) is refused."""
    for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", ""):
        problem_of(gateway.post(REGISTRATIONS, json=event(), headers={"Host": host}), 403, "FORBIDDEN")
    for host in ("localhost:8080", "127.0.0.1", "[::1]:8080"):
        assert gateway.post(REGISTRATIONS, json=event(), headers={"Host": host}).status_code == 202


def test_scopes_and_namespaces_bound_what_a_token_does(registry: Registry) -> None:
    """403 for what it is not for; what belongs to others is not listed, and their registrations are not there."""
    fill(registry)
    theirs = registry.submit("secret-bot")
    publisher, reader = make_token(registry, Scope.PUBLISH), make_token(registry, Scope.READ)
    with running_gateway(registry.settings, token=publisher) as client:
        problem_of(client.post(REGISTRATIONS, json=event()), 403, "FORBIDDEN")
        accepted = client.post(REGISTRATIONS, json=event(namespace="team"))
        assert accepted.status_code == 202
        assert client.get(accepted.headers["location"]).json()["namespace"] == "team"
        problem_of(client.get("/v1/adapters"), 403, "FORBIDDEN")
        problem_of(client.get(f"{REGISTRATIONS}/{theirs}"), 404, "NOT_FOUND")
    with running_gateway(registry.settings, token=reader) as client:
        problem_of(client.post(REGISTRATIONS, json=event(namespace="team")), 403, "FORBIDDEN")
        assert names_of(client.get("/v1/adapters")) == ["team.sql-writer"]
        for path in ("/v1/adapters?namespace=default", "/v1/adapters/default/support-bot"):
            problem_of(client.get(path), 403, "FORBIDDEN")
        problem_of(client.get("/v1/adapters/default/support-bot/versions/1"), 403, "FORBIDDEN")
        assert client.get("/v1/adapters/team/sql-writer").status_code == 200
        problem_of(client.get(f"{REGISTRATIONS}/{theirs}"), 404, "NOT_FOUND")


def test_a_revoked_token_ends(registry: Registry) -> None:
    """A running gateway refuses it within seconds, without being told."""
    tokens = Tokens(registry.client, registry.settings)
    make_token(registry, Scope.ADMIN)
    secret = make_token(registry, Scope.READ)
    with running_gateway(registry.settings, token=secret) as client:
        assert client.get("/v1/adapters").status_code == 200
        tokens.revoke(secret.split("_")[1])
        wait_until(lambda: client.get("/v1/adapters").status_code == 401, what="the end of the token", timeout_s=5)


def test_a_gateway_that_had_tokens_does_not_open_when_the_last_one_goes(registry: Registry) -> None:
    """Revoking one before making the next leaves nobody in, on loopback too."""
    tokens = Tokens(registry.client, registry.settings)
    secret = make_token(registry, Scope.READ)
    with running_gateway(registry.settings, token=secret) as client:
        assert client.get("/v1/adapters").status_code == 200
        tokens.revoke(secret.split("_")[1])
        wait_until(lambda: client.get("/v1/adapters").status_code == 401, what="the end of the token", timeout_s=5)
        problem_of(client.post(REGISTRATIONS, json=event(), headers={"Authorization": ""}), 401, "UNAUTHENTICATED")


def test_tokens_are_never_logged(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """The access log has method, path, status and the token's id; no header, no query, and no line of a stranger's."""
    secret = make_token(registry, Scope.READ)
    with caplog.at_level(logging.DEBUG), running_gateway(registry.settings, token=secret) as client:
        client.get("/v1/adapters", params={"cursor": "hunter2"})
        client.get("/v1/adapters/team/x%0aFORGED line")
        client.post(REGISTRATIONS, content=b"{", headers={"Authorization": f"Bearer {secret}x"})
    access = [each.getMessage() for each in caplog.records if each.name == "lora_registry.access"]
    assert any("GET '/v1/adapters' 422" in each and each.endswith(secret.split("_")[1]) for each in access)
    assert not any("\n" in each for each in access)
    # httpx, the test's own client, logs the address that it asks.
    everything = "\n".join(each.getMessage() for each in caplog.records if not each.name.startswith("http"))
    assert secret.rpartition("_")[2] not in everything
    assert "hunter2" not in everything


def test_a_policy_is_enforced_at_once(registry: Registry) -> None:
    """403 with the finding, and nothing is queued; a neighbour of the prefix is no part of it."""
    policies = Policies(registry.client, registry.settings)
    policies.set(NamespacePolicy(namespace="team", sources=(SourceRule(prefix="s3://bucket/team"),)))
    with running_gateway(registry.settings) as client:
        for source in ("s3://bucket/team-b/x", "s3://bucket/team/../team-b", "/adapters/x", "hf://org/repo"):
            answer = client.post(REGISTRATIONS, json=event(namespace="team", source=source))
            problem = problem_of(answer, 403, "SOURCE_NOT_ALLOWED")
            assert problem["findings"][0]["subject"] == source
        assert registry.inbox.waiting() == 0
        for source in ("s3://bucket/team/x", "mlflow://bot@champion"):  # the stages ask MLflow where that is
            allowed = event(namespace="team", source=source)
            assert client.post(REGISTRATIONS, json=allowed).status_code == 202
        assert client.post(REGISTRATIONS, json=event()).status_code == 202
    required = registry.settings.model_copy(update={"require_namespace_policy": True})
    with running_gateway(required) as client:
        problem_of(client.post(REGISTRATIONS, json=event()), 403, "NAMESPACE_UNKNOWN")


def test_a_quota_that_is_used_up_is_429_except_for_what_was_accepted_before(registry: Registry) -> None:
    """The retry of an accepted request gets its registration, whatever has been used up meanwhile."""
    policy = NamespacePolicy(namespace="team", any_source=True, quotas=Quotas(versions_per_day=1))
    Policies(registry.client, registry.settings).set(policy)
    with running_gateway(registry.settings) as client:
        body, headers = event(namespace="team", source="/one"), {"Idempotency-Key": "one"}
        accepted = client.post(REGISTRATIONS, json=body, headers=headers)
        registry.publish_in_order([accepted.json()["id"]])
        problem = problem_of(client.post(REGISTRATIONS, json=body), 429, "QUOTA_EXCEEDED")
        assert [each["code"] for each in problem["findings"]] == ["QUOTA_VERSIONS_PER_DAY"]
        again = client.post(REGISTRATIONS, json=body, headers=headers)
        assert (again.status_code, again.json()["id"]) == (200, accepted.json()["id"])
        problem_of(client.post(REGISTRATIONS, json=body, headers={"Idempotency-Key": "two"}), 429, "QUOTA_EXCEEDED")


def test_redis_out_of_reach_is_503(registry: Registry) -> None:
    """Every route that needs it says so and when to come again; liveness does not need it."""
    away = registry.settings.model_copy(update={"redis_url": "unix:///nowhere/valkey.sock"})
    with running_gateway(away) as client:
        for answer in (
            client.post(REGISTRATIONS, json=event()),
            client.get(f"{REGISTRATIONS}/reg_{'0' * 24}"),
            client.get("/v1/adapters"),
            client.get("/v1/bases"),
            client.get("/readyz"),
        ):
            problem_of(answer, 503, "REDIS_UNAVAILABLE")
            assert "retry-after" in answer.headers
        assert client.get("/healthz").status_code == 200


def test_events_are_equal_to_those_of_the_client(registry: Registry, gateway: httpx.Client) -> None:
    """The same event under the same key by HTTP and by the Python client is one registration."""
    by_http = gateway.post(REGISTRATIONS, json=event(labels={"b": "1", "a": "2"}), headers={"Idempotency-Key": "k"})
    same = make_event(source="/adapters/support-bot", labels={"a": "2", "b": "1"})
    assert registry.inbox.accept(same, idempotency_key="k").registration_id == by_http.json()["id"]
