"""What all kinds of hooks have in common: where the secret is, and rules that make events of what a sender says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from lora_registry.errors import InvalidName
from lora_registry.events import Follow, Key, RegistrationRequested, describe_validation_error
from lora_registry.hook_events import HookEvent
from lora_registry.names import DEFAULT_NAMESPACE, check_word
from lora_workers.hooks.proofs import Proof
from lora_workers.hooks.refusals import Ignored
from lora_workers.hooks.request import HookRequest
from lora_workers.hooks.templates import Glob, adapter_name, matches, render, unknown_placeholders

SecretReference = Annotated[str, StringConstraints(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$")]
"""Where a secret is: `env:NAME` or `file:/absolute/path`. The secret itself is never written in the hooks file."""
_LONGEST_LABEL = 256


@dataclass(frozen=True)
class Statement:
    """One thing that a delivery says.

    Attributes:
        names: what the placeholders of templates stand for.
        content: what is there now, such as a commit.
        order: see `HookEvent.order`.
        labels: labels that the sender gives.
        thing: what this is about as a whole, where its name alone does not tell it from others: a repository.
    """

    names: Mapping[str, str]
    content: str
    order: str = ""
    labels: Mapping[str, str] | None = None
    thing: str = ""


@dataclass(frozen=True)
class Reading:
    """What a delivery is about.

    Attributes:
        delivery_id: the sender's id of it; empty if it has none.
        events: what is to be registered.
        reason: why nothing else of it is.
        confirm_url: address that is to be visited to confirm a subscription; empty for none.
    """

    delivery_id: str = ""
    events: tuple[HookEvent, ...] = ()
    reason: str = ""
    confirm_url: str = ""


class Rule(BaseModel):
    """How one thing that a sender says becomes an event; the first rule of a hook that fits it counts.

    Attributes:
        name: template of the adapter's name; what is not legal in it is replaced by `-`. Two things whose names become
            the same one are not one adapter, unless the template is a plain name.
        base: template of the base model's name.
        source: template of the URL where the adapter is.
        sources: patterns of which the URL must fit one; empty: any that the namespace allows.
        labels: templates of labels.
        supersede, follow: see `RegistrationRequested`.
    """

    PLACEHOLDERS: ClassVar[frozenset[str]] = frozenset()
    THING: ClassVar[str] = "name"
    """What `name` is made of."""
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    base: str
    source: str
    sources: tuple[Glob, ...] = ()
    labels: dict[Key, str] = {}
    supersede: bool = False
    follow: Follow = Follow.LATEST

    @model_validator(mode="after")
    def _check_templates(self) -> Rule:
        for template in (self.name, self.base, self.source, *self.labels.values()):
            unknown = unknown_placeholders(template, self.PLACEHOLDERS)
            if unknown:
                known = ", ".join(f"{{{each}}}" for each in sorted(self.PLACEHOLDERS))
                raise ValueError(f"{unknown[0]} in {template!r} is no placeholder of this kind; there are {known}")
        return self

    def event(self, said: Statement, *, namespace: str, quiet_s: float) -> HookEvent:
        """The event that this rule makes of what was said.

        Raises:
            Ignored: what it makes is no legal event, or the source is not allowed.
        """
        text = render(self.name, said.names)
        name = adapter_name(text)
        source = render(self.source, said.names)
        if not source:
            raise Ignored("It says no place where an adapter could be.")
        if self.sources and not matches(source, self.sources):
            raise Ignored(f"The source {source[:200]!r} fits none of the patterns that the rule allows.")
        labels = dict(said.labels or {}) | {key: render(each, said.names) for key, each in self.labels.items()}
        try:
            check_word(name)
            event = RegistrationRequested(
                namespace=namespace,
                name=name,
                base_model=render(self.base, said.names),
                source=source,
                labels={key: value[:_LONGEST_LABEL] for key, value in labels.items() if value},
                supersede=self.supersede,
                follow=self.follow,
            )
        except (InvalidName, ValidationError) as error:
            why = describe_validation_error(error) if isinstance(error, ValidationError) else error.message
            raise Ignored(f"No legal event can be made of it: {why}") from error
        is_plain = "{" not in self.name  # what a sender says may read like the template
        named_after = "" if is_plain else " ".join(filter(None, (self.THING, said.thing, text[:500])))
        return HookEvent(event, said.content[:500], said.order, quiet_s, named_after)


class Hook(BaseModel):
    """One configured hook.

    Attributes:
        namespace: tenant that all its adapters belong to; nothing that a sender says changes it.
        secrets: where its secrets are; any of them is right, so that one can be replaced by the next.
        quiet_s: quiet period; None: LORA_REGISTRY_HOOK_QUIET_S.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str = DEFAULT_NAMESPACE
    secrets: tuple[SecretReference, ...] = ()
    quiet_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @field_validator("namespace")
    @classmethod
    def _check_namespace(cls, namespace: str) -> str:
        try:
            return check_word(namespace, what="namespace")
        except InvalidName as error:
            raise ValueError(error.message) from error

    @property
    def references(self) -> tuple[str, ...]:
        """Everything that must be there for the hook to work."""
        return self.secrets

    def check_secret(self, secret: str) -> None:
        """Check the form of a secret when it is read.

        Raises:
            Configuration: it is not one of this kind.
        """

    @abstractmethod
    def prove(self, request: HookRequest, proof: Proof) -> None:
        """Check on the raw bytes that the sender knows a secret, and that this is no old delivery.

        Raises:
            Refused: it does not, or it is one.
            NotFetched: what is needed for it has to be fetched first.
        """

    @abstractmethod
    def read(self, request: HookRequest, *, quiet_s: float) -> Reading:
        """What an authentic delivery is about.

        Raises:
            Refused: the body cannot be read at all.
        """


def gather(said: list[HookEvent | str], *, nothing: str) -> tuple[tuple[HookEvent, ...], str]:
    """The events among what was made of a delivery, and the reasons of the rest, each once."""
    reasons = dict.fromkeys(each for each in said if isinstance(each, str))
    return tuple(each for each in said if isinstance(each, HookEvent)), " ".join(reasons) or ("" if said else nothing)


def known_shape(model: type[BaseModel], value: Any) -> Any:
    """`value` as a `model`.

    Raises:
        Ignored: it has another shape; senders add new ones, and refusing them would get the hook suspended.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise Ignored(f"The shape is not known: {describe_validation_error(error)}") from error
