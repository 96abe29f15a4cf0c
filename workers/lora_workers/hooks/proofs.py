"""How a delivery proves who sent it: secrets and signatures compared in constant time, and a window against replays."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from lora_registry import hook_codes
from lora_workers.hooks.refusals import Refused

WINDOW_S: Final = 300
"""How far a signed timestamp may be from now. Source: Standard Webhooks 1.0.0, libraries' tolerance; MLflow's retries
carry the first attempt's timestamp for at most about 130 s (mlflow 3.17.2, webhooks/delivery.py)."""
Documents = Callable[[str], bytes]
"""What is at an address.

Raises:
    NotFetched: that is not known yet.
"""


class NotFetched(Exception):
    """What proves a delivery has to be fetched first; then the delivery is proved again."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url


@dataclass(frozen=True)
class Proof:
    """What a hook checks a delivery with.

    Attributes:
        secrets: any of them is right, so that a secret can be changed without a gap.
        tokens: likewise for bearer tokens, where a kind has both.
        now_s: the time, in seconds since 1970.
        documents: has the certificate that a signature names.
    """

    secrets: Sequence[bytes] = field(repr=False)
    now_s: float
    documents: Documents = field(repr=False)
    tokens: Sequence[bytes] = field(default=(), repr=False)


def check_secret(given: str, secrets: Iterable[bytes]) -> None:
    """Check a secret that was sent as it is.

    Raises:
        Refused: there is none, or it is none of `secrets`.
    """
    if not given:
        raise Refused(hook_codes.HOOK_UNAUTHENTICATED)
    if not _is_one_of(given.encode("utf-8", errors="surrogateescape"), secrets):
        raise Refused(hook_codes.HOOK_FORGED)


def check_bearer(authorization: str, secrets: Iterable[bytes]) -> None:
    """Check `Authorization: Bearer <token>`, or the token alone.

    MinIO sends a configured token of two words as it is. Source: minio, internal/event/target/webhook.go (send).

    Raises:
        Refused: there is none, or it is none of `secrets`.
    """
    scheme, _, token = authorization.strip().partition(" ")
    check_secret(token.strip() if scheme.lower() == "bearer" else authorization.strip(), secrets)


def check_signature(given: Iterable[bytes | None], signed: bytes, keys: Iterable[bytes]) -> None:
    """Check that one of the signatures `given` is the HMAC-SHA256 of `signed` under one of `keys`.

    Args:
        given: decoded signatures; None for one that cannot be decoded.
        signed: the bytes that were signed.
        keys: any of them is right.

    Raises:
        Refused: there is none, or none is right.
    """
    signatures = list(given)
    if not signatures:
        raise Refused(hook_codes.HOOK_UNAUTHENTICATED)
    right = [hmac.digest(key, signed, hashlib.sha256) for key in keys]
    if not sum(_is_one_of(each, right) for each in signatures[:20] if each):
        raise Refused(hook_codes.HOOK_FORGED)


def check_fresh(timestamp_s: float, now_s: float, *, window_s: float = WINDOW_S) -> None:
    """Check that a signed timestamp is close to now.

    Raises:
        Refused: it is not.
    """
    if abs(now_s - timestamp_s) > window_s:
        raise Refused(hook_codes.HOOK_STALE)


def parse_timestamp(text: str) -> float:
    """Seconds since 1970 as written in a header.

    Raises:
        Refused: it is no such number.
    """
    if not re.fullmatch(r"[0-9]{1,12}", text, re.ASCII):
        raise Refused(hook_codes.HOOK_FORGED, "The delivery's timestamp is no number of seconds.")
    return float(text)


def from_base64(text: str) -> bytes | None:
    """Decoded base64, or None."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def from_hex(text: str) -> bytes | None:
    """Decoded hexadecimal, or None."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


def versioned_signatures(header: str) -> list[bytes | None]:
    """Signatures of a list such as `v1,<base64> v1,<base64>`; those of other versions are left out."""
    parts = (part.partition(",") for part in header.split())
    return [from_base64(signature) for version, _, signature in parts if version == "v1"]


def _is_one_of(given: bytes, right: Iterable[bytes]) -> bool:
    # All are compared, so that the time does not tell which one it was.
    return sum(hmac.compare_digest(given, each) for each in right) > 0
