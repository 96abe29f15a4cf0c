"""What a namespace may do: the places it may register from, the credential for each, and its quotas. Pure values.

A place is compared segment by segment in one normal form, so `s3://bucket/team` covers neither `s3://bucket/team-b` nor
`s3://bucket/team/../team-b`. What cannot be read in one way only is covered by no prefix.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from lora_registry import namespace_codes
from lora_registry.errors import Rejected
from lora_registry.names import AdapterName, check_word
from lora_registry.sources import PinnedSource

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_ESCAPED_PATH = re.compile(r"%(?:2e|2f|5c|00|25)", re.IGNORECASE)
"""Escapes that some readers take for a dot, a separator or a percent sign, and others do not."""
_PARAMETERS = re.compile(r";|%3b", re.IGNORECASE)
_QUOTAS = {
    code.code: code
    for code in (namespace_codes.QUOTA_ADAPTERS, namespace_codes.QUOTA_VERSIONS_PER_DAY, namespace_codes.QUOTA_BYTES)
}
Limit = Annotated[int, Field(ge=0, le=2**53)]  # what Lua's numbers hold exactly
CredentialName = Annotated[str, StringConstraints(max_length=96, pattern=r"^([a-z0-9][a-z0-9_-]*)?$")]


@dataclass(frozen=True)
class Place:
    """Where a source lies, in normal form.

    Attributes:
        scheme: `file` for an absolute path, `hf` for a bare `org/repo`.
        segments: bucket, host or organisation first, then the parts of the path.
        revision: of a Hub repository, if the text names one.
    """

    scheme: str
    segments: tuple[str, ...]
    revision: str = ""

    def covers(self, other: Place) -> bool:
        """Whether `other` is this place or lies below it."""
        return (
            self.scheme == other.scheme
            and self.segments == other.segments[: len(self.segments)]
            and (self.revision == other.revision or (not self.revision and not other.is_proposed))
        )

    @property
    def is_proposed(self) -> bool:
        """Whether it is a pull request of the Hub: anybody may open one, so only a prefix that names it covers it."""
        return self.revision.startswith("refs/pr/")


def parse_place(text: str) -> Place:
    """Parse a source, or the prefix of one.

    Raises:
        ValueError: it can be read in more than one way, or in none.
    """
    if _CONTROL.search(text) or "::" in text:  # `::` chains file systems in fsspec
        raise ValueError("it holds a control character, a backslash or '::'")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = ("file", text) if text.startswith("/") else ("hf", text)
    if not _SCHEME.fullmatch(scheme):
        raise ValueError("its scheme is not legal")
    if scheme == "file":
        if not rest.startswith("/"):
            raise ValueError("its path is not absolute")
        rest = rest[1:]
    segments, revision = _split_revision(rest) if scheme == "hf" else (rest, "")
    parts = tuple(segments.removesuffix("/").split("/"))
    if any(_is_ambiguous(part) for part in parts):
        raise ValueError("a part of its path is empty, '.', '..' or escaped")
    return Place(scheme, parts, revision)


def _is_ambiguous(part: str) -> bool:
    """Whether some readers take it for another part, or for none; servlets drop what follows a semicolon."""
    return _PARAMETERS.split(part)[0] in ("", ".", "..") or bool(_ESCAPED_PATH.search(part))


def is_below(source: str, prefix: str) -> bool:
    """Whether `source` is the place `prefix` or lies below it; what cannot be read in one way only does not."""
    try:
        return bool(prefix) and parse_place(prefix).covers(parse_place(source))
    except ValueError:
        return False


def _split_revision(rest: str) -> tuple[str, str]:
    """`org/repo@revision/sub` → (`org/repo/sub`, `revision`).

    After a revision such as `refs/pr/1`, which is written with or without escapes, readers disagree where the folder
    begins; the folder is left out, so that only prefixes without one cover it.
    """
    head, at, tail = rest.partition("@")
    if not at:
        return rest, ""
    if head.count("/") != 1 or "@" in tail:
        raise ValueError("only the repository may be followed by '@'")
    revision, slash, folder = tail.partition("/")
    if not revision:
        raise ValueError("its revision is empty")
    if revision == "refs":
        return head, unquote(tail.removesuffix("/"))
    return f"{head}{slash}{folder}", unquote(revision)


class SourceRule(BaseModel):
    """One prefix that a namespace may register from.

    Attributes:
        prefix: such as `s3://bucket/team`, `hf://org` or `/adapters/team`; empty: whatever the settings allow.
        credential: name of the credential that goes with it; empty for none. The credential itself only workers read.
        needs_marker: whether the marker file must lie beside an adapter there.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    prefix: Annotated[str, StringConstraints(max_length=2048)] = ""
    credential: CredentialName = ""
    needs_marker: bool = False

    @field_validator("prefix")
    @classmethod
    def _check_prefix(cls, prefix: str) -> str:
        if prefix:
            parse_place(prefix)
        return prefix

    def covers_file(self, location: str) -> bool:
        """Whether the real path `location` lies under the real place of this local prefix; a link leads nowhere."""
        if not self.prefix:
            return True
        root = os.path.realpath("/" + "/".join(parse_place(self.prefix).segments))
        return os.path.commonpath([root, os.path.realpath(location)]) == root


class Quotas(BaseModel):
    """How much a namespace may publish; None sets no limit.

    Attributes:
        adapters: adapters with a published version.
        versions_per_day: versions published on one day (UTC, by the server's clock).
        bytes: size of the namespace's artifacts, each counted once.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    adapters: Limit | None = None
    versions_per_day: Limit | None = None
    bytes: Limit | None = None

    @property
    def any(self) -> bool:
        """Whether there is any limit."""
        return not (self.adapters is None and self.versions_per_day is None and self.bytes is None)


class NamespacePolicy(BaseModel):
    """What one namespace may do.

    Attributes:
        namespace: whose policy it is.
        any_source: register from wherever the settings allow; `sources` then only adds credentials.
        sources: prefixes to register from. None of them and not `any_source`: nothing may be registered.
        quotas: how much it may publish.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    namespace: str
    any_source: bool = False
    sources: Annotated[tuple[SourceRule, ...], Field(max_length=100)] = ()
    quotas: Quotas = Quotas()

    @model_validator(mode="after")
    def _check_names(self) -> NamespacePolicy:
        check_word(self.namespace, what="namespace")
        if not all(rule.prefix for rule in self.sources):
            raise ValueError("a source's prefix is empty")
        return self

    def rule_for(self, source: str) -> SourceRule | None:
        """The rule with the longest prefix that covers `source`; None: it is not allowed."""
        try:
            place = parse_place(source)
        except ValueError:
            return None
        covering = [rule for rule in self.sources if parse_place(rule.prefix).covers(place)]
        default = SourceRule() if self.any_source else None
        return max(covering, key=lambda rule: len(parse_place(rule.prefix).segments), default=default)


@dataclass(frozen=True)
class Usage:
    """What a namespace has published: adapters, versions on this day (UTC), and bytes of artifacts."""

    adapters: int = 0
    versions_today: int = 0
    bytes: int = 0


def check_source(policy: NamespacePolicy | None, adapter: AdapterName, source: str, *, required: bool) -> SourceRule:
    """The rule by which `adapter` may be registered from `source`.

    Args:
        policy: the namespace's; None if it has none.
        adapter: adapter to register.
        source: where it would come from.
        required: whether a namespace without a policy may do nothing, or whatever the settings allow.

    Raises:
        Rejected: it may not, with the finding.
    """
    if policy is None:
        if not required:
            return SourceRule()
        finding = namespace_codes.NAMESPACE_UNKNOWN.finding(adapter.namespace)
        raise Rejected(finding.message, findings=(finding,))
    rule = policy.rule_for(source)
    if rule is None:
        finding = namespace_codes.SOURCE_NOT_ALLOWED.finding(
            source[:200], expected=", ".join(each.prefix for each in policy.sources)[:1000]
        )
        raise Rejected(finding.message, findings=(finding,))
    return rule


def check_pinned(rule: SourceRule, pinned: PinnedSource) -> None:
    """Make sure that the files that were found lie where `rule` allows: a local path may have led through a link.

    Raises:
        Rejected: they do not.
    """
    if pinned.scheme != "file":
        return
    for file in (pinned.config, pinned.weights, *pinned.tokenizer):
        if not rule.covers_file(file.location):
            finding = namespace_codes.SOURCE_NOT_ALLOWED.finding(file.name, "The file is a link that leads elsewhere.")
            raise Rejected(finding.message, findings=(finding,))


def check_quotas(policy: NamespacePolicy, usage: Usage, *, is_new_adapter: bool) -> None:
    """Refuse early what the publish script would refuse if it came now.

    Raises:
        Rejected: a quota is used up, with the finding.
    """
    limits = policy.quotas
    checks = (
        (namespace_codes.QUOTA_ADAPTERS, limits.adapters if is_new_adapter else None, usage.adapters),
        (namespace_codes.QUOTA_VERSIONS_PER_DAY, limits.versions_per_day, usage.versions_today),
        (namespace_codes.QUOTA_BYTES, limits.bytes, usage.bytes),
    )
    for code, limit, used in checks:
        if limit is not None and used >= limit:
            raise over_quota(policy.namespace, code.code, str(limit), f"{used} already")


def check_size(policy: NamespacePolicy, size_bytes: int) -> None:
    """Refuse an adapter that could never be published, however empty its namespace were, before it is copied.

    Raises:
        Rejected: it is larger than all of the namespace's artifacts may be, with the finding.
    """
    limit = policy.quotas.bytes
    if limit is not None and size_bytes > limit:
        code = namespace_codes.QUOTA_BYTES.code
        raise over_quota(policy.namespace, code, str(limit), f"{size_bytes} in one adapter")


def over_quota(namespace: str, code: str, limit: str, actual: str) -> Rejected:
    """The rejection for a quota that is used up, named by its code."""
    finding = _QUOTAS[code].finding(namespace, expected=f"at most {limit}", actual=actual)
    return Rejected(finding.message, findings=(finding,))
