"""Notifications of S3 and its likes as one shape: which object was created.

Three bodies mean the same: `Records` (AWS through SQS or SNS, MinIO, Ceph; keys are form-encoded), an EventBridge event
(keys are as they are) and either of them as the `Message` of SNS or the `body` of SQS.
Source: Amazon S3 user guide, notification-content-structure and ev-events; minio, internal/event; ceph,
doc/radosgw/s3-notification-compatibility.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_plus

from pydantic import BaseModel, Field, ValidationError

from lora_registry.strict_json import StrictJsonError, load_object
from lora_workers.hooks.hook import known_shape
from lora_workers.hooks.refusals import Ignored

_CREATED: Final = {
    f"ObjectCreated:{how}" for how in ("Put", "Copy", "Post", "CompleteMultipartUpload", "MultipartUpload")
}
"""The others of that family, such as PutTagging, say nothing about bytes."""
_LONGEST_LIST: Final = 1000
_DEEPEST: Final = 3


@dataclass(frozen=True)
class Change:
    """One object that was created.

    Attributes:
        bucket, key: where.
        content: version, ETag and place in the order: what these bytes are known by.
        order: `sequencer`, which grows with each change of the same key; empty if there is none.
    """

    bucket: str
    key: str
    content: str
    order: str = ""


class _Bucket(BaseModel):
    name: str = Field(min_length=3, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")


class _Object(BaseModel):
    key: str = Field(min_length=1)
    versionId: str | None = None
    eTag: str | None = None
    sequencer: str | None = None


class _S3(BaseModel):
    bucket: _Bucket
    object: _Object


class _Record(BaseModel):
    eventVersion: str = ""
    eventName: str
    eventTime: str = ""
    s3: _S3


class _BridgeObject(BaseModel):
    key: str = Field(min_length=1)
    version_id: str | None = Field(default=None, alias="version-id")
    etag: str | None = None
    sequencer: str | None = None


class _Detail(BaseModel):
    bucket: _Bucket
    object: _BridgeObject


class _Bridge(BaseModel):
    time: str = ""
    kind: str = Field(alias="detail-type")
    detail: _Detail


def read_changes(body: Any, *, depth: int = 0) -> Iterator[Change | str]:
    """What a notification says: the objects that were created, and why the rest of it is nothing to look at."""
    try:
        if depth > _DEEPEST:
            raise Ignored("It is wrapped too often.")
        yield from _read(body, depth)
    except Ignored as error:
        yield error.message


def _read(body: Any, depth: int) -> Iterator[Change | str]:
    if isinstance(body, str):
        try:
            body = load_object(body.encode())
        except StrictJsonError:
            raise Ignored("The message is no notification of a bucket.") from None
    if not isinstance(body, dict):
        raise Ignored("The message is no notification of a bucket.")
    if body.get("Event") == "s3:TestEvent":
        raise Ignored("This is S3's test of the notification.")
    if "detail-type" in body:
        yield _bridge(known_shape(_Bridge, body))
    elif isinstance(body.get("Records"), list):
        for record in body["Records"][:_LONGEST_LIST]:
            if isinstance(record, dict) and isinstance(record.get("body"), str) and "s3" not in record:
                yield from read_changes(record["body"], depth=depth + 1)
            else:
                yield _record_or_reason(record)
    elif isinstance(body.get("Message"), str):
        yield from read_changes(body["Message"], depth=depth + 1)
    else:
        raise Ignored("The message is no notification of a bucket.")


def _record_or_reason(record: Any) -> Change | str:
    try:
        return _record(_Record.model_validate(record))
    except ValidationError:
        return "A record has a shape that is not known."


def _record(record: _Record) -> Change | str:
    if record.eventVersion.partition(".")[0] not in ("", "2"):
        return f"Version {record.eventVersion[:20]!r} of the notification is not known."
    if record.eventName.removeprefix("s3:") not in _CREATED:
        return f"{record.eventName[:100]!r} puts no bytes there."
    what = record.s3.object
    return _change(
        record.s3.bucket.name,
        unquote_plus(what.key),
        (what.versionId, what.eTag, what.sequencer),
        what.sequencer,
        record.eventTime,
    )


def _bridge(event: _Bridge) -> Change | str:
    if event.kind != "Object Created":
        return f"{event.kind[:100]!r} puts no bytes there."
    what = event.detail.object
    return _change(
        event.detail.bucket.name, what.key, (what.version_id, what.etag, what.sequencer), what.sequencer, event.time
    )


def _change(bucket: str, key: str, known_by: tuple[str | None, ...], sequencer: str | None, time: str) -> Change:
    content = " ".join(each or "" for each in known_by) if any(known_by) else time
    order = (sequencer or "").upper()
    if not re.fullmatch(r"[0-9A-F]{1,64}", order, re.ASCII):
        order = ""
    return Change(bucket, key, content, order)
