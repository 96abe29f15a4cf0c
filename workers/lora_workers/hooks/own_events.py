"""Events of people's own senders: the fields that a body may have, and rules about them.

Weights & Biases (through the template that is shipped), CloudEvents and Standard Webhooks carry them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from lora_registry.hook_events import HookEvent
from lora_workers.hooks.hook import Rule, Statement, known_shape
from lora_workers.hooks.refusals import Ignored
from lora_workers.hooks.templates import Glob, matches


class OwnEvent(BaseModel):
    """What a body says, all of it optional; the rule may fix any of it.

    Attributes:
        name: name of the adapter.
        source: where it is; `path` says the same.
        base_model: name of the base model.
        type: what happened, in the sender's words.
        version: what the sender calls these bytes.
        labels: labels of the version; numbers are taken as they are written.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str = ""
    source: str = Field(default="", validation_alias=AliasChoices("source", "path"))
    base_model: str = ""
    type: str = ""
    version: str = ""
    labels: dict[str, str] = {}


class OwnRule(Rule):
    """Which events are meant.

    Attributes:
        match: pattern of the name that the event gives.
        types: patterns of what happened; empty: anything.
        senders: patterns of who says it (CloudEvents: `source`; W&B: `entity/project`); empty: anybody.
    """

    PLACEHOLDERS: ClassVar = frozenset({"name", "source", "base_model", "type", "version", "sender"})

    match: Glob = "*"
    types: tuple[Glob, ...] = ()
    senders: tuple[Glob, ...] = ()
    name: str = "{name}"
    base: str = "{base_model}"
    source: str = "{source}"


def own_event(
    rules: tuple[OwnRule, ...],
    told: Any,
    *,
    type_: str = "",
    sender: str = "",
    content: str,
    namespace: str,
    quiet_s: float,
) -> HookEvent:
    """The event that the first fitting rule makes of what was told.

    Args:
        rules: the hook's.
        told: the JSON that holds the fields of `OwnEvent`.
        type_: what happened, where the envelope says it.
        sender: who says it.
        content: what the bytes are known by.
        namespace: the hook's.
        quiet_s: quiet period.

    Raises:
        Ignored: it is about nothing that is to be registered.
    """
    event: OwnEvent = known_shape(OwnEvent, told)
    type_ = type_ or event.type
    rule = next((each for each in rules if _fits(each, event.name, type_, sender)), None)
    if rule is None:
        raise Ignored(f"No rule is about {event.name[:100]!r}, {type_[:100]!r}, {sender[:100]!r}.")
    names = {
        "name": event.name,
        "source": event.source,
        "base_model": event.base_model,
        "type": type_,
        "version": event.version,
        "sender": sender,
    }
    return rule.event(Statement(names, content, labels=event.labels), namespace=namespace, quiet_s=quiet_s)


def _fits(rule: OwnRule, name: str, type_: str, sender: str) -> bool:
    return (
        matches(name, [rule.match])
        and (not rule.types or matches(type_, rule.types))
        and (not rule.senders or matches(sender, rule.senders))
    )
