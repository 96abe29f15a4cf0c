from __future__ import annotations

import base64
import json

import pytest
from tests.helpers import hooks
from tests.helpers.hooks import NOW_S, RULES, SECRET, SECRETS, STANDARD_SECRET, Sent, certificate, payload

from lora_registry import hook_codes
from lora_workers.hooks import sns
from lora_workers.hooks.configuration import HooksFile
from lora_workers.hooks.hook import Hook
from lora_workers.hooks.proofs import NotFetched, Proof, check_secret, from_base64, versioned_signatures
from lora_workers.hooks.refusals import Refused

HOOKS: dict[str, Hook] = dict(HooksFile.model_validate({"hooks": RULES}).hooks)
OTHER = "another-secret-of-the-tests"
OBJECT = {"name": "support-bot", "source": "/adapters/support-bot", "base_model": "tiny-llama"}


def prove(sent: Sent, *, now_s: float = NOW_S, secrets: tuple[str, ...] | None = None, fetch: object = None) -> None:
    """Check a delivery as the gateway does."""
    known = secrets or ((STANDARD_SECRET,) if sent.hook == "standard" else (SECRET,))
    get = fetch or (lambda url: certificate())
    proof = Proof(
        tuple(each.encode() for each in known),
        now_s,
        get,
        tokens=(SECRETS["HOOK_TOKEN"].encode(),),  # type: ignore[arg-type]
    )
    HOOKS[sent.hook].prove(sent.request, proof)


def refusal(sent: Sent, **options: object) -> object:
    """The code that a delivery is refused with."""
    with pytest.raises(Refused) as refused:
        prove(sent, **options)  # type: ignore[arg-type]
    assert SECRET not in str(refused.value)
    return refused.value.why


def captured(name: str) -> Sent:
    """A delivery of a real MLflow server, as it was captured."""
    headers = json.loads(payload(f"mlflow/{name}.headers.json"))["headers"]
    return Sent("mlflow", payload(f"mlflow/{name}.body.json"), headers)


MLFLOW = sorted(path.name.removesuffix(".headers.json") for path in hooks.PAYLOADS.glob("mlflow/*.headers.json"))
MLFLOW_SECRET = json.loads(payload("mlflow/_signing.json"))["secret"]
GENUINE = {
    "hub": hooks.hub(hooks.hub_push("acme/support-bot", sha="1" * 40)),
    "mlflow": hooks.mlflow(payload("mlflow/model_version.created.body.json")),
    "wandb": hooks.wandb(OBJECT),
    "minio": hooks.bucket(hooks.minio("support-bot")),
    "sns, SHA-1": hooks.sns("{}", version="1"),
    "sns, SHA-256": hooks.sns("{}", version="2", Subject="about an adapter"),
    "cloudevents": hooks.cloud_event(OBJECT),
    "cloudevents, structured": hooks.cloud_event(OBJECT, structured=True),
    "standard": hooks.standard(OBJECT),
}


@pytest.mark.parametrize("sent", GENUINE.values(), ids=GENUINE)
def test_a_genuine_delivery_is_taken(sent: Sent) -> None:
    """Each kind accepts what a sender who knows the secret makes."""
    prove(sent)


@pytest.mark.parametrize("name", MLFLOW)
def test_deliveries_of_a_real_mlflow_server_are_taken(name: str) -> None:
    """The signatures that a real server made are right, and under another secret wrong."""
    sent = captured(name)
    prove(sent, secrets=(MLFLOW_SECRET,), now_s=float(sent.headers["X-MLflow-Timestamp"]) + 90)
    assert refusal(sent, secrets=(OTHER,)) is hook_codes.HOOK_FORGED


def test_the_vector_of_standard_webhooks_is_taken() -> None:
    """The specification's example, signed by its reference library, is right."""
    vector = json.loads(payload("standardwebhooks/vector.json"))
    headers = {name: value for name, value in vector.items() if name.startswith("webhook-")}
    sent = Sent("standard", vector["body"].encode(), headers)
    prove(sent, secrets=(vector["secret"],), now_s=float(vector["webhook-timestamp"]))


@pytest.mark.parametrize("encoding", ["base64_(docs script)", "hex_(third-party receivers)"])
def test_both_encodings_of_a_wandb_signature_are_taken(encoding: str) -> None:
    """W&B's own script and public receivers disagree on the encoding, so both are right."""
    vector = json.loads(payload("wandb/signature-vector.json"))
    signature = vector[f"X-Wandb-Signature_{encoding}"]
    sent = Sent("wandb", vector["body"].encode(), hooks.wandb({}).headers).changed(x_wandb_signature=signature)
    prove(sent, secrets=(vector["secret"],))


@pytest.mark.parametrize("sent", GENUINE.values(), ids=GENUINE)
def test_a_delivery_without_proof_is_unauthenticated(sent: Sent) -> None:
    """Without secret and signature the sender is told to bring one."""
    bare = sent.changed(
        x_webhook_secret=None,
        authorization=None,
        x_mlflow_signature=None,
        x_wandb_signature=None,
        webhook_signature=None,
    )
    if sent.headers.get("x-amz-sns-message-type"):
        bare = bare.with_body(json.dumps(json.loads(bare.body) | {"Signature": ""}).encode())
    assert refusal(bare) is hook_codes.HOOK_UNAUTHENTICATED


@pytest.mark.parametrize("sent", GENUINE.values(), ids=GENUINE)
def test_a_delivery_under_another_secret_is_forged(sent: Sent) -> None:
    """Who knows another secret is refused; with signatures that holds for every byte of the body, too."""
    if sent.headers.get("x-amz-sns-message-type"):
        forged = sent.with_body(json.dumps(json.loads(sent.body) | {"Message": "other"}).encode())
        assert refusal(forged) is hook_codes.HOOK_FORGED
        return
    assert refusal(sent, secrets=("whsec_" + base64.b64encode(OTHER.encode()).decode(),)) is hook_codes.HOOK_FORGED
    if sent.hook in ("mlflow", "standard", "wandb"):
        assert refusal(sent.with_body(sent.body + b" ")) is hook_codes.HOOK_FORGED


@pytest.mark.parametrize("hook", ["mlflow", "standard"])
@pytest.mark.parametrize("header", ["id", "timestamp"])
def test_what_is_signed_beside_the_body_counts(hook: str, header: str) -> None:
    """Another id or timestamp makes the signature wrong: neither a replay can look new, nor an old one fresh."""
    sent = GENUINE[hook]
    name = {"id": "x_mlflow_delivery_id", "timestamp": "x_mlflow_timestamp"} if hook == "mlflow" else {}
    changed = sent.changed(**{name.get(header, f"webhook_{header}"): str(int(NOW_S) + 1)})
    assert refusal(changed) is hook_codes.HOOK_FORGED


@pytest.mark.parametrize("hook", ["mlflow", "standard"])
@pytest.mark.parametrize("late_s", [301, -301])
def test_an_old_delivery_is_stale(hook: str, late_s: int) -> None:
    """A right signature from more than five minutes ago, or from the future, is refused; within them it is taken."""
    sent = GENUINE[hook]
    assert refusal(sent, now_s=NOW_S + late_s) is hook_codes.HOOK_STALE
    prove(sent, now_s=NOW_S + late_s * 299 / 301)


def test_a_message_of_sns_may_be_an_hour_old() -> None:
    """SNS repeats a message for up to an hour with its first timestamp; after that it is stale."""
    prove(GENUINE["sns, SHA-256"], now_s=NOW_S + 3500)
    assert refusal(GENUINE["sns, SHA-256"], now_s=NOW_S + 3700) is hook_codes.HOOK_STALE


def test_any_of_several_secrets_is_right() -> None:
    """While a secret is being replaced, the old and the new one are taken, and no third."""
    for sent in (GENUINE["hub"], GENUINE["mlflow"], GENUINE["minio"]):
        prove(sent, secrets=(OTHER, SECRET))
        assert refusal(sent, secrets=(OTHER, OTHER + "2")) is hook_codes.HOOK_FORGED


def test_wandb_needs_all_that_is_configured() -> None:
    """With a secret and a token configured, a delivery that has only one of them is refused."""
    assert refusal(GENUINE["wandb"].changed(authorization=None)) is hook_codes.HOOK_UNAUTHENTICATED
    assert refusal(GENUINE["wandb"].changed(authorization="Bearer x")) is hook_codes.HOOK_FORGED
    assert refusal(GENUINE["wandb"].changed(x_wandb_signature="00")) is hook_codes.HOOK_FORGED


def test_a_token_of_two_words_comes_as_it_is() -> None:
    """MinIO sends a configured token with a space in it without `Bearer`."""
    sent = GENUINE["minio"].changed(authorization="Basic bWluaW8=")
    prove(sent, secrets=("Basic bWluaW8=",))
    assert refusal(sent) is hook_codes.HOOK_FORGED


def test_ceph_sends_the_secret_in_each_record() -> None:
    """Where `opaque_data` is allowed, every record must bring the secret; one without it spoils the delivery."""
    told = hooks.minio("support-bot")
    record = told["Records"][0]
    right = Sent("s3", json.dumps({"Records": [record | {"opaqueData": SECRET}]}).encode())
    prove(right)
    mixed = Sent("s3", json.dumps({"Records": [record | {"opaqueData": SECRET}, record]}).encode())
    assert refusal(mixed) is hook_codes.HOOK_UNAUTHENTICATED
    wrong = Sent("s3", json.dumps({"Records": [record | {"opaqueData": OTHER}]}).encode())
    assert refusal(wrong) is hook_codes.HOOK_FORGED
    assert refusal(Sent("s3", b'{"Records": []}')) is hook_codes.HOOK_UNAUTHENTICATED


def never(url: str) -> bytes:
    """Fails the test that fetches."""
    raise AssertionError(f"fetched {url}")


def test_a_topic_that_nobody_named_is_refused_before_anything_is_fetched() -> None:
    """AWS signs for every customer, so a right signature for another topic proves nothing."""
    sent = hooks.sns("{}", TopicArn="arn:aws:sns:us-east-1:999999999999:somebody-elses")
    assert refusal(sent, fetch=never) is hook_codes.HOOK_FORGED


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.us-east-1.amazonaws.com/SimpleNotificationService-0123.pem",
        "https://sns.us-east-1.amazonaws.com.evil.example/SimpleNotificationService-0123.pem",
        "https://evil.example/sns.us-east-1.amazonaws.com/SimpleNotificationService-0123.pem",
        "https://sns.us-east-1.amazonaws.com@evil.example/SimpleNotificationService-0123.pem",
        "https://evil.example#sns.us-east-1.amazonaws.com/SimpleNotificationService-0123.pem",
        "https://sns.us-east-1.amazonaws.com:8443/SimpleNotificationService-0123.pem",
        "https://sns.us-east-1.amazonaws.com:x/SimpleNotificationService-0123.pem",
        "https://s3.us-east-1.amazonaws.com/evil/c.pem",
        "https://sns.us-east-1.evil.amazonaws.com/SimpleNotificationService-0123.pem",
        "https://sns.us-east-1.amazonaws.com/c.txt",
        "https://sns.us-east-1.amazonaws.com/c.pem",
        f"{hooks.CERTIFICATE_URL}?Action=GetTopicAttributes&X-Amz-Signature=0",
        "https://sns.us-east-1.amazonaws.com/x/..%2fSimpleNotificationService-0123.pem",
        "https://sns.us-east-1.amazonaws.com/?Action=GetTopicAttributes&TopicArn=evil&x=.pem",
        "https://169.254.169.254/SimpleNotificationService-0123.pem",
        "https://[::1/SimpleNotificationService-0123.pem",
        "file:///etc/passwd.pem",
        "",
    ],
)
def test_a_certificate_from_elsewhere_is_not_fetched(url: str) -> None:
    """Only Amazon SNS itself is asked, over https, and only for what can be no answer that somebody else wrote."""
    assert refusal(hooks.sns("{}", SigningCertURL=url), fetch=never) is hook_codes.HOOK_FORGED


@pytest.mark.parametrize(
    "got", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_a_certificate_that_is_none_is_refused(got: bytes) -> None:
    """What cannot be read proves nothing."""
    assert refusal(GENUINE["sns, SHA-256"], fetch=lambda url: got) is hook_codes.HOOK_FORGED


def test_a_certificate_that_has_to_be_fetched_is_asked_for() -> None:
    """Nothing is refused for it, and nothing is proved without it."""

    def unknown(url: str) -> bytes:
        raise NotFetched(url)

    with pytest.raises(NotFetched) as needed:
        prove(GENUINE["sns, SHA-256"], fetch=unknown)
    assert needed.value.url == hooks.CERTIFICATE_URL


@pytest.mark.parametrize("name", ["sns.notification.http.docs.json", *(f"sqs_via_sns.{n}.body.json" for n in range(4))])
def test_what_documents_and_emulators_sign_is_not_aws(name: str) -> None:
    """The documentation's signature is a placeholder and moto's its own: with a certificate of ours they are forged."""
    folder = "aws" if name.startswith("sns") else "moto-5.2.5-emulated"
    body = json.loads(payload(f"s3/{folder}/{name}")) | {"TopicArn": hooks.TOPIC}
    assert refusal(Sent("s3", json.dumps(body).encode())) is hook_codes.HOOK_FORGED


def test_what_sns_signs() -> None:
    """Name and value of each field on lines of their own, in the order of the developer guide; no subject, no lines."""
    body = json.loads(payload("s3/aws/sns.notification.http.docs.json"))
    assert sns.signed_bytes(body).decode().splitlines() == [
        *("Message", "Hello world!"),
        *("MessageId", "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324"),
        *("Subject", "My First Message"),
        *("Timestamp", "2012-05-02T00:54:06.655Z"),
        *("TopicArn", "arn:aws:sns:us-west-2:123456789012:MyTopic"),
        *("Type", "Notification"),
    ]
    del body["Subject"]
    assert b"Subject" not in sns.signed_bytes(body)


@pytest.mark.parametrize(
    "given",
    ["ü", "\udcff", "a" * 100_000, " ", "Bearer", "\x00"],
    ids=["latin", "lone", "long", "blank", "bare", "nul"],
)
def test_odd_secrets_are_refused_and_nothing_else(given: str) -> None:
    """A secret of any characters is compared as bytes."""
    with pytest.raises(Refused):
        check_secret(given, [SECRET.encode()])


@pytest.mark.parametrize("header", ["", "v1", "v1,", "v1,%%%", "v2,AAAA", "v1a,AAAA", ", , ,", "v1,ä", "AAAA"])
@pytest.mark.parametrize("hook", ["mlflow", "standard"])
def test_signatures_that_cannot_be_read_are_refused(hook: str, header: str) -> None:
    """No form of the header is an error of the gateway's."""
    name = "x_mlflow_signature" if hook == "mlflow" else "webhook_signature"
    assert refusal(GENUINE[hook].changed(**{name: header})) in (
        hook_codes.HOOK_UNAUTHENTICATED,
        hook_codes.HOOK_FORGED,
    )


@pytest.mark.parametrize("stamp", ["", "soon", "-1", "1e9", "٣", "9" * 400, "nan"])
def test_a_signed_timestamp_that_is_no_number_is_refused(stamp: str) -> None:
    """Even with a right signature over it."""
    sent = GENUINE["standard"]
    key = from_base64(STANDARD_SECRET.removeprefix("whsec_")) or b""
    signature = hooks._hmac(key, b".".join([b"msg_1", stamp.encode(), sent.body]))
    refused = refusal(sent.changed(webhook_timestamp=stamp, webhook_signature=f"v1,{signature}"))
    assert refused in (hook_codes.HOOK_FORGED, hook_codes.HOOK_STALE)


def test_one_of_several_signatures_is_enough() -> None:
    """A sender that is changing its secret sends a signature under each; other versions are passed over."""
    sent = GENUINE["standard"]
    right = sent.headers["webhook-signature"]
    prove(sent.changed(webhook_signature=f"v1a,AAAA v1,AAAA {right}"))
    assert len(versioned_signatures(f"v1a,AAAA {right}")) == 1
