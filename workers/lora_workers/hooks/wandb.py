"""Automations of Weights & Biases: the body is a template of the user's; ours is deploy/hooks/wandb-template.json.

Source: wandb/docs, models/automations/create-automations/webhook.mdx. The signature's encoding is base64 in its script
and hexadecimal in receivers that people published, so both are taken.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import model_validator

from lora_workers.hooks.hook import Hook, Reading, SecretReference
from lora_workers.hooks.own_events import OwnRule, own_event
from lora_workers.hooks.proofs import Proof, check_bearer, check_signature, from_base64, from_hex
from lora_workers.hooks.refusals import Ignored
from lora_workers.hooks.request import HookRequest

_UNFILLED = re.compile(r"\$\{[^}]*\}")


class WandbHook(Hook):
    """A hook of a W&B team.

    Attributes:
        tokens: where its access tokens are; like the secrets, any of them is right. Whatever is configured, secret or
            token, must come with each delivery.
    """

    kind: Literal["wandb"] = "wandb"
    tokens: tuple[SecretReference, ...] = ()
    rules: tuple[OwnRule, ...] = ()

    @model_validator(mode="after")
    def _check_proof(self) -> WandbHook:
        if not self.secrets and not self.tokens:
            raise ValueError("give secrets, tokens, or both")
        return self

    def prove(self, request: HookRequest, proof: Proof) -> None:
        """See `Hook.prove`."""
        if self.tokens:
            check_bearer(request.header("authorization"), proof.tokens)
        if self.secrets:
            given = request.header("x-wandb-signature").removeprefix("sha256=")
            check_signature([from_hex(given), from_base64(given)] if given else [], request.body, proof.secrets)

    def read(self, request: HookRequest, *, quiet_s: float) -> Reading:
        """See `Hook.read`; there is no id, so that the artifact's version is what tells two deliveries apart."""
        told = {key: _filled(value) for key, value in request.json().items()}
        sender = f"{told.get('entity', '')}/{told.get('project', '')}"
        try:
            event = own_event(
                self.rules,
                told,
                sender=sender,
                content=f"{sender} {told.get('version', '')} {told.get('source', '')}",
                namespace=self.namespace,
                quiet_s=quiet_s,
            )
        except Ignored as error:
            return Reading(reason=error.message)
        return Reading(events=(event,))


def _filled(value: Any) -> Any:
    """A field without variables that W&B did not fill in."""
    if isinstance(value, dict):
        return {key: _filled(each) for key, each in value.items() if not isinstance(each, dict)}
    return _UNFILLED.sub("", value) if isinstance(value, str) else value
