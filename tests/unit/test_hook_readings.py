from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import hooks
from tests.helpers.hooks import PAYLOADS, RULES, SECRET, TOPIC, Sent, payload

from lora_registry import hook_codes
from lora_registry.events import Follow
from lora_registry.ready_marker import MARKER_FILE
from lora_workers.hooks.configuration import HooksFile
from lora_workers.hooks.hook import Reading
from lora_workers.hooks.refusals import Refused
from lora_workers.hooks.request import HookRequest
from lora_workers.hooks.s3_changes import Change, read_changes

BASE = "tiny-llama"
SHA = "5" * 40


def read(sent: Sent, *rules: dict[str, Any], **fields: Any) -> Reading:
    """What a hook with these rules, by default one that takes everything, reads."""
    told = RULES[sent.hook] | fields | ({"rules": rules} if rules else {})
    hook = HooksFile.model_validate({"hooks": {"hook": told}}).hooks["hook"]
    return hook.read(sent.request, quiet_s=2.0)


def test_mlflows_test_of_an_alias_is_ignored_whatever_the_rules_take() -> None:
    """It names a model and an alias that a rule for everything would register."""
    told = {"name": "example_model", "alias": "example_alias", "version": "1"}
    sent = hooks.mlflow({"entity": "model_version_alias", "action": "created", "data": told})
    rule = {"model": "*", "aliases": ["*"], "base": BASE}
    assert read(sent, rule).events == ()
    assert "test" in read(sent, rule).reason


def asked(reading: Reading) -> list[tuple[str, str, str]]:
    """Adapter, source and content of each event."""
    return [(str(each.event.adapter), each.event.source, each.content) for each in reading.events]


def refusal_of(sent: Sent) -> object:
    """The code with which an authentic delivery is refused."""
    with pytest.raises(Refused) as refused:
        read(sent)
    return refused.value.why


# The Hub


def test_a_push_to_main_names_the_branch_and_not_a_commit() -> None:
    """The event's source is the branch, so that the commit is looked up when it is resolved."""
    sent = hooks.hub(payload("huggingface/repo.content.update.main-and-tag.assembled-from-hub-docs.json"))
    reading = read(sent)
    assert asked(reading) == [
        ("some-repo", "hf://some-user/some-repo@main", "575db8b7a51b6f85eb06eee540738584589f131c"),
        ("some-repo", "hf://some-user/some-repo@test", "575db8b7a51b6f85eb06eee540738584589f131c"),
    ]
    assert reading.delivery_id == "delivery-1"
    assert [each.event.base_model for each in reading.events] == [BASE, BASE]


def test_the_content_is_that_of_the_ref_and_not_the_head_of_main() -> None:
    """`headSha` is the tip of main whatever moved; `newSha` is what the ref points at."""
    reading = read(hooks.hub(hooks.hub_push("acme/a", sha=SHA, ref="refs/tags/v1", head="4" * 40)))
    assert [each.content for each in reading.events] == [SHA]


@pytest.mark.parametrize(
    ("ref", "sha", "why"),
    [
        ("refs/pr/5", SHA, "pull request"),
        ("refs/convert/parquet", SHA, "conversion"),
        ("refs/heads/main", None, "deleted"),
        ("refs/heads/dev", SHA, "No rule"),
        ("refs/notes/x", SHA, "neither a branch nor a tag"),
        ("refs/heads/a@b", SHA, "neither a branch nor a tag"),
        ("main", SHA, "neither a branch nor a tag"),
    ],
)
def test_refs_that_are_not_meant_are_ignored(ref: str, sha: str | None, why: str) -> None:
    """Pull requests, conversions, deletions and refs without a rule ask for nothing, and the reason is said."""
    reading = read(hooks.hub(hooks.hub_push("acme/a", sha=sha, ref=ref)))
    assert reading.events == ()
    assert why in reading.reason


@pytest.mark.parametrize(
    "name", sorted(path.name for path in PAYLOADS.glob("huggingface/repo*.json") if "main-and-tag" not in path.name)
)
def test_other_payloads_of_the_hub_are_ignored(name: str) -> None:
    """Configuration changes and buckets ask for nothing."""
    reading = read(hooks.hub(payload(f"huggingface/{name}")))
    assert reading.events == ()
    assert reading.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"event": {"scope": "discussion.comment", "action": "create"}},
        {"event": {"scope": "repo", "action": "delete"}},
        {"event": {"scope": "repository.content", "action": "update"}},
        {"event": "update"},
        {"repo": None},
        {"repo": {"type": "dataset", "name": "acme/a"}},
        {"repo": {"type": "model", "name": "acme/a@main"}},
        {"repo": {"type": "model", "name": "../../etc"}},
        {"updatedRefs": []},
        {"updatedRefs": [{"name": "x"}]},
        {"updatedRefs": 7},
    ],
)
def test_shapes_that_are_not_known_are_ignored_and_not_refused(changes: dict[str, Any]) -> None:
    """What the Hub may send one day gets a 2xx: refusals get the webhook suspended."""
    reading = read(hooks.hub(hooks.hub_push("acme/a", sha=SHA) | changes))
    assert reading.events == ()
    assert reading.reason


def test_new_scopes_actions_and_fields_of_the_hub_change_nothing() -> None:
    """A narrower scope reads as its broader one, and unknown fields and values are passed over."""
    told = hooks.hub_push("acme/a", sha=SHA)
    told |= {"event": {"scope": "repo.content.files", "action": "rewrite", "more": 1}, "future": {"a": []}}
    told["webhook"] |= {"version": 4}
    told["updatedRefs"][0] |= {"by": "somebody"}
    assert len(read(hooks.hub(told)).events) == 1


def test_rules_of_the_hub_make_name_base_labels_and_folder() -> None:
    """The first rule that fits repository and ref counts, and its templates are filled in."""
    rules = (
        {"repo": "other/*", "base": "other"},
        {
            "repo": "acme/*-lora",
            "refs": ["refs/heads/*"],
            "base": "org/base",
            "name": "{owner}_{repo_name}",
            "subfolder": "final/adapter",
            "labels": {"branch": "{ref_name}"},
            "follow": "manual",
            "supersede": True,
        },
        {"repo": "*", "base": "last"},
    )
    sent = hooks.hub(hooks.hub_push("acme/SQL.Writer-lora", sha=SHA, ref="refs/heads/team/x"))
    [made] = read(sent, *rules, namespace="team").events
    assert str(made.event.adapter) == "team.acme_sql-writer-lora"
    assert made.event.source == "hf://acme/SQL.Writer-lora@team%2Fx/final/adapter"
    assert (made.event.base_model, made.event.labels) == ("org/base", {"branch": "team/x"})
    assert (made.event.follow, made.event.supersede) == (Follow.MANUAL, True)


@pytest.mark.parametrize(
    ("name", "one", "other", "are_one"),
    [
        ("{repo_name}", "acme/a.b", "acme/a-b", False),
        ("{repo_name}", "acme/bot", "other/bot", False),
        ("{owner}-bot", "acme/one", "acme/other", False),
        ("bot", "acme/one", "acme/other", True),
        ("{repo_name}", "acme/bot", "acme/bot", True),
    ],
)
def test_two_repositories_share_an_adapter_only_where_a_rule_names_it(
    name: str, one: str, other: str, are_one: bool
) -> None:
    """What a template makes of them belongs to the repository; a plain name is the operator's own word."""
    rule = {"repo": "*", "base": "tiny-llama", "name": name}
    [first], [second] = (read(hooks.hub(hooks.hub_push(repo, sha="1")), rule).events for repo in (one, other))
    assert first.event.adapter == second.event.adapter
    assert (first.named_after == second.named_after) is are_one


def test_a_model_that_is_called_like_the_template_is_one_of_many() -> None:
    """It is no plain name that the operator chose, so the adapter `model` may still be another model's."""
    rule = {"model": "*", "created": True, "base": "tiny-llama", "schemes": ["s3"]}
    told = {"version": "1", "source": "s3://adapters/one"}
    body = {"entity": "model_version", "action": "created", "data": told | {"name": "{model}"}}
    [made] = read(hooks.mlflow(body), rule).events
    assert (made.event.name, made.named_after) == ("model", "model {model}")


@pytest.mark.parametrize("repo_name", ["text", "v3", "---", "_"])
def test_a_name_that_cannot_be_made_legal_is_ignored(repo_name: str) -> None:
    """A repository called like a reserved word asks for nothing, and the reason names the rule that it breaks."""
    reading = read(
        hooks.hub(hooks.hub_push(f"acme/a{repo_name}", sha=SHA)), {"repo": "*", "base": BASE, "name": repo_name}
    )
    assert reading.events == ()
    assert "No legal event" in reading.reason


# MLflow


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("model_version.created", [("support-bot-lora", "s3://adapters/support-bot/v1")]),
        ("model_version.created.minimal", [("support-bot-lora", "s3://adapters/support-bot/v2")]),
        ("model_version_alias.created", [("support-bot-lora", "mlflow://support-bot-lora@champion")]),
        ("model_version.created.log_model", []),
        ("model_version.created.runs_uri", []),
        ("model_version_alias.deleted", []),
        ("model_version_tag.set", []),
        ("model_version_tag.deleted", []),
        ("registered_model.created.attempt1", []),
    ],
)
def test_payloads_of_a_real_mlflow_server(name: str, events: list[tuple[str, str]]) -> None:
    """A version whose source others can read, and an alias, ask for a registration; the rest says why not."""
    reading = read(Sent("mlflow", payload(f"mlflow/{name}.body.json"), {"X-MLflow-Delivery-Id": "1"}))
    assert [each[:2] for each in asked(reading)] == events
    assert bool(reading.reason) is not bool(events)
    assert reading.delivery_id == "1"


def test_every_payload_of_mlflow_is_tested() -> None:
    """A new payload file needs a line in the test above."""
    assert len(list(PAYLOADS.glob("mlflow/*.body.json"))) == 9


def test_a_tag_says_where_an_adapter_is() -> None:
    """`lora.path`, set with the version or later, comes before what MLflow calls its source."""
    told = json.loads(payload("mlflow/model_version.created.log_model.body.json"))
    told["data"]["tags"] = {"lora.path": "s3://adapters/x", "base": BASE}
    rule = {"model": "*", "created": True, "base": "{tag.base}", "labels": {"mlflow": "{version}"}}
    [made] = read(hooks.mlflow(told), rule).events
    assert (made.event.source, made.event.base_model, made.event.labels) == ("s3://adapters/x", BASE, {"mlflow": "1"})
    told = json.loads(payload("mlflow/model_version_tag.set.body.json"))
    told["data"] |= {"key": "lora.path", "value": "/adapters/x"}
    assert [each[1] for each in asked(read(hooks.mlflow(told)))] == ["/adapters/x"]


def test_mlflows_own_test_is_ignored() -> None:
    """`test_webhook` sends a normal-looking, signed event, which must not end as a failed registration."""
    told = json.loads(payload("mlflow/model_version.created.body.json"))
    told["data"] |= {"name": "example_model", "source": "models:/123", "run_id": "abcd1234abcd5678"}
    reading = read(hooks.mlflow(told))
    assert reading.events == ()
    assert "test" in reading.reason


def test_only_the_aliases_and_models_of_a_rule_count() -> None:
    """Another alias, another model, or a new version where none is asked for are ignored."""
    alias, created = (
        hooks.mlflow(payload(f"mlflow/{name}.body.json"))
        for name in ("model_version_alias.created", "model_version.created")
    )
    assert read(alias, {"model": "*", "aliases": ["stable"], "base": BASE}).events == ()
    assert read(alias, {"model": "other", "aliases": ["*"], "base": BASE}).events == ()
    assert read(created, {"model": "*", "aliases": ["*"], "base": BASE}).events == ()


# Buckets


@pytest.mark.parametrize("name", sorted(str(path.relative_to(PAYLOADS)) for path in PAYLOADS.glob("s3/**/*.json")))
def test_every_payload_of_a_bucket_goes_through(name: str) -> None:
    """Each documented or emulated body is read: none of them is about a marker, so each gives a reason and no event."""
    body = json.loads(payload(name))
    if isinstance(body, list):  # what MinIO pushes to Redis; it is the records of a webhook in another wrapping
        body = {"Records": body[0]["Event"]}
    reading = read(hooks.bucket(body))
    assert reading.events == ()
    assert reading.reason


@pytest.mark.parametrize(
    ("name", "bucket", "key", "order"),
    [
        ("s3/aws/sqs.ObjectCreated_Put.docs.json", "mybucket", "HappyFace.jpg", "0055AED6DCD90281E5"),
        ("s3/aws/sqs.body.powertools-real.json", "xxx", "test.pdf", "00643717F9F8B85354"),
        ("s3/aws/eventbridge.ObjectCreated.docs.json", "DOC-EXAMPLE-BUCKET1", "example-key", "617F08299329D189"),
        ("s3/minio/webhook-shape.nsq.docs.json", "images", "gopher.jpg", "1562A792DAA53426"),
        ("s3/minio/redis.namespace.HSET-value.docs.json", "images", "myphoto.jpg", "14AFFBD1ACE5F632"),
        ("s3/moto-5.2.5-emulated/sqs_direct.0.body.json", "adapters", "team a/support-bot+v1/adapter_config.json", ""),
        (
            "s3/moto-5.2.5-emulated/sqs_via_eventbridge.0.body.json",
            "adapters",
            "team a/support-bot+v1/adapter_config.json",
            "617F08299329D189",
        ),
        ("s3/moto-5.2.5-emulated/sqs_via_sns.1.body.json", "adapters", "team a/support-bot+v1/adapter_config.json", ""),
    ],
)
def test_keys_are_decoded_as_each_sender_encodes_them(name: str, bucket: str, key: str, order: str) -> None:
    """Records are form-encoded, EventBridge is not: a plus sign and a space survive both."""
    [change] = read_changes(json.loads(payload(name)))
    assert isinstance(change, Change)
    assert (change.bucket, change.key, change.order) == (bucket, key, order)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"eventName": "s3:ObjectRemoved:Delete"}, "puts no bytes"),
        ({"eventName": "s3:ObjectCreated:PutTagging"}, "puts no bytes"),
        ({"eventName": "ObjectCreated:Future"}, "puts no bytes"),
        ({"eventVersion": "3.0"}, "Version"),
        ({"s3": {}}, "shape"),
        ({"s3": None}, "shape"),
    ],
)
def test_records_that_put_no_bytes_there_are_ignored(change: dict[str, Any], why: str) -> None:
    """Tags, deletions and versions that nobody knows yet say nothing about an adapter; other records still count."""
    told = hooks.minio("support-bot")
    [record] = told["Records"]
    reading = read(hooks.bucket({"Records": [record | change, record]}))
    assert len(reading.events) == 1
    assert why in reading.reason


def test_one_marker_triggers_and_other_objects_do_not() -> None:
    """The directory of the marker is the adapter's; configuration and weights alone ask for nothing."""
    sent = hooks.bucket(hooks.minio("team%20a/support-bot/v1", bucket_name="adapters", versionId="3"))
    rule = {"bucket": "adapters", "directory": "team a/*", "base": BASE, "name": "{parent_name}"}
    [made] = read(sent, rule).events
    assert str(made.event.adapter) == "support-bot"
    assert made.event.source == "s3://adapters/team a/support-bot/v1"
    assert made.order == "1562A792DAA53426"
    for file in ("adapter_config.json", "adapter_model.safetensors", "x_ADAPTER_READY.json"):
        assert read(hooks.bucket(hooks.minio("support-bot", file=file))).events == ()
    for other in ({"bucket": "other*", "base": BASE}, {"bucket": "*", "directory": "team b/*", "base": BASE}):
        assert read(sent, other).events == ()


def test_another_marker_and_another_place() -> None:
    """Who cannot put a marker triggers on the weights; a bucket that is mounted is read as a directory."""
    sent = hooks.bucket(hooks.minio("support-bot", file="adapter_model.safetensors"))
    rule = {
        "bucket": "*",
        "marker": "adapter_model.safetensors",
        "base": BASE,
        "source": "/mnt/{bucket}/{directory}",
    }
    assert [each[:2] for each in asked(read(sent, rule))] == [("support-bot", "/mnt/adapters/support-bot")]


def test_eventbridge_sqs_and_sns_wrap_the_same() -> None:
    """One object in each of the wrappings asks for the same, under the id that repetitions of that wrapping carry."""
    record = hooks.minio("support-bot")["Records"][0] | {"eventName": "ObjectCreated:Put", "eventVersion": "2.6"}
    bridge = json.loads(payload("s3/aws/eventbridge.ObjectCreated.docs.json"))
    bridge["detail"] |= {
        "bucket": {"name": "adapters"},
        "object": {"key": "support-bot/_ADAPTER_READY.json", "etag": "1", "sequencer": "1562A792DAA53426"},
    }
    inner = json.dumps({"Records": [record]})
    sqs = {"Records": [{"messageId": "m", "body": inner, "eventSource": "aws:sqs"}]}
    wrapped = json.loads(hooks.sns(inner).body)
    through_all = {"Records": [{"messageId": "m", "body": json.dumps(wrapped)}]}
    bodies = [json.loads(inner), bridge, sqs, wrapped, through_all]
    readings = [read(hooks.bucket(each)) for each in bodies]
    assert [[each[:2] for each in asked(reading)] for reading in readings] == [
        [("support-bot", "s3://adapters/support-bot")]
    ] * 5
    assert [reading.delivery_id for reading in readings] == ["", bridge["id"], "", wrapped["MessageId"], ""]
    assert {each.origin for reading in readings for each in reading.events} == {readings[0].events[0].origin}


def test_a_subscription_is_confirmed_where_that_is_asked_for() -> None:
    """The address is handed on for a configured topic, if it is one of Amazon SNS; otherwise a person decides."""
    url = "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&Token=t"
    sent = hooks.sns("You have chosen to subscribe", Type="SubscriptionConfirmation", SubscribeURL=url, Token="t")
    assert read(sent).confirm_url == url
    assert read(sent).events == ()
    assert read(sent, confirm_subscriptions=False).confirm_url == ""
    assert read(sent, topics=[f"{TOPIC}2"]).confirm_url == ""
    elsewhere = hooks.sns("", Type="SubscriptionConfirmation", SubscribeURL="https://169.254.169.254/", Token="t")
    assert read(elsewhere).confirm_url == ""
    leaving = hooks.sns("", Type="UnsubscribeConfirmation", SubscribeURL=url, Token="t")
    assert read(leaving).confirm_url == ""


@pytest.mark.parametrize(
    "unsigned",
    [
        hooks.minio("evil", bucket_name="evil-bucket"),
        {
            "detail-type": "Object Created",
            "detail": {"bucket": {"name": "evil"}, "object": {"key": f"e/{MARKER_FILE}"}},
        },
    ],
    ids=["Records", "detail"],
)
def test_of_a_message_of_sns_only_what_aws_signed_is_read(unsigned: dict[str, Any]) -> None:
    """Whoever has somebody's signed message may write further fields beside it; they mean nothing."""
    sent = hooks.sns(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent"}))
    forged = sent.with_body(json.dumps(json.loads(sent.body) | unsigned).encode())
    assert read(forged) == read(sent)
    assert read(forged).events == ()


def test_wrappings_without_end_are_ignored() -> None:
    """A message in a message in a message is not unwrapped for ever."""
    body = "x"
    for _ in range(8):
        body = json.dumps({"Message": body})
    assert list(read_changes(body)) == ["It is wrapped too often."]


# Own events


def test_cloudevents_binary_and_structured_say_the_same() -> None:
    """The captured event of the reference SDK asks for its registration in both modes, once by its source and id."""
    readings = []
    for mode in ("binary", "structured"):
        headers = json.loads(payload(f"cloudevents/{mode}.headers.json"))
        readings.append(read(Sent("cloudevents", payload(f"cloudevents/{mode}.body.json"), headers)))
    assert asked(readings[0]) == [("support-bot", "s3://adapters/support-bot/v1", "/lora-registry/prod adapter:42:3")]
    assert readings[0] == readings[1]
    assert readings[0].delivery_id == "/lora-registry/prod adapter:42:3"


@pytest.mark.parametrize("missing", ["id", "source", "type", "specversion"])
@pytest.mark.parametrize("structured", [True, False])
def test_a_cloudevent_without_a_required_attribute_is_refused(missing: str, structured: bool) -> None:
    """Nothing is invented for it: a made-up id would make every repetition new."""
    sent = hooks.cloud_event({"name": "a"}, structured=structured)
    if structured:
        body = json.loads(sent.body)
        del body[missing]
        sent = sent.with_body(json.dumps(body).encode())
    else:
        sent = sent.changed(**{f"ce_{missing}": None})
    assert refusal_of(sent) is hook_codes.HOOK_MALFORMED


def test_batches_and_other_versions_of_cloudevents_are_refused() -> None:
    """A batch has to be asked for, and version 2 does not exist yet."""
    sent = hooks.cloud_event({"name": "a"}, structured=True)
    assert refusal_of(sent.changed(content_type="application/cloudevents-batch+json")) is hook_codes.HOOK_MALFORMED
    other = sent.with_body(sent.body.replace(b'"1.0"', b'"2.0"'))
    assert refusal_of(other) is hook_codes.HOOK_MALFORMED


def test_data_of_a_cloudevent_may_come_as_base64() -> None:
    """So some senders encode what they do not look into."""
    told = {"name": "a", "path": "/x", "base_model": BASE, "labels": {"step": 900, "team": "data"}}
    plain = hooks.cloud_event(told, structured=True)
    attributes = json.loads(plain.body)
    encoded = base64.b64encode(json.dumps(attributes.pop("data")).encode()).decode()
    sent = plain.with_body(json.dumps(attributes | {"data_base64": encoded}).encode())
    assert read(sent) == read(plain)
    assert [each.event.labels for each in read(sent).events] == [{"step": "900", "team": "data"}]
    with pytest.raises(Refused):
        read(plain.with_body(json.dumps(attributes | {"data_base64": "no base64"}).encode()))


def test_the_mode_is_read_from_the_content_type() -> None:
    """A stray `ce-` header does not turn a structured event into a binary one."""
    sent = hooks.cloud_event({"name": "a", "path": "/x", "base_model": BASE}, structured=True).changed(ce_id="stray")
    assert read(sent).delivery_id == "/trainer event-1"


@pytest.mark.parametrize("in_data", [True, False])
def test_a_standard_webhook_may_have_its_fields_in_data(in_data: bool) -> None:
    """The specification recommends `type` and `data`; the fields alone are taken too."""
    fields = {"name": "support-bot", "source": "s3://adapters/x", "base_model": BASE, "labels": {"team": "a"}}
    reading = read(hooks.standard({"type": "adapter.saved", "data": fields} if in_data else fields))
    assert asked(reading) == [("support-bot", "s3://adapters/x", "msg_1")]
    assert reading.events[0].event.labels == {"team": "a"}


def test_the_template_for_wandb_fits_its_hook() -> None:
    """What W&B makes of the shipped template is read, and what it did not fill in counts as absent."""
    template = Path(__file__).parents[2] / "deploy" / "hooks" / "wandb-template.json"
    text = template.read_text()
    values = {
        "artifact_collection_name": "Support Bot",
        "artifact_metadata.lora_source": "s3://adapters/x",
        "artifact_metadata.lora_base_model": BASE,
        "artifact_version_string": "acme/model-registry/Support Bot:v3",
        "event_type": "ADD_ARTIFACT_ALIAS",
        "entity_name": "acme",
        "project_name": "model-registry",
        "event_author": "somebody",
    }
    for name, value in values.items():
        assert f"${{{name}}}" in text
        text = text.replace(f"${{{name}}}", value)
    [made] = read(hooks.wandb(json.loads(text)), {"senders": ["acme/*"], "types": ["ADD_*"]}).events
    assert (str(made.event.adapter), made.event.source) == ("support-bot", "s3://adapters/x")
    assert made.event.base_model == BASE
    assert read(hooks.wandb(json.loads(text)), {"senders": ["other/*"]}).events == ()
    unfilled = read(hooks.wandb(json.loads(template.read_text())))
    assert unfilled.events == ()
    assert "no place" in unfilled.reason


def test_wandbs_documented_template_is_ignored() -> None:
    """A body of another template is authentic, and about nothing that is known."""
    assert read(hooks.wandb(json.loads(payload("wandb/template.github-dispatch.docs.json")))).events == ()


def test_a_body_cannot_choose_the_namespace() -> None:
    """Whatever a sender says, its adapters stay in the namespace of the hook."""
    fields = {"name": "support-bot", "source": "/x", "base_model": BASE, "namespace": "other"}
    [made] = read(hooks.standard(fields), namespace="team").events
    assert made.event.namespace == "team"


def test_sources_that_the_rule_does_not_allow_are_ignored() -> None:
    """Where the body names the source, a rule says which ones it may name."""
    rule = {"sources": ["s3://team-a/*"]}
    for source, count in {"s3://team-a/x": 1, "s3://team-b/x": 0, "/etc": 0}.items():
        told = {"name": "a", "source": source, "base_model": BASE}
        assert len(read(hooks.standard(told), rule).events) == count


@pytest.mark.parametrize("told", [{}, {"name": 7}, {"name": "a"}, {"name": "a", "source": "/x"}, {"labels": {"a": 1}}])
def test_own_events_that_lack_something_are_ignored(told: dict[str, Any]) -> None:
    """Authentic, but nothing can be registered: the reason says what is missing."""
    reading = read(hooks.standard(told))
    assert reading.events == ()
    assert reading.reason


# All kinds


@pytest.mark.parametrize("hook", ["hub", "mlflow", "wandb", "s3", "cloudevents", "standard"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"a": NaN}', b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b"[" * 50_000],
    ids=["empty", "cut", "list", "null", "not UTF-8", "NaN", "twice", "surrogate", "deep"],
)
def test_a_body_that_is_no_json_object_is_refused(hook: str, body: bytes) -> None:
    """Every kind calls it malformed; no other error comes out."""
    genuine = hooks.cloud_event({}) if hook == "cloudevents" else Sent(hook, b"")
    assert refusal_of(genuine.with_body(body)) is hook_codes.HOOK_MALFORMED


@pytest.mark.parametrize(
    "name",
    ["token", "ACCESS_TOKEN", "client-Secret", "to\u212aen", "pas\u017fword", "opaqueData", "apiKey", "x_api_key"],
)
def test_fields_that_are_called_after_secrets_are_blotted_out(name: str) -> None:
    """Whatever the case of their letters."""
    kept = Sent("hub", json.dumps({name: "t-o-p"}, ensure_ascii=False).encode()).request.without_secrets([]).to_text()
    assert "t-o-p" not in kept


def test_what_is_kept_of_a_request_holds_no_secret() -> None:
    """Headers that prove anything are left out, and secrets in the body are blotted out; the rest reads the same."""
    body = {"name": "a", "note": f"it is {SECRET}", "access_token": "t-o-p", "tokenizer": "kept", "opaqueData": "x"}
    sent = hooks.wandb(body)
    kept = sent.request.without_secrets([SECRET]).to_text()
    assert SECRET not in kept
    assert "t-o-p" not in kept
    assert "authorization" not in kept.lower()
    assert "signature" not in kept.lower()
    again = HookRequest.from_text(kept).json()
    assert again == body | {"note": "it is ***", "access_token": "***", "opaqueData": "***"}
    assert SECRET not in repr(sent.request)
    quoted = (
        hooks.wandb({"name": "a", "note": 'it is "top" \\ sécret'})
        .request.without_secrets(['"top" \\ sécret'])
        .to_text()
    )
    assert "top" not in quoted
    event = hooks.cloud_event({"name": "a", "path": "/x", "base_model": BASE})
    reread = HookRequest.from_text(event.request.without_secrets([SECRET]).to_text())
    assert read(event) == read(Sent("cloudevents", reread.body, reread.headers))
