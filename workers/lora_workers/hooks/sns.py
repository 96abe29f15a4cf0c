"""Messages of Amazon SNS: signed by AWS with a key whose certificate the message names.

A signature only proves that AWS sent the message, for whomever: anybody may have a topic. So the topic must be one that
the hook names, before anything is fetched that the message asks for.
Source: Amazon SNS developer guide, sns-verify-signature-of-message and sns-message-and-json-formats.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from lora_registry import hook_codes
from lora_workers.hooks.proofs import Proof, check_fresh, from_base64
from lora_workers.hooks.refusals import Refused

WINDOW_S: Final = 3600.0
"""SNS repeats a message with its first timestamp, for an hour at most. Source: Amazon SNS developer guide,
sns-message-delivery-retries (total policy retry time)."""
CONFIRMATION: Final = "SubscriptionConfirmation"
_HOST = re.compile(r"sns\.[a-z0-9-]{1,40}\.amazonaws\.com(\.cn)?", re.ASCII)
_CERTIFICATE = re.compile(r"/SimpleNotificationService-[0-9A-Za-z]{1,64}\.pem", re.ASCII)
"""Nothing else on that host is AWS's certificate: its API answers a signed query with what anybody wrote into a topic
of his own. Source: spaceraccoon.dev, exploiting-improper-validation-amazon-simple-notification-service."""
_SIGNED: Final = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    CONFIRMATION: ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    "UnsubscribeConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}
_HASHES: Final = {"1": hashes.SHA1, "2": hashes.SHA256}


def is_message(body: Mapping[str, Any]) -> bool:
    """Whether the body is a message of SNS."""
    return body.get("Type") in _SIGNED and "TopicArn" in body


def check_message(body: Mapping[str, Any], proof: Proof, *, topics: Collection[str]) -> None:
    """Check that AWS sent the message for one of `topics`, lately.

    Raises:
        Refused: it did not, or not for them.
        NotFetched: the certificate is needed.
    """
    topic = str(body.get("TopicArn", ""))
    if topic not in topics:
        raise Refused(hook_codes.HOOK_FORGED, f"The topic {topic[:200]!r} is none that the hook names.")
    signature = from_base64(str(body.get("Signature", "")))
    url, version = str(body.get("SigningCertURL", "")), str(body.get("SignatureVersion", ""))
    if not signature or version not in _HASHES:
        raise Refused(hook_codes.HOOK_UNAUTHENTICATED, "The message has no signature of a known version.")
    if not _is_certificate_url(url):
        raise Refused(hook_codes.HOOK_FORGED, "The certificate is not to be had from Amazon SNS.")
    key = _public_key(proof.documents(url))
    try:
        key.verify(signature, signed_bytes(body), padding.PKCS1v15(), _HASHES[version]())
    except InvalidSignature:
        raise Refused(hook_codes.HOOK_FORGED) from None
    check_fresh(_parse_time(str(body.get("Timestamp", ""))), proof.now_s, window_s=WINDOW_S)


def signed_bytes(body: Mapping[str, Any]) -> bytes:
    """What SNS signs: names and values in alphabetical order, a line each; what is not there is left out."""
    fields = _SIGNED[str(body["Type"])]
    return "".join(f"{name}\n{body[name]}\n" for name in fields if body.get(name) is not None).encode()


def is_aws_url(url: str) -> bool:
    """Whether the URL is one of Amazon SNS itself, over https."""
    try:
        parts = urlsplit(url)
        is_plain = parts.port in (None, 443) and parts.username is None and parts.password is None
    except ValueError:
        return False
    return parts.scheme == "https" and is_plain and bool(_HOST.fullmatch(parts.hostname or ""))


def _is_certificate_url(url: str) -> bool:
    if not is_aws_url(url):
        return False
    parts = urlsplit(url)
    return bool(_CERTIFICATE.fullmatch(parts.path)) and not parts.query and not parts.fragment


def _public_key(certificate: bytes) -> rsa.RSAPublicKey:
    try:
        key = x509.load_pem_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refused(hook_codes.HOOK_FORGED, "The certificate cannot be read.") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise Refused(hook_codes.HOOK_FORGED, "The certificate's key is no RSA key.")
    return key


def _parse_time(text: str) -> float:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise Refused(hook_codes.HOOK_FORGED, "The message's timestamp is no time.") from None
