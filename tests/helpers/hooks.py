"""Webhooks as their senders make them: the payloads of tests/payloads/hooks, signed with secrets of tests."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from lora_registry.errors import Transient
from lora_registry.hook_deliveries import HookDeliveries
from lora_registry.settings import Settings
from lora_workers.gateway import problems
from lora_workers.gateway.services import open_services
from lora_workers.gateway.webhooks import hook_router
from lora_workers.hooks.request import HookRequest
from lora_workers.hooks.sns import signed_bytes

PAYLOADS = Path(__file__).parents[1] / "payloads" / "hooks"
SECRET = "a-secret-of-the-tests"
STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TOPIC = "arn:aws:sns:us-east-1:123456789012:adapters"
CERTIFICATE_URL = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0123.pem"
NOW_S = 1_795_462_100.0
"""About when the deliveries of MLflow in the payloads were captured."""

CONFIG_FIRST = "config-first"
"""Directory whose uploads have no marker: their configuration is what asks."""

RULES: dict[str, dict[str, Any]] = {
    "hub": {
        "kind": "huggingface",
        "secrets": ["env:HOOK_SECRET"],
        "rules": [{"repo": "*", "refs": ["refs/heads/main", "refs/tags/*"], "base": "tiny-llama"}],
    },
    "mlflow": {
        "kind": "mlflow",
        "secrets": ["env:HOOK_SECRET"],
        "rules": [{"model": "*", "aliases": ["champion"], "created": True, "base": "tiny-llama"}],
    },
    "wandb": {"kind": "wandb", "secrets": ["env:HOOK_SECRET"], "tokens": ["env:HOOK_TOKEN"], "rules": [{}]},
    "s3": {
        "kind": "s3",
        "secrets": ["env:HOOK_SECRET"],
        "topics": [TOPIC],
        "confirm_subscriptions": True,
        "opaque_data": True,
        "rules": [
            {"bucket": "*", "directory": f"{CONFIG_FIRST}/*", "marker": "adapter_config.json", "base": "tiny-llama"},
            {"bucket": "*", "base": "tiny-llama"},
        ],
    },
    "cloudevents": {"kind": "cloudevents", "secrets": ["env:HOOK_SECRET"], "rules": [{}]},
    "standard": {"kind": "standard-webhooks", "secrets": ["env:HOOK_STANDARD_SECRET"], "rules": [{}]},
}
"""One hook of each kind, whose rules take everything."""
SECRETS = {"HOOK_SECRET": SECRET, "HOOK_TOKEN": "a-token-of-the-tests", "HOOK_STANDARD_SECRET": STANDARD_SECRET}
"""The environment variables that they refer to."""


def payload(name: str) -> bytes:
    """The bytes of a payload file."""
    return (PAYLOADS / name).read_bytes()


def write_hooks(path: Path, hooks: Mapping[str, Any] = RULES) -> Path:
    """Write a hooks file."""
    path.write_text(json.dumps({"hooks": hooks}))
    return path


@dataclass(frozen=True)
class Sent:
    """One delivery as it goes over the wire."""

    hook: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def request(self) -> HookRequest:
        """What the hook sees."""
        return HookRequest({name.lower(): value for name, value in self.headers.items()}, self.body)

    def changed(self, **headers: str | None) -> Sent:
        """The same with other headers; None leaves one out, and `_` in a name stands for `-`."""
        named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        kept = {name.lower(): value for name, value in self.headers.items()} | named
        return Sent(self.hook, self.body, {name: value for name, value in kept.items() if value is not None})

    def with_body(self, body: bytes) -> Sent:
        """The same headers over another body."""
        return Sent(self.hook, body, self.headers)


def hub(body: bytes | dict[str, Any], *, delivery_id: str | None = "delivery-1", secret: str = SECRET) -> Sent:
    """A delivery of the Hub."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"X-Webhook-Secret": secret, "Content-Type": "application/json"}
    return Sent("hub", raw, headers | ({"Webhook-Id": delivery_id} if delivery_id else {}))


def hub_push(
    repo: str, *, sha: str | None, old: str | None = None, ref: str = "refs/heads/main", head: str = "0" * 40
) -> dict[str, Any]:
    """The Hub's payload about one moved ref."""
    told: dict[str, Any] = json.loads(
        payload("huggingface/repo.content.update.main-and-tag.assembled-from-hub-docs.json")
    )
    told["repo"] |= {"name": repo, "headSha": head}
    told["updatedRefs"] = [{"ref": ref, "oldSha": old, "newSha": sha}]
    return told


def mlflow(body: bytes | dict[str, Any], *, delivery_id: str = "delivery-1", at_s: float = NOW_S) -> Sent:
    """A delivery of MLflow, signed."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    stamp = str(int(at_s))
    signature = _hmac(SECRET.encode(), f"{delivery_id}.{stamp}.".encode() + raw)
    headers = {
        "Content-Type": "application/json",
        "X-MLflow-Delivery-Id": delivery_id,
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": f"v1,{signature}",
    }
    return Sent("mlflow", raw, headers)


def wandb(body: dict[str, Any]) -> Sent:
    """A delivery of W&B, signed, with its access token."""
    raw = json.dumps(body).encode()
    token = f"Bearer {SECRETS['HOOK_TOKEN']}"
    return Sent("wandb", raw, {"Authorization": token, "X-Wandb-Signature": _hmac(SECRET.encode(), raw)})


def bucket(body: bytes | dict[str, Any]) -> Sent:
    """A notification with a bearer token, as MinIO and EventBridge send it."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Sent("s3", raw, {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"})


def minio(directory: str, *, bucket_name: str = "adapters", file: str = "_ADAPTER_READY.json", **of_object: Any) -> Any:
    """MinIO's payload about one object."""
    told = json.loads(payload("s3/minio/webhook-shape.nsq.docs.json"))
    record = told["Records"][0]["s3"]
    record["bucket"]["name"] = bucket_name
    record["object"] |= {"key": f"{directory}/{file}"} | of_object
    return told


def cloud_event(data: Any, *, event_id: str = "event-1", structured: bool = False) -> Sent:
    """A CloudEvent with a bearer token."""
    attributes = {"specversion": "1.0", "id": event_id, "source": "/trainer", "type": "com.example.adapter.saved"}
    headers = {"Authorization": f"Bearer {SECRET}"}
    if structured:
        headers["Content-Type"] = "application/cloudevents+json"
        return Sent("cloudevents", json.dumps(attributes | {"data": data}).encode(), headers)
    headers |= {"Content-Type": "application/json"} | {f"ce-{name}": value for name, value in attributes.items()}
    return Sent("cloudevents", json.dumps(data).encode(), headers)


def standard(body: bytes | dict[str, Any], *, event_id: str = "msg_1", at_s: float = NOW_S) -> Sent:
    """A Standard Webhook, signed."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    stamp, key = str(int(at_s)), base64.b64decode(STANDARD_SECRET.removeprefix("whsec_"))
    signature = _hmac(key, f"{event_id}.{stamp}.".encode() + raw)
    headers = {"webhook-id": event_id, "webhook-timestamp": stamp, "webhook-signature": f"v1,{signature}"}
    return Sent("standard", raw, headers | {"Content-Type": "application/json"})


def sns(message: str, *, at_s: float = NOW_S, version: str = "2", **fields: str) -> Sent:
    """A message of SNS, signed with the key of `certificate`."""
    at = datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    body = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": TOPIC,
        "Message": message,
        "Timestamp": at,
        "SignatureVersion": version,
        "SigningCertURL": CERTIFICATE_URL,
    } | fields
    algorithm = hashes.SHA1() if version == "1" else hashes.SHA256()
    signature = _key().sign(signed_bytes(body), padding.PKCS1v15(), algorithm)
    body["Signature"] = base64.b64encode(signature).decode()
    headers = {"Content-Type": "text/plain; charset=UTF-8", "x-amz-sns-message-type": body["Type"]}
    return Sent("s3", json.dumps(body).encode(), headers)


@cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def certificate() -> bytes:
    """A certificate of the key that `sns` signs with."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(_key().public_key())
    made = (
        made.serial_number(1).not_valid_before(datetime.now(UTC)).not_valid_after(datetime.now(UTC) + timedelta(days=1))
    )
    return made.sign(_key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Aws:
    """What stands for Amazon SNS: it hands out the certificate and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_away = False
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, url: str) -> bytes:
        """A certificate."""
        return self.visit(url)

    def kept(self, _url: str) -> bytes | None:
        """A certificate that was handed out before: it keeps none."""
        return None

    def visit(self, url: str) -> bytes:
        """A page."""
        self.asked.append(url)
        self.may_answer.wait(30)
        if self.is_away:
            raise Transient("Amazon SNS is out of reach")
        return certificate()


class Gateway:
    """A gateway in the test's own process that has only hooks; use it in a `with`."""

    def __init__(self, settings: Settings) -> None:
        self.aws = Aws()
        self.now_s = NOW_S
        services = open_services(settings, on_loopback=True)

        @asynccontextmanager
        async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
            yield
            await services.close()

        app = FastAPI(lifespan=lifespan)
        problems.install(app)
        app.include_router(hook_router(services, fetcher=self.aws, clock=lambda: self.now_s))
        self.http = TestClient(app, raise_server_exceptions=True)
        self.deliveries = HookDeliveries(services.client, settings)

    def __enter__(self) -> Gateway:
        self.http.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.http.__exit__()

    def post(self, sent: Sent) -> Response:
        """Deliver; the answer."""
        return self.http.post(f"/v1/webhooks/{sent.hook}", content=sent.body, headers=dict(sent.headers))

    def verdict(self, sent: Sent) -> str:
        """Deliver; what the answer calls it."""
        answer = self.post(sent)
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["verdict"])


def _hmac(key: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
