"""Policies of namespaces: which places a prefix covers, in whatever form they are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.helpers.adapters import codes_of

from lora_registry.errors import InvalidName, Rejected
from lora_registry.names import AdapterName
from lora_registry.namespaces import (
    NamespacePolicy,
    Quotas,
    SourceRule,
    Usage,
    check_pinned,
    check_quotas,
    check_source,
    parse_place,
)
from lora_registry.sources import PinnedFile, PinnedSource

ADAPTER = AdapterName("team", "bot")


def policy(*prefixes: str, **fields: object) -> NamespacePolicy:
    """A policy of namespace team with these prefixes, each with a credential that is called like its place."""
    rules = tuple(SourceRule(prefix=each, credential=f"c{number}") for number, each in enumerate(prefixes))
    return NamespacePolicy.model_validate({"namespace": "team", "sources": rules, **fields})


@pytest.mark.parametrize(
    ("prefix", "source"),
    [
        ("s3://bucket/team", "s3://bucket/team"),
        ("s3://bucket/team", "s3://bucket/team/"),
        ("s3://bucket/team/", "s3://bucket/team/adapter/v1"),
        ("s3://bucket", "s3://bucket/anything"),
        ("hf://org", "hf://org/repo"),
        ("hf://org", "org/repo"),
        ("hf://org", "hf://org/repo@main"),
        ("hf://org/repo", "hf://org/repo@9f8e/sub/folder"),
        ("hf://org/repo", "hf://org/repo@refs/convert/parquet"),
        ("hf://org/repo@refs/pr/1", "hf://org/repo@refs/pr/1"),
        ("hf://org/repo@refs/pr/1", "hf://org/repo@refs%2Fpr%2F1/sub"),
        ("hf://org/repo@main", "hf://org/repo@main"),
        ("hf://org/repo/sub", "hf://org/repo@main/sub/x"),
        ("/adapters/team", "/adapters/team/bot"),
        ("/adapters/team", "file:///adapters/team/bot"),
        ("/inbox/team", "/inbox/team/bot/0123456789abcdef0123456789abcdef"),
        ("https://host/team", "https://host/team/bot?version=1"),
    ],
)
def test_a_prefix_covers_what_lies_below_it(prefix: str, source: str) -> None:
    """The place itself and everything below it, whether or not a slash ends either."""
    assert policy(prefix).rule_for(source) is not None


@pytest.mark.parametrize(
    ("prefix", "source"),
    [
        ("s3://bucket/team", "s3://bucket/team-b/adapter"),
        ("s3://bucket/team", "s3://bucket/tea"),
        ("s3://bucket/team", "s3://bucket"),
        ("s3://bucket/team", "s3://bucket/team/../team-b"),
        ("s3://bucket/team", "s3://bucket/team/%2e%2e/team-b"),
        ("s3://bucket/team", "s3://bucket/team/%2E./team-b"),
        ("s3://bucket/team", "s3://bucket/team/%252e%252e/team-b"),
        ("s3://bucket/team", "s3://bucket/team%2f..%2fteam-b"),
        ("s3://bucket/team", "s3://bucket//team/x"),
        ("s3://bucket/team", "s3://bucket/team//x"),
        ("s3://bucket/team", "s3://bucket/./team"),
        ("s3://bucket/team", "s3://bucket/team\\..\\team-b"),
        ("s3://bucket/team", "s3://bucket/team/x::s3://bucket/team-b"),
        ("s3://bucket/team", "simplecache::s3://bucket/team"),
        ("s3://bucket/team", "s3://bucket/team\n/x"),
        ("s3://bucket/team", "s3://BUCKET/team"),
        ("s3://bucket/team", "S3://bucket/team"),
        ("s3://bucket/team", "s3a://bucket/team"),
        ("s3://bucket/team", "/bucket/team"),
        ("s3://bucket/team", "bucket/team"),
        ("hf://org", "hf://org-evil/repo"),
        ("hf://org", "org-evil/repo"),
        ("hf://org", "hf://org@evil/repo"),
        ("hf://org", "hf:///org/repo"),
        ("hf://org/repo", "hf://org/repo-evil"),
        ("hf://org/repo", "hf://org/repo-evil@main"),
        ("hf://org/repo", "hf://org/repo@"),
        ("hf://org/repo", "hf://org/repo@main@evil"),
        ("hf://org/repo@main", "hf://org/repo"),
        ("hf://org/repo@main", "hf://org/repo@mainly"),
        ("hf://org/repo/sub", "hf://org/repo"),
        ("hf://org/repo/sub", "hf://org/repo@refs/pr/1/sub"),
        ("hf://org", "hf://org/repo@refs/pr/1"),
        ("hf://org/repo", "hf://org/repo@refs%2Fpr%2F1/sub"),
        ("hf://org/repo/pr", "hf://org/repo@refs/pr/1"),
        ("hf://org/repo", "hf://org/repo/../../other/repo"),
        ("/adapters/team", "/adapters/team-b"),
        ("/adapters/team", "/adapters/team/../team-b"),
        ("/adapters/team", "//adapters/team"),
        ("/adapters/team", "file://adapters/team"),
        ("/adapters/team", "adapters/team"),
        ("https://host/team", "https://host/team/..;/evil"),
        ("https://host/team", "https://host/team/..%3Bx/evil"),
        ("https://host/team", "https://host/team/.;/evil"),
        ("https://host/team", "https://host@evil/team"),
        ("https://host/team", "https://host:443/team"),
        ("https://host/team", "https://host.evil/team"),
        ("https://host/team", "http://host/team"),
    ],
)
def test_a_prefix_covers_nothing_beside_it(prefix: str, source: str) -> None:
    """No spelling leads out: neighbours, `..`, escapes, doubled slashes, chained file systems, user names in hosts."""
    assert policy(prefix).rule_for(source) is None
    with pytest.raises(Rejected) as refused:
        check_source(policy(prefix), ADAPTER, source, required=False)
    assert codes_of(refused.value.findings) == ["SOURCE_NOT_ALLOWED"]


@given(st.text(alphabet="abte/.%2fF5cC\\@:-", max_size=30))
def test_whatever_is_covered_begins_with_the_prefix(rest: str) -> None:
    """Of any text after the bucket, only what stays below the prefix is covered."""
    source = f"s3://bucket/{rest}"
    if policy("s3://bucket/tea").rule_for(source) is not None:
        assert source.startswith("s3://bucket/tea")
        assert os.path.normpath(f"/{rest}") in (f"/{rest}", f"/{rest.removesuffix('/')}")
        assert os.path.normpath(f"/{rest}").split("/")[1] == "tea"


def test_the_longest_prefix_gives_the_credential() -> None:
    """A place of its own inside a larger one keeps its own credential."""
    rules = policy("s3://bucket", "s3://bucket/team", "hf://org")
    found = [rules.rule_for(source) for source in ("s3://bucket/team/x", "s3://bucket/x", "hf://org/r", "hf://x/y")]
    assert [each and each.credential for each in found] == ["c1", "c0", "c2", None]


def test_any_source_leaves_it_to_the_settings_and_keeps_the_credentials() -> None:
    """A policy for quotas alone needs no list of places."""
    rules = policy("s3://bucket", any_source=True)
    assert rules.rule_for("hf://anyone/anything") == SourceRule()
    found = rules.rule_for("s3://bucket/x")
    assert found
    assert found.credential == "c0"


def test_a_policy_without_sources_allows_none() -> None:
    """Forgetting the list opens nothing."""
    assert policy().rule_for("/adapters/x") is None


def test_without_a_policy_the_settings_decide_unless_one_is_required() -> None:
    """A registry for one team needs no policies; one for many can insist on them."""
    assert check_source(None, ADAPTER, "/anything", required=False) == SourceRule()
    with pytest.raises(Rejected) as refused:
        check_source(None, ADAPTER, "/anything", required=True)
    assert codes_of(refused.value.findings) == ["NAMESPACE_UNKNOWN"]


@pytest.mark.parametrize("prefix", ["s3://", "s3://b/..", "s3://b//c", "relative/../x", "hf://a@b/c", "", "a\x00b"])
def test_an_illegal_prefix_is_no_policy(prefix: str) -> None:
    """An operator's slip is refused when the policy is set, not found out when somebody gets through."""
    with pytest.raises(ValidationError):
        policy(prefix)


def test_names_in_a_policy_are_checked() -> None:
    """Namespace and credential are names, so that neither can hold a secret by mistake in another form."""
    with pytest.raises(InvalidName):
        NamespacePolicy(namespace="Not A Name")
    with pytest.raises(ValidationError):
        SourceRule(prefix="s3://bucket", credential="AKIA/secret+key==")


def test_a_link_out_of_the_prefix_is_refused_after_it_was_followed(tmp_path: Path) -> None:
    """A tenant's own directory can hold a link to another's: what counts is where the files really are."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for each in (mine, theirs):
        each.mkdir()
        (each / "adapter_config.json").write_text("{}")
    (mine / "link").symlink_to(theirs)

    def pinned(directory: Path) -> PinnedSource:
        file = PinnedFile(os.path.realpath(directory / "adapter_config.json"), "1", 2)
        return PinnedSource("file", file, file)

    rule = SourceRule(prefix=str(mine))
    check_pinned(rule, pinned(mine))
    with pytest.raises(Rejected) as refused:
        check_pinned(rule, pinned(mine / "link"))
    assert codes_of(refused.value.findings) == ["SOURCE_NOT_ALLOWED"]
    check_pinned(SourceRule(), pinned(mine / "link"))


@pytest.mark.parametrize(
    ("quotas", "is_new", "code"),
    [
        ({"adapters": 3}, True, "QUOTA_ADAPTERS"),
        ({"adapters": 3}, False, ""),
        ({"adapters": 4}, True, ""),
        ({"versions_per_day": 5}, False, "QUOTA_VERSIONS_PER_DAY"),
        ({"versions_per_day": 6}, True, ""),
        ({"bytes": 100}, False, "QUOTA_BYTES"),
        ({"bytes": 101}, True, ""),
        ({}, True, ""),
    ],
)
def test_a_quota_that_is_used_up_refuses_early(quotas: dict[str, int], is_new: bool, code: str) -> None:
    """A sender learns at once what the publish script would say later."""
    limited = policy(quotas=Quotas(**quotas), any_source=True)
    usage = Usage(adapters=3, versions_today=5, bytes=100)
    if not code:
        return check_quotas(limited, usage, is_new_adapter=is_new)
    with pytest.raises(Rejected) as refused:
        check_quotas(limited, usage, is_new_adapter=is_new)
    return None if codes_of(refused.value.findings) == [code] else pytest.fail(str(refused.value.findings))


def test_places_have_one_normal_form() -> None:
    """What is compared is the same for every way of writing a place."""
    assert parse_place("org/repo@main/sub") == parse_place("hf://org/repo@main/sub/")
    assert parse_place("/a/b") == parse_place("file:///a/b/")
