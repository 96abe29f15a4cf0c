"""The gateway with everything behind it as real processes: from a POST to a published version, through crashes."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_registry.names import AdapterName
from lora_registry.namespaces import NamespacePolicy, Quotas, SourceRule
from lora_registry.policies import Policies
from lora_registry.registrations import Outcome
from lora_registry.stages import Stage
from lora_registry.tokens import Scope, Tokens
from tests.helpers.gateway import REGISTRATIONS
from tests.helpers.gateway_process import GatewayProcess
from tests.helpers.registry import BASE
from tests.helpers.servers import remove_keys, start_server
from tests.helpers.stack import Stack, environment_of, make_settings
from tests.helpers.waiting import wait_until

Running = tuple[Stack, GatewayProcess]


@pytest.fixture(scope="module")
def running(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A dispatcher, workers (two of publish), and a gateway."""
    prefix, directory = f"{{test-{secrets.token_hex(6)}}}", tmp_path_factory.mktemp("gateway")
    stack = Stack(make_settings(server_url, directory, key_prefix=prefix), directory)
    gateway = GatewayProcess(stack.settings, directory / "gateway.log")
    stack.dispatchers()
    stack.worker(Stage.ALLOCATE, Stage.RESOLVE, Stage.VALIDATE, concurrency=2)
    stack.worker(Stage.PUBLISH, concurrency=2)
    stack.wait_for_slots()
    yield stack, gateway
    gateway.close()
    stack.close()
    remove_keys(stack.registry.client, prefix)


def body_of(stack: Stack, name: str = "support-bot", **fields: Any) -> dict[str, Any]:
    """An event for an adapter of bytes that no other has."""
    return {"name": name, "base_model": BASE, "source": str(stack.adapter()), **fields}


def follow(client: httpx.Client, path: str) -> dict[str, Any]:
    """Poll, each time until something changes, until there is an outcome."""
    shown: dict[str, Any] = {}
    while not shown.get("outcome"):
        shown = client.get(path, params={"wait_s": 20, "seen": shown.get("state", "")}).json()
    return shown


def test_from_a_post_to_a_published_version(running: Running) -> None:
    """202, long polls until the outcome, and the version is in the catalog that the gateway shows."""
    stack, gateway = running
    accepted = gateway.client.post(REGISTRATIONS, json=body_of(stack, "poll-bot"))
    assert accepted.status_code == 202
    shown = follow(gateway.client, accepted.headers["location"])
    assert (shown["outcome"], shown["served_name"]) == ("published", "poll-bot.v1")
    record = gateway.client.get("/v1/adapters/default/poll-bot/versions/1").json()
    assert (record["lora_int_id"], record["digest"]) == (shown["lora_int_id"], shown["digest"])
    wait_until(lambda: 202 in gateway.answered(REGISTRATIONS), what="the access log")


def test_a_rejection_comes_with_its_findings(running: Running) -> None:
    """The publisher learns over HTTP what is wrong with the adapter."""
    stack, gateway = running
    body = {**body_of(stack, "wrong-bot"), "base_model": "no-such-base"}
    shown = follow(gateway.client, gateway.client.post(REGISTRATIONS, json=body).headers["location"])
    assert shown["outcome"] == "rejected"
    assert [each["code"] for each in shown["findings"]] == ["BASE_UNKNOWN"]


def test_a_stream_shows_the_states_in_their_order(running: Running) -> None:
    """Server-sent events from acceptance to the outcome, which ends the stream."""
    stack, gateway = running
    path = gateway.client.post(REGISTRATIONS, json=body_of(stack, "stream-bot")).headers["location"]
    with gateway.client.stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
        lines = list(answer.iter_lines())
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    order = ["received", "allocated", "resolved", "validated", "published"]
    states = [each["state"] for each in data]
    assert states == sorted(states, key=order.index)
    assert states[-1] == "published"
    assert [line for line in lines if line.startswith("event: ")][-1] == "event: outcome"


def test_killing_the_gateway_after_its_2xx_loses_nothing(running: Running) -> None:
    """It is killed while many send. Whoever got 2xx is not asked again; the others repeat, and each ends once."""
    stack, gateway = running
    bodies = {f"kill-{number}": body_of(stack, f"kill-bot-{number}") for number in range(30)}
    accepted: dict[str, str] = {}
    enough = threading.Event()

    def send(key: str) -> None:
        try:
            answer = gateway.client.post(REGISTRATIONS, json=bodies[key], headers={"Idempotency-Key": key})
        except httpx.TransportError:
            return
        assert answer.status_code in (200, 202)
        accepted[key] = answer.json()["id"]
        if len(accepted) >= 5:
            enough.set()

    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send, key) for key in bodies]
        assert enough.wait(30)
        gateway.kill()
    for each in sent:
        each.result()
    before = dict(accepted)
    assert 5 <= len(before) < len(bodies)
    gateway.start()
    for key in bodies.keys() - before.keys():
        send(key)
    ended = stack.wait_for(accepted.values())
    assert len(ended) == len(set(accepted.values())) == len(bodies)
    assert {each.outcome for each in ended.values()} == {Outcome.PUBLISHED}
    assert {each.version for each in ended.values()} == {1}  # none was registered twice


def test_quotas_hold_under_fifty_writers(running: Running) -> None:
    """Fifty at once through the real stages: ten adapters are published, and all others told why not."""
    stack, gateway = running
    policies = Policies(stack.registry.client, stack.settings)
    policies.set(NamespacePolicy(namespace="crowd", any_source=True, quotas=Quotas(adapters=10)))
    bodies = [body_of(stack, f"crowd-{number}", namespace="crowd") for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda body: gateway.client.post(REGISTRATIONS, json=body), bodies))
    refused = [answer.json() for answer in answers if answer.status_code == 429]
    ended = stack.wait_for(answer.json()["id"] for answer in answers if answer.status_code == 202)
    outcomes = [each.outcome for each in ended.values()]
    assert outcomes.count(Outcome.PUBLISHED) == 10
    codes = {finding.code for each in ended.values() for finding in each.findings if each.outcome is Outcome.REJECTED}
    assert codes | {finding["code"] for each in refused for finding in each["findings"]} == {"QUOTA_ADAPTERS"}
    assert len(ended) + len(refused) == 50
    assert policies.usage(AdapterName("crowd", "crowd-0"))[0].adapters == 10


def test_no_publisher_gets_past_the_policy_through_redis(running: Running) -> None:
    """Events that are written into Redis directly meet the same rules in the resolve stage, links included."""
    stack, _ = running
    mine = stack.sources / "mine"
    mine.mkdir()
    theirs = stack.adapter()
    (mine / "link").symlink_to(theirs)
    (stack.sources / "mine-too").symlink_to(theirs)
    rules = (SourceRule(prefix=str(mine)), SourceRule(prefix="hf://org"), SourceRule(prefix="s3://bucket/team"))
    Policies(stack.registry.client, stack.settings).set(NamespacePolicy(namespace="tenant", sources=rules))
    attempts = [
        str(theirs),
        f"{mine}/../{theirs.name}",
        f"{mine}/link/../../{theirs.name}",
        f"{mine}-too",
        f"{mine}/link",
        f"file://{mine}/link",
        "hf://org-evil/repo",
        "s3://bucket/team-b/adapter",
        "s3://bucket/team/../team-b",
    ]
    ids = [
        stack.client.submit(name=f"bot-{number}", namespace="tenant", base_model=BASE, source=source)
        for number, source in enumerate(attempts)
    ]
    ended = stack.wait_for(ids)
    codes = {ended[each].source: [finding.code for finding in ended[each].findings] for each in ids}
    assert codes == {source: ["SOURCE_NOT_ALLOWED"] for source in attempts}
    theirs.rename(mine / "own")
    allowed = stack.client.submit(name="bot", namespace="tenant", base_model=BASE, source=str(mine / "own"))
    assert stack.wait_for([allowed])[allowed].outcome is Outcome.PUBLISHED


def test_while_redis_is_away_the_sender_is_told_and_its_retry_succeeds(tmp_path: Path) -> None:
    """503 with Retry-After; with the same key the retry after the outage makes one registration and no other."""
    server = start_server(tmp_path / "valkey")
    stack = Stack(make_settings(server.url, tmp_path / "stack"), tmp_path / "stack")
    gateway = GatewayProcess(stack.settings, tmp_path / "gateway.log")
    try:
        stack.dispatchers()
        stack.worker()
        body, headers = body_of(stack), {"Idempotency-Key": "run-1"}

        def send() -> httpx.Response:
            return gateway.client.post(REGISTRATIONS, json=body, headers=headers)

        stack.wait_until(lambda: gateway.client.get("/readyz").status_code == 200, what="readiness")
        server.kill()
        answer = send()
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert gateway.client.get("/readyz").status_code == 503
        assert gateway.client.get("/healthz").status_code == 200
        server.start()
        stack.wait_until(lambda: (answered := send()).status_code in (200, 202) and answered, what="acceptance")
        again = send()
        assert again.status_code == 200
        registration = stack.wait_for([again.json()["id"]])[again.json()["id"]]
        assert registration.outcome is Outcome.PUBLISHED
        assert len(stack.registry.catalog.versions(AdapterName("default", "support-bot"))) == 1
        assert not stack.registry.inbox.waiting()
    finally:
        gateway.close()
        stack.close()
        server.kill()


def test_beyond_loopback_it_starts_only_once_there_is_a_token(running: Running) -> None:
    """Without one it ends with exit code 2 and says why; with one it listens and asks for it."""
    stack, _ = running
    command = [sys.executable, "-m", "lora_workers", "gateway", "--host", "0.0.0.0", "--port", "0"]
    environment = environment_of(stack.settings)
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert "no token exists" in ran.stderr
    assert "token create" in ran.stderr
    assert "Traceback" not in ran.stderr
    tokens = Tokens(stack.registry.client, stack.settings)
    secret, kept = tokens.create(scopes=[Scope.READ], namespaces=["*"])
    other = GatewayProcess(stack.settings, stack.directory / "other.log")
    try:
        other.kill()
        other.start(host="0.0.0.0")
        assert other.client.get("/v1/adapters").status_code == 401
        bearer = {"Authorization": f"Bearer {secret.get_secret_value()}"}
        assert other.client.get("/v1/adapters", headers=bearer).status_code == 200
        assert secret.get_secret_value() not in other.said()
        assert kept.id in other.said()
    finally:
        other.close()
        tokens.revoke(kept.id)


def test_it_ends_in_order_when_asked(running: Running) -> None:
    """SIGTERM ends it with exit code 0, also while somebody waits for an outcome."""
    stack, _ = running
    other = GatewayProcess(stack.settings, stack.directory / "ending.log")
    try:
        assert "everybody on this machine may do everything" in other.said()
        held = stack.submit("held-bot", fault="hold:validate")
        stack.wait_for_stage(held, Stage.VALIDATE)
        waiting = threading.Thread(target=lambda: _ask(other, held))
        waiting.start()
        channel = stack.registry.keys.outcome_channel(held)
        wait_until(lambda: stack.registry.client.pubsub_numsub(channel)[0][1], what="somebody who waits")
        other.process.terminate()
        assert other.process.wait(20) == 0
        waiting.join()
        stack.release()
        assert stack.wait_for([held])[held].outcome is Outcome.PUBLISHED
    finally:
        other.close()


def _ask(gateway: GatewayProcess, registration_id: str) -> None:
    try:
        gateway.client.get(f"{REGISTRATIONS}/{registration_id}", params={"wait_s": 60})
    except httpx.TransportError:
        return
