"""Standard Webhooks 1.0.0: signed deliveries of anybody's own senders, whose body holds the fields of `OwnEvent`.

Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

from __future__ import annotations

from typing import Final, Literal

from lora_registry.errors import Configuration
from lora_workers.hooks.hook import Hook, Reading
from lora_workers.hooks.own_events import OwnRule, own_event
from lora_workers.hooks.proofs import (
    Proof,
    check_fresh,
    check_signature,
    from_base64,
    parse_timestamp,
    versioned_signatures,
)
from lora_workers.hooks.refusals import Ignored, malformed
from lora_workers.hooks.request import HookRequest

_PREFIX: Final = "whsec_"


class StandardHook(Hook):
    """A hook of one's own sender that signs."""

    kind: Literal["standard-webhooks"] = "standard-webhooks"
    rules: tuple[OwnRule, ...] = ()

    def check_secret(self, secret: str) -> None:
        """See `Hook.check_secret`: a secret is `whsec_` and base64 of 24 to 64 bytes."""
        key = from_base64(secret.removeprefix(_PREFIX)) if secret.startswith(_PREFIX) else None
        if key is None or not 24 <= len(key) <= 64:
            raise Configuration(
                f"a secret of a Standard Webhooks hook is no {_PREFIX!r} with base64 of 24 to 64 bytes",
                remedy="Make one with: python -c \"import base64, os; print('whsec_' + base64.b64encode(os.urandom(32))"
                '.decode())".',
            )

    def prove(self, request: HookRequest, proof: Proof) -> None:
        """See `Hook.prove`."""
        event_id, timestamp = request.header("webhook-id"), request.header("webhook-timestamp")
        keys = [from_base64(each.decode().removeprefix(_PREFIX)) or b"" for each in proof.secrets]
        signed = b".".join([event_id.encode(), timestamp.encode(), request.body])
        check_signature(versioned_signatures(request.header("webhook-signature")), signed, keys)
        check_fresh(parse_timestamp(timestamp), proof.now_s)
        if not event_id:
            raise malformed("The header webhook-id is missing.")

    def read(self, request: HookRequest, *, quiet_s: float) -> Reading:
        """See `Hook.read`; the fields may also stand in `data`, as the specification recommends."""
        event_id, body = request.header("webhook-id"), request.json()
        told, type_ = (body["data"], str(body.get("type", ""))) if isinstance(body.get("data"), dict) else (body, "")
        try:
            event = own_event(
                self.rules, told, type_=type_, content=event_id, namespace=self.namespace, quiet_s=quiet_s
            )
        except Ignored as error:
            return Reading(event_id, reason=error.message)
        return Reading(event_id, (event,))
