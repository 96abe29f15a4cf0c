"""Notifications of buckets: AWS (through SNS, EventBridge or SQS), MinIO and Ceph.

An upload of a directory is many events, and the one about the configuration comes seconds before the weights are there.
So a rule waits for one object that is put last, `_ADAPTER_READY.json` unless it says otherwise; all other objects are
ignored. Who puts none can trigger on the weights' name and leave the rest to the resolve stage, which waits for
incomplete uploads.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import StringConstraints, model_validator

from lora_registry import hook_codes
from lora_registry.hook_events import HookEvent
from lora_registry.namespaces import CredentialName
from lora_registry.ready_marker import MARKER_FILE
from lora_workers.hooks import sns
from lora_workers.hooks.hook import Hook, Reading, Rule, Statement, gather
from lora_workers.hooks.proofs import Proof, check_bearer, check_secret
from lora_workers.hooks.refusals import Ignored, Refused
from lora_workers.hooks.request import HookRequest
from lora_workers.hooks.s3_changes import Change, read_changes
from lora_workers.hooks.templates import Glob, matches

WatchedPrefix = Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^*?]*)?$")]


class S3Rule(Rule):
    """Which objects are meant.

    Attributes:
        bucket: pattern of the bucket's name.
        directory: pattern of the directory in which the marker lies; empty for the bucket itself.
        marker: name of the object that is put last.
    """

    PLACEHOLDERS: ClassVar = frozenset({"bucket", "directory", "directory_name", "parent_name", "in_directory"})
    THING: ClassVar = "directory"

    bucket: Glob
    directory: Annotated[str, StringConstraints(max_length=500)] = "*"
    marker: Annotated[str, StringConstraints(min_length=1, pattern=r"^[^/]+$")] = MARKER_FILE
    name: str = "{directory_name}"
    source: str = "s3://{bucket}{in_directory}"


class S3Hook(Hook):
    """A hook of buckets.

    Attributes:
        topics: ARNs of SNS topics whose messages are taken; AWS signs them, and no secret is needed.
        confirm_subscriptions: whether a subscription of one of them is confirmed by itself.
        opaque_data: whether the secret comes as `opaqueData` in each record, which is where a Ceph topic has it.
        watch: buckets and prefixes that `resync` looks through: `s3://bucket/prefix`.
        credential: name of the credential to look with.
    """

    kind: Literal["s3"] = "s3"
    topics: tuple[Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:sns:[^:]+:[0-9]+:[^:]+$")], ...] = ()
    confirm_subscriptions: bool = False
    opaque_data: bool = False
    watch: tuple[WatchedPrefix, ...] = ()
    credential: CredentialName = ""
    rules: tuple[S3Rule, ...] = ()

    @model_validator(mode="after")
    def _check_proof(self) -> S3Hook:
        if not self.secrets and not self.topics and not self.watch:
            raise ValueError("give secrets, topics, or both")
        return self

    def prove(self, request: HookRequest, proof: Proof) -> None:
        """See `Hook.prove`: a bearer token, a signature of SNS, or a secret in each record, where that is allowed."""
        authorization = request.header("authorization")
        if authorization or not (self.topics or self.opaque_data):
            return check_bearer(authorization, proof.secrets)
        body = request.json()
        if self.topics and sns.is_message(body):
            return sns.check_message(body, proof, topics=self.topics)
        if not self.opaque_data:
            raise Refused(hook_codes.HOOK_UNAUTHENTICATED)
        records = body.get("Records")
        if not isinstance(records, list) or not records:
            raise Refused(hook_codes.HOOK_UNAUTHENTICATED)
        for record in records:
            check_secret(_opaque_data(record), proof.secrets)
        return None

    def read(self, request: HookRequest, *, quiet_s: float) -> Reading:
        """See `Hook.read`; SNS and EventBridge give ids, which their repetitions carry."""
        body = request.json()
        delivery_id = str(body.get("MessageId") or (body.get("id") if "detail-type" in body else "") or "")
        if sns.is_message(body) and body["Type"] != "Notification":
            return self._subscription(body, delivery_id)
        told = body["Message"] if sns.is_message(body) else body  # of a message of SNS, only what AWS signed counts
        said = [self._of(each, quiet_s) if isinstance(each, Change) else each for each in read_changes(told)]
        return Reading(delivery_id, *gather(said, nothing="No object was created."))

    def _subscription(self, body: dict[str, Any], delivery_id: str) -> Reading:
        url, topic = str(body.get("SubscribeURL", "")), str(body["TopicArn"])
        is_asked = body["Type"] == sns.CONFIRMATION and topic in self.topics and sns.is_aws_url(url)
        if is_asked and self.confirm_subscriptions:
            return Reading(delivery_id, reason=f"The subscription of {topic} was confirmed.", confirm_url=url)
        return Reading(delivery_id, reason=f"{body['Type']} of {topic[:300]}: confirm it by hand, or not.")

    def _of(self, change: Change, quiet_s: float) -> HookEvent | str:
        directory, _, file = change.key.rpartition("/")
        rule = next((each for each in self.rules if _fits(each, change.bucket, directory, file)), None)
        if rule is None:
            return f"No rule is about {file[:100]!r} in {change.bucket}/{directory[:300]}."
        parts = directory.split("/")
        names = {
            "bucket": change.bucket,
            "directory": directory,
            "directory_name": parts[-1] or change.bucket,
            "parent_name": parts[-2] if len(parts) > 1 else change.bucket,
            "in_directory": f"/{directory}" if directory else "",
        }
        # The marker holds the digests of what it stands for. Whatever else asks says nothing of the other files.
        content = f"etag:{change.etag}" if rule.marker == MARKER_FILE and change.etag else change.content
        try:
            return rule.event(Statement(names, content, change.order), namespace=self.namespace, quiet_s=quiet_s)
        except Ignored as error:
            return error.message


def _fits(rule: S3Rule, bucket: str, directory: str, file: str) -> bool:
    return file == rule.marker and matches(bucket, [rule.bucket]) and matches(directory, [rule.directory])


def _opaque_data(record: Any) -> str:
    found = record.get("opaqueData") if isinstance(record, dict) else None
    return found if isinstance(found, str) else ""
