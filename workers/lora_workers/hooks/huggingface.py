"""Webhooks of the Hugging Face Hub, version 3: a ref of a repository moved.

The secret is sent as it is and nothing is signed, so what is said is only a hint: the event names the ref, and the
resolve stage looks up the commit that it points at then. Fields and scopes are added without a new version, so nothing
is refused for being unknown. Source: huggingface/hub-docs, docs/hub/webhooks.md.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

from pydantic import BaseModel, Field, StringConstraints

from lora_registry.hook_events import HookEvent
from lora_registry.namespaces import CredentialName
from lora_workers.hooks.hook import Hook, Reading, Rule, Statement, gather, known_shape
from lora_workers.hooks.proofs import Proof, check_secret
from lora_workers.hooks.refusals import Ignored
from lora_workers.hooks.request import HookRequest
from lora_workers.hooks.templates import Glob, matches

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_NEVER = {"refs/pr/": "a pull request", "refs/convert/": "a conversion that the Hub makes"}
_REF = re.compile(r"refs/(?:heads|tags)/([^\s@?#]{1,200})")


WatchedRepo = Annotated[str, StringConstraints(pattern=r"^hf://[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_.*?\[\]-]+$")]


class HubRule(Rule):
    """Which repositories and refs are meant.

    Attributes:
        repo: pattern of `owner/name`.
        refs: patterns of full refs.
        subfolder: folder of the adapter in the repository.
    """

    PLACEHOLDERS: ClassVar = frozenset(
        {"repo", "owner", "repo_name", "ref", "ref_name", "revision", "subfolder", "in_subfolder"}
    )
    THING: ClassVar = "repository"

    repo: Glob
    refs: tuple[Glob, ...] = ("refs/heads/main",)
    subfolder: str = Field(default="", pattern=r"^[^/\s].*[^/\s]$|^[^/\s]?$")
    name: str = "{repo_name}"
    source: str = "hf://{repo}@{revision}{in_subfolder}"


class _Event(BaseModel):
    scope: str
    action: str = ""


class _Repo(BaseModel):
    type: str
    name: str


class _Ref(BaseModel):
    ref: str
    newSha: str | None = None


class _Payload(BaseModel):
    event: _Event
    repo: _Repo
    updatedRefs: list[_Ref] = []


class HubHook(Hook):
    """A hook of the Hub.

    Attributes:
        watch: repositories that `resync` looks at: `hf://owner/name`; the name may be a pattern.
        credential: name of the credential to look with.
    """

    kind: Literal["huggingface"] = "huggingface"
    watch: tuple[WatchedRepo, ...] = ()
    credential: CredentialName = ""
    rules: tuple[HubRule, ...] = ()

    def prove(self, request: HookRequest, proof: Proof) -> None:
        """See `Hook.prove`."""
        check_secret(request.header("x-webhook-secret"), proof.secrets)

    def read(self, request: HookRequest, *, quiet_s: float) -> Reading:
        """See `Hook.read`; a retry and the Hub's own Replay carry the id of the first attempt."""
        delivery_id = request.header("webhook-id")
        try:
            payload: _Payload = known_shape(_Payload, request.json())
            _check_scope(payload)
        except Ignored as error:
            return Reading(delivery_id, reason=error.message)
        said = [self._of(payload.repo.name, ref, quiet_s) for ref in payload.updatedRefs]
        return Reading(delivery_id, *gather(said, nothing="No ref moved."))

    def _of(self, repo: str, moved: _Ref, quiet_s: float) -> HookEvent | str:
        for prefix, what in _NEVER.items():
            if moved.ref.startswith(prefix):
                return f"{moved.ref[:200]} is {what}."
        legal = _REF.fullmatch(moved.ref)
        if not legal:
            return f"{moved.ref[:200]!r} is neither a branch nor a tag."
        if not moved.newSha:
            return f"{moved.ref} was deleted."
        rule = next((each for each in self.rules if matches(repo, [each.repo]) and matches(moved.ref, each.refs)), None)
        if rule is None:
            return f"No rule is about {repo} at {moved.ref}."
        owner, _, repo_name = repo.partition("/")
        names = {
            "repo": repo,
            "owner": owner,
            "repo_name": repo_name,
            "ref": moved.ref,
            "ref_name": legal[1],
            "revision": quote(legal[1], safe=""),
            "subfolder": rule.subfolder,
            "in_subfolder": f"/{rule.subfolder}" if rule.subfolder else "",
        }
        try:
            return rule.event(Statement(names, moved.newSha, thing=repo), namespace=self.namespace, quiet_s=quiet_s)
        except Ignored as error:
            return error.message


def _check_scope(payload: _Payload) -> None:
    """Raises Ignored unless the payload is about the content of a model repository."""
    scope, kind = payload.event.scope, payload.repo.type
    # Narrower scopes may come; they are to be read as their broader one.
    if scope != "repo.content" and not scope.startswith("repo.content."):
        raise Ignored(f"{scope[:100]!r} is not about a repository's content.")
    if kind == "bucket":
        raise Ignored("A bucket of the Hub has no commits that a version could be pinned to.")
    if kind != "model":
        raise Ignored(f"A {kind[:100]} holds no adapter.")
    if not _REPO.fullmatch(payload.repo.name):
        raise Ignored(f"{payload.repo.name[:200]!r} is no repository's name.")
