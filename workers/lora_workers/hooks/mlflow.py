"""Webhooks of an MLflow model registry: an alias was set, a version was created, or a tag says where an adapter is.

Signed like Standard Webhooks, with headers of its own and the secret's characters as key. What a version's `source`
says is usually no place that others can read, so the place is taken from the tag `lora.path`, or from `source` if that
is one of `schemes`. An alias names no place; the event then names the alias, and the resolve stage asks the registry
what it means by then. Source: mlflow 3.17.2, mlflow/webhooks/delivery.py and types.py, and its deliveries as captured.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal
from urllib.parse import quote

from pydantic import BaseModel

from lora_registry.hook_events import HookEvent
from lora_workers.hooks.hook import Hook, Reading, Rule, Statement, known_shape
from lora_workers.hooks.proofs import Proof, check_fresh, check_signature, parse_timestamp, versioned_signatures
from lora_workers.hooks.refusals import Ignored
from lora_workers.hooks.request import HookRequest
from lora_workers.hooks.templates import Glob, matches
from lora_workers.mlflow_registry import PATH_TAG, PLACES, place_of

_TEST_MODEL: Final = "example_model"
_TEST_SOURCE: Final = "models:/123"
_TEST_ALIAS: Final = "example_alias"


class MlflowRule(Rule):
    """Which models are meant, and what about them.

    Attributes:
        model: pattern of the registered model's name.
        aliases: patterns of aliases; a version that one is given to is registered.
        created: whether every new version is registered.
        schemes: schemes of a version's `source` that are places which workers can read.
    """

    PLACEHOLDERS: ClassVar = frozenset({"model", "alias", "version", "place", "tag."})
    THING: ClassVar = "model"

    model: Glob
    aliases: tuple[Glob, ...] = ()
    created: bool = False
    schemes: tuple[str, ...] = PLACES
    name: str = "{model}"
    source: str = "{place}"


class _Version(BaseModel):
    name: str
    version: str
    source: str = ""
    tags: dict[str, Any] | None = None


class _Alias(BaseModel):
    name: str
    alias: str
    version: str


class _Tag(BaseModel):
    name: str
    version: str
    key: str
    value: str


class MlflowHook(Hook):
    """A hook of an MLflow server."""

    kind: Literal["mlflow"] = "mlflow"
    rules: tuple[MlflowRule, ...] = ()

    def prove(self, request: HookRequest, proof: Proof) -> None:
        """See `Hook.prove`."""
        delivery_id, timestamp = request.header("x-mlflow-delivery-id"), request.header("x-mlflow-timestamp")
        signed = b".".join([delivery_id.encode(), timestamp.encode(), request.body])
        check_signature(versioned_signatures(request.header("x-mlflow-signature")), signed, proof.secrets)
        check_fresh(parse_timestamp(timestamp), proof.now_s)

    def read(self, request: HookRequest, *, quiet_s: float) -> Reading:
        """See `Hook.read`; retries carry the id of the first attempt."""
        delivery_id, body = request.header("x-mlflow-delivery-id"), request.json()
        try:
            event = self._event(f"{body.get('entity')}.{body.get('action')}", body.get("data"), quiet_s)
        except Ignored as error:
            return Reading(delivery_id, reason=error.message)
        return Reading(delivery_id, (event,))

    def _event(self, what: str, told: object, quiet_s: float) -> HookEvent:
        if what == "model_version.created":
            version: _Version = known_shape(_Version, told)
            if (version.name, version.source) == (_TEST_MODEL, _TEST_SOURCE):
                raise Ignored("This is MLflow's test of the webhook.")
            tags = {key: str(value) for key, value in (version.tags or {}).items()}
            rule = self._rule(version.name)
            if not rule.created:
                raise Ignored("The rule does not register every new version.")
            names = {"model": version.name, "version": version.version, "place": _place_of(version.source, tags, rule)}
            names |= {f"tag.{key}": value for key, value in tags.items()}
            return self._make(rule, names, quiet_s)
        if what == "model_version_alias.created":
            alias: _Alias = known_shape(_Alias, told)
            if (alias.name, alias.alias) == (_TEST_MODEL, _TEST_ALIAS):
                raise Ignored("This is MLflow's test of the webhook.")
            rule = self._rule(alias.name)
            if not matches(alias.alias, rule.aliases):
                raise Ignored(f"No rule is about the alias {alias.alias[:100]!r} of {alias.name[:200]!r}.")
            place = f"mlflow://{quote(alias.name, safe='')}@{quote(alias.alias, safe='')}"
            names = {"model": alias.name, "version": alias.version, "alias": alias.alias, "place": place}
            return self._make(rule, names, quiet_s)
        if what == "model_version_tag.set":
            tag: _Tag = known_shape(_Tag, told)
            if tag.key != PATH_TAG:
                raise Ignored(f"The tag {tag.key[:100]!r} says nothing about an adapter.")
            return self._make(
                self._rule(tag.name), {"model": tag.name, "version": tag.version, "place": tag.value}, quiet_s
            )
        raise Ignored(f"{what[:100]!r} registers nothing.")

    def _rule(self, model: str) -> MlflowRule:
        rule = next((each for each in self.rules if matches(model, [each.model])), None)
        if rule is None:
            raise Ignored(f"No rule is about the model {model[:200]!r}.")
        return rule

    def _make(self, rule: MlflowRule, names: dict[str, str], quiet_s: float) -> HookEvent:
        said = Statement(names, f"{names['model']}/{names['version']} {names['place']}")
        return rule.event(said, namespace=self.namespace, quiet_s=quiet_s)


def _place_of(source: str, tags: dict[str, str], rule: MlflowRule) -> str:
    """Raises Ignored if neither the tag `lora.path` nor the source says where the bytes of a version are."""
    place = place_of(source, tags, schemes=rule.schemes)
    if place is not None:
        return place
    raise Ignored(f"The source {source[:200]!r} is readable through MLflow only; set the tag {PATH_TAG!r}.")
