"""CloudEvents 1.0 over HTTP, binary and structured, whose data holds the fields of `OwnEvent`.

An envelope of our own, because the SDK invents an id and a time where the sender forgot them, so that every retry would
be new. Source: cloudevents/spec, bindings/http-protocol-binding.md; cloudevents 2.2.0 as measured.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_registry.events import describe_validation_error
from lora_workers.hooks.hook import Hook, Reading
from lora_workers.hooks.own_events import OwnRule, own_event
from lora_workers.hooks.proofs import Proof, check_bearer, from_base64
from lora_workers.hooks.refusals import Ignored, malformed
from lora_workers.hooks.request import HookRequest, parse_json

_STRUCTURED: Final = "application/cloudevents"


class Envelope(BaseModel):
    """The attributes that every event has, and its data."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    REQUIRED: ClassVar = ("specversion", "id", "source", "type")

    specversion: str = Field(pattern=r"^1\.[0-9]+$")
    id: str = Field(min_length=1)
    source: str = Field(min_length=1)
    type: str = Field(min_length=1)
    data: Any = None


class CloudEventsHook(Hook):
    """A hook of one's own sender that sends CloudEvents with a bearer token."""

    kind: Literal["cloudevents"] = "cloudevents"
    rules: tuple[OwnRule, ...] = ()

    def prove(self, request: HookRequest, proof: Proof) -> None:
        """See `Hook.prove`."""
        check_bearer(request.header("authorization"), proof.secrets)

    def read(self, request: HookRequest, *, quiet_s: float) -> Reading:
        """See `Hook.read`; source and id together name an event."""
        envelope = parse_envelope(request)
        delivery_id = f"{envelope.source} {envelope.id}"
        try:
            event = own_event(
                self.rules,
                envelope.data,
                type_=envelope.type,
                sender=envelope.source,
                content=delivery_id,
                namespace=self.namespace,
                quiet_s=quiet_s,
            )
        except Ignored as error:
            return Reading(delivery_id, reason=error.message)
        return Reading(delivery_id, (event,))


def _with_data(attributes: dict[str, Any]) -> dict[str, Any]:
    """The same with `data`, where it came as `data_base64`.

    Raises:
        Refused: that is no JSON object in base64.
    """
    encoded = attributes.get("data_base64")
    if "data" in attributes or not isinstance(encoded, str):
        return attributes
    return attributes | {"data": parse_json(from_base64(encoded) or b"")}


def parse_envelope(request: HookRequest) -> Envelope:
    """The event that the request carries.

    Raises:
        Refused: it is none: a required attribute is missing, or it is a batch, which nobody asked for.
    """
    media_type = request.header("content-type").partition(";")[0].strip().lower()
    if media_type.startswith(f"{_STRUCTURED}-batch"):
        raise malformed("Batches of CloudEvents are not taken; send one event in each request.")
    attributes: dict[str, Any]
    if media_type.startswith(_STRUCTURED):
        attributes = _with_data(request.json())
    else:
        attributes = {name: unquote(request.header(f"ce-{name}")) or None for name in Envelope.REQUIRED}
        attributes = {name: value for name, value in attributes.items() if value} | {"data": request.json()}
    try:
        return Envelope.model_validate(attributes)
    except ValidationError as error:
        raise malformed(f"The body is no CloudEvent: {describe_validation_error(error)}") from error
