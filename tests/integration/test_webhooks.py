from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_registry.hook_deliveries import DeliveryVerdict
from lora_registry.hook_events import PendingEvents
from lora_registry.settings import Settings
from lora_workers import installation
from lora_workers.cli.app import app
from lora_workers.gateway import delivery_fetches
from tests.helpers import hooks
from tests.helpers.hooks import NOW_S, SECRET, SECRETS, Gateway, Sent, write_hooks
from tests.helpers.registry import Registry
from tests.helpers.waiting import wait_until

SHA = "1" * 40
OBJECT = {"name": "support-bot", "source": "/adapters/support-bot", "base_model": "tiny-llama"}
PUSH = hooks.hub_push("acme/support-bot", sha=SHA)
GENUINE = {
    "huggingface": hooks.hub(PUSH),
    "mlflow": hooks.mlflow(hooks.payload("mlflow/model_version.created.body.json")),
    "wandb": hooks.wandb(OBJECT),
    "minio": hooks.bucket(hooks.minio("support-bot")),
    "sns": hooks.sns(json.dumps(hooks.minio("support-bot"))),
    "cloudevents": hooks.cloud_event(OBJECT),
    "cloudevents, structured": hooks.cloud_event(OBJECT, structured=True),
    "standard": hooks.standard(OBJECT),
}
SIGNED_AT = {"mlflow", "sns", "standard"}
"""Senders that sign when they sent."""


@pytest.fixture
def settings(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A registry with a hook of each kind, at the time of the payloads."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    hooks_file = write_hooks(tmp_path / "hooks.json")
    return settings.model_copy(update={"hooks_file": hooks_file, "hook_quiet_s": 0.0, "hook_max_body_bytes": 100_000})


@pytest.fixture
def gateway(registry: Registry) -> Iterator[Gateway]:
    """A gateway in this process; what is pending at the end is accepted, so that no key is left."""
    with Gateway(registry.settings) as gateway:
        yield gateway
    pending(registry).release(registry.inbox)


def pending(registry: Registry) -> PendingEvents:
    """What waits to be accepted."""
    return PendingEvents(registry.client, registry.settings)


def nothing_is_queued(registry: Registry) -> bool:
    """Whether no delivery asked for anything."""
    return pending(registry).waiting() == 0 and registry.inbox.waiting() == 0


def refused(gateway: Gateway, hook: str) -> list[str]:
    """Codes of the refusals in the history."""
    return [each.reason.partition(":")[0] for each in gateway.deliveries.refusals(hook)]


@pytest.mark.parametrize("sent", GENUINE.values(), ids=GENUINE)
def test_a_genuine_delivery_is_queued_before_it_is_answered(gateway: Gateway, registry: Registry, sent: Sent) -> None:
    """202, and what it asks for is in Redis; the same again is a duplicate; the history holds no secret."""
    answer = gateway.post(sent)
    assert (answer.status_code, answer.json()["verdict"], answer.json()["reason"]) == (202, "queued", "")
    assert pending(registry).waiting() == 1
    assert pending(registry).release(registry.inbox) == 1
    again = gateway.post(sent)
    assert (again.status_code, again.json()["verdict"]) == (200, "duplicate")
    assert pending(registry).waiting() == 0
    assert registry.inbox.waiting() == 1
    history = gateway.deliveries.history(sent.hook)
    assert SECRET not in str(history) + "".join(each.body for each in history)


@pytest.mark.parametrize("sent", GENUINE.values(), ids=GENUINE)
def test_a_forged_delivery_is_refused(gateway: Gateway, registry: Registry, sent: Sent) -> None:
    """403, nothing is queued, and nothing of what it said is kept but the code."""
    if "x-amz-sns-message-type" in sent.headers:
        forged = sent.with_body(sent.body.replace(b"support-bot", b"evil-bot"))
    else:
        forged = sent.changed(
            x_webhook_secret=None if "X-Webhook-Secret" not in sent.headers else "wrong-secret",
            authorization="Bearer wrong-token" if "Authorization" in sent.headers else None,
            x_mlflow_signature="v1,AAAA" if sent.hook == "mlflow" else None,
            webhook_signature="v1,AAAA" if sent.hook == "standard" else None,
        )
    answer = gateway.post(forged)
    assert (answer.status_code, answer.json()["code"]) == (403, "HOOK_FORGED")
    assert answer.json()["remedy"]
    assert nothing_is_queued(registry)
    assert refused(gateway, sent.hook) == ["HOOK_FORGED"]
    assert gateway.deliveries.history(sent.hook) == []


@pytest.mark.parametrize("kind", sorted(SIGNED_AT))
def test_a_stale_delivery_is_refused(gateway: Gateway, registry: Registry, kind: str) -> None:
    """A right signature from long ago: 403, and nothing is queued."""
    gateway.now_s = NOW_S + 4000
    answer = gateway.post(GENUINE[kind])
    assert (answer.status_code, answer.json()["code"]) == (403, "HOOK_STALE")
    assert nothing_is_queued(registry)
    assert refused(gateway, GENUINE[kind].hook) == ["HOOK_STALE"]


@pytest.mark.parametrize("sent", GENUINE.values(), ids=GENUINE)
def test_a_replayed_delivery_queues_nothing(gateway: Gateway, registry: Registry, sent: Sent) -> None:
    """Somebody who recorded a genuine delivery and sends it again, before and after it is accepted, changes nothing."""
    gateway.post(sent)
    assert gateway.verdict(sent) in ("duplicate", "queued")  # queued: into the pending one, where it has no id
    assert pending(registry).waiting() == 1
    assert pending(registry).release(registry.inbox) == 1
    for _ in range(3):
        assert gateway.verdict(sent) == "duplicate"
    assert pending(registry).waiting() == 0
    assert registry.inbox.waiting() == 1


@pytest.mark.parametrize("kind", ["huggingface", "minio", "wandb", "mlflow", "cloudevents", "standard"])
def test_an_authentic_body_that_is_no_json_is_refused(gateway: Gateway, registry: Registry, kind: str) -> None:
    """400, and nothing is queued."""
    made = {
        "huggingface": hooks.hub(b"{"),
        "minio": hooks.bucket(b"{"),
        "mlflow": hooks.mlflow(b"{"),
        "standard": hooks.standard(b"{"),
        "cloudevents": hooks.cloud_event({}).with_body(b"{"),
        "wandb": Sent("wandb", b"{", hooks.wandb({}).headers).changed(
            x_wandb_signature=hooks._hmac(SECRET.encode(), b"{")
        ),
    }[kind]
    answer = gateway.post(made)
    assert (answer.status_code, answer.json()["code"]) == (400, "HOOK_MALFORMED")
    assert nothing_is_queued(registry)
    assert refused(gateway, made.hook) == ["HOOK_MALFORMED"]


@pytest.mark.parametrize("sent", GENUINE.values(), ids=GENUINE)
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_long_is_not_read(gateway: Gateway, registry: Registry, sent: Sent, announced: bool) -> None:
    """413, whether its length was announced or it just does not end, and before anything is checked."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield b" " * 10_000

    content: Any = b" " * 1_000_000 if announced else endless()
    answer = gateway.http.post(f"/v1/webhooks/{sent.hook}", content=content, headers=dict(sent.headers))
    assert (answer.status_code, answer.json()["code"]) == (413, "HOOK_TOO_LARGE")
    assert nothing_is_queued(registry)
    assert refused(gateway, sent.hook) == ["HOOK_TOO_LARGE"]


def test_a_secret_is_replaced_without_a_gap(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that knows two takes deliveries under either; one that knows only the new one refuses the old."""
    monkeypatch.setenv("HOOK_NEW_SECRET", "the-new-secret")
    old, new = hooks.hub(PUSH, delivery_id="1"), hooks.hub(PUSH, delivery_id="2", secret="the-new-secret")
    for secrets, taken in (
        (["env:HOOK_SECRET"], [True, False]),
        (["env:HOOK_NEW_SECRET", "env:HOOK_SECRET"], [True, True]),
        (["env:HOOK_NEW_SECRET"], [False, True]),
    ):
        hooks_file = write_hooks(tmp_path / "rotated.json", {"hub": hooks.RULES["hub"] | {"secrets": secrets}})
        with Gateway(registry.settings.model_copy(update={"hooks_file": hooks_file})) as gateway:
            assert [gateway.post(each).is_success for each in (old, new)] == taken
    pending(registry).release(registry.inbox)


def test_an_unknown_hook_is_not_found(gateway: Gateway, registry: Registry) -> None:
    """404, and no key is made for a name that anybody may invent."""
    answer = gateway.http.post("/v1/webhooks/nobodys", content=b"{}")
    assert (answer.status_code, answer.json()["code"]) == (404, "HOOK_UNKNOWN")
    assert list(registry.client.scan_iter(f"{registry.settings.key_prefix}:hooks:*")) == []


@pytest.mark.parametrize("name", sorted(path.name for path in hooks.PAYLOADS.glob("huggingface/repo*.json")))
def test_every_payload_of_the_hub_is_answered_with_success(gateway: Gateway, name: str) -> None:
    """Whatever the Hub sends, its webhook is not suspended for it; what is ignored is recorded with its reason."""
    answer = gateway.post(hooks.hub(hooks.payload(f"huggingface/{name}"), delivery_id=name))
    assert answer.status_code == (202 if "main-and-tag" in name else 200)
    [delivery] = gateway.deliveries.history("hub")
    assert (delivery.verdict is DeliveryVerdict.QUEUED) is not bool(delivery.reason)


@pytest.mark.parametrize("name", sorted(str(path) for path in hooks.PAYLOADS.glob("s3/**/*.json")))
def test_every_payload_of_a_bucket_is_answered_with_success(gateway: Gateway, registry: Registry, name: str) -> None:
    """Test events, deletions and objects that are no marker are ignored, with the reason."""
    body = json.loads(Path(name).read_text())
    answer = gateway.post(hooks.bucket(body if isinstance(body, dict) else {"Records": body[0]["Event"]}))
    assert (answer.status_code, answer.json()["verdict"]) == (200, "ignored")
    assert answer.json()["reason"]
    assert nothing_is_queued(registry)


def test_a_commit_announced_under_two_ids_is_one_registration(gateway: Gateway, registry: Registry) -> None:
    """By two webhooks that watch the same repository, for example."""
    assert gateway.verdict(hooks.hub(PUSH, delivery_id="1")) == "queued"
    pending(registry).release(registry.inbox)
    assert gateway.verdict(hooks.hub(PUSH, delivery_id="2")) == "duplicate"
    assert gateway.verdict(hooks.hub(PUSH, delivery_id=None)) == "duplicate"
    assert registry.inbox.waiting() == 1


def test_a_subscription_of_a_configured_topic_is_confirmed(gateway: Gateway, registry: Registry) -> None:
    """Its address is visited once the signature is right; for another topic nothing is visited at all."""
    url = "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&Token=t"
    fields = {"Type": "SubscriptionConfirmation", "SubscribeURL": url, "Token": "t"}
    answer = gateway.post(hooks.sns("You have chosen to subscribe", **fields))
    assert (answer.status_code, answer.json()["verdict"]) == (200, "ignored")
    assert gateway.aws.asked == [hooks.CERTIFICATE_URL, url]
    other = hooks.sns("", **fields, TopicArn="arn:aws:sns:us-east-1:999999999999:other")
    assert gateway.post(other).status_code == 403
    assert len(gateway.aws.asked) == 2
    assert nothing_is_queued(registry)


def test_a_certificate_that_is_slow_delays_no_other_delivery(gateway: Gateway, registry: Registry) -> None:
    """While more deliveries than are fetched for at once wait for theirs, others are answered; then those are, too."""
    gateway.aws.may_answer.clear()
    with ThreadPoolExecutor(12) as senders:
        slow = [senders.submit(gateway.post, hooks.sns("{}", MessageId=str(number))) for number in range(12)]
        wait_until(lambda: len(gateway.aws.asked) >= 4, what="fetches")
        assert gateway.verdict(GENUINE["huggingface"]) == "queued"
        assert gateway.post(GENUINE["minio"].changed(authorization="Bearer wrong")).status_code == 403
        assert len(gateway.aws.asked) == 4
        assert not any(each.done() for each in slow)
        gateway.aws.may_answer.set()
        assert {each.result().status_code for each in slow} == {200}
    assert len(gateway.deliveries.history("s3")) == 12


def test_those_that_wait_for_a_certificate_are_bounded(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the sender is told to come again, and nothing is fetched for it."""
    monkeypatch.setattr(delivery_fetches, "_MOST", 2)
    gateway.aws.may_answer.clear()
    with ThreadPoolExecutor(2) as senders:
        slow = [senders.submit(gateway.post, hooks.sns("{}", MessageId=str(number))) for number in range(2)]
        wait_until(lambda: len(gateway.aws.asked) == 2, what="fetches")
        assert gateway.post(hooks.sns("{}", MessageId="3")).status_code == 503
        gateway.aws.may_answer.set()
        assert [each.result().status_code for each in slow] == [200, 200]
    assert gateway.post(hooks.sns("{}", MessageId="3")).status_code == 200


def test_a_certificate_that_cannot_be_had_is_no_refusal(gateway: Gateway, registry: Registry) -> None:
    """503 while AWS is out of reach, so that SNS tries again; nothing is queued, and nothing is noted against it."""
    gateway.aws.is_away = True
    answer = gateway.post(GENUINE["sns"])
    assert (answer.status_code, answer.json()["code"]) == (503, "TRANSIENT")
    assert "retry-after" in answer.headers
    assert nothing_is_queued(registry)
    assert refused(gateway, "s3") == []
    gateway.aws.is_away = False
    assert gateway.verdict(GENUINE["sns"]) == "queued"


def test_a_long_body_is_read_like_a_short_one(gateway: Gateway) -> None:
    """One that lists many changed files is queued, and a forged one of that length is refused."""
    long = PUSH | {"files": ["adapter_model.safetensors"] * 3_000}
    assert gateway.verdict(hooks.hub(long)) == "queued"
    assert gateway.post(hooks.hub(long, secret="wrong-secret")).status_code == 403


def test_deliveries_that_come_together_are_each_answered(gateway: Gateway, registry: Registry) -> None:
    """Forged, malformed, ignored and genuine ones at once: each has its own answer, and only the genuine are queued."""
    sent: list[Sent] = []
    for number in range(10):
        sent.append(hooks.hub(hooks.hub_push(f"acme/bot-{number}", sha=f"{number:040x}"), delivery_id=f"good-{number}"))
        sent.append(hooks.hub(PUSH, secret="wrong-secret"))
        sent.append(hooks.hub(b"{", delivery_id=f"bad-{number}"))
        sent.append(hooks.hub(b"{}", delivery_id=f"ignored-{number}"))
    with ThreadPoolExecutor(len(sent)) as senders:
        answers = list(senders.map(gateway.post, sent))
    assert [each.status_code for each in answers] == [202, 403, 400, 200] * 10
    ids = [each.json()["delivery_id"] for each in answers if each.status_code < 300]
    assert ids == [f"{what}-{number}" for number in range(10) for what in ("good", "ignored")]
    assert pending(registry).waiting() == 10
    assert sorted(refused(gateway, "hub")) == ["HOOK_FORGED"] * 10 + ["HOOK_MALFORMED"] * 10


def test_redis_out_of_reach_is_no_loss(registry: Registry, tmp_path: Path) -> None:
    """503 with a short pause, so that the sender tries again; then it is taken."""
    away = registry.settings.model_copy(update={"redis_url": f"unix://{tmp_path}/nobody.sock"})
    with Gateway(away) as gateway:
        answer = gateway.post(GENUINE["huggingface"])
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["code"] == "REDIS_UNAVAILABLE"
    with Gateway(registry.settings) as gateway:
        assert gateway.verdict(GENUINE["huggingface"]) == "queued"
    pending(registry).release(registry.inbox)


def test_what_is_forged_is_refused_even_if_redis_is_away(registry: Registry, tmp_path: Path) -> None:
    """A forgery is not worth a repetition, and its refusal needs no Redis."""
    away = registry.settings.model_copy(update={"redis_url": f"unix://{tmp_path}/nobody.sock"})
    with Gateway(away) as gateway:
        assert gateway.post(GENUINE["huggingface"].changed(x_webhook_secret="wrong")).status_code == 403


def test_the_commands_of_an_operator(gateway: Gateway, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hooks list`, `show` and `redeliver` show what came and read it again, without any secret of a hook."""
    for name, value in installation.environment_of(registry.settings).items():
        monkeypatch.setenv(name, value)
    for name in SECRETS:
        monkeypatch.delenv(name)
    gateway.post(hooks.hub(PUSH, delivery_id="the-push"))
    gateway.post(hooks.hub(b"{}", delivery_id="ignored"))
    gateway.post(hooks.hub(PUSH, secret="wrong-secret"))
    pending(registry).release(registry.inbox)

    listed = {each["hook"]: each for each in run("hooks", "list", "--json")}
    assert (listed["hub"]["kind"], listed["hub"]["deliveries"], listed["hub"]["refused"]) == ("huggingface", 2, 1)
    assert set(listed) == set(hooks.RULES)
    shown = run("hooks", "show", "hub", "--json")
    assert [(each["id"], each["verdict"]) for each in shown] == [("ignored", "ignored"), ("the-push", "queued")]
    [refusal] = run("hooks", "show", "hub", "--refused", "--json")
    assert refusal["reason"].startswith("HOOK_FORGED")
    one = run("hooks", "show", "hub", "the-push", "--json")
    assert json.loads(json.loads(one["body"])["body"]) == PUSH
    assert re.fullmatch(r"reg_[0-9a-f]{24}", one["registrations"][0])
    assert run("hooks", "redeliver", "hub", "the-push", "--json")["verdict"] == "queued"
    assert pending(registry).waiting() == 1
    runner = CliRunner()
    assert "the-push" in runner.invoke(app, ["hooks", "show", "hub"]).stdout
    assert "huggingface" in runner.invoke(app, ["hooks", "list"]).stdout
    for arguments in (["redeliver", "hub", "none"], ["redeliver", "none", "x"], ["show", "hub", "none"]):
        assert runner.invoke(app, ["hooks", *arguments]).exit_code == 1


def run(*arguments: str) -> Any:
    """Run a command; what it prints as JSON."""
    ran = CliRunner().invoke(app, list(arguments))
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_a_registry_without_hooks_knows_none(settings: Settings, registry: Registry) -> None:
    """Without a hooks file every name is unknown, and the command says so."""
    none = registry.settings.model_copy(update={"hooks_file": None})
    with Gateway(none) as gateway:
        assert gateway.post(GENUINE["huggingface"]).status_code == 404
