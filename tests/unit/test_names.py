"""Names: every string that is written parses back one way, and what is no name is refused with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_registry.errors import InvalidName
from lora_registry.names import (
    DEFAULT_NAMESPACE,
    RESERVED,
    AdapterName,
    Reference,
    check_base_name,
    check_word,
    parse_adapter,
    parse_reference,
)


def is_word(text: str) -> bool:
    """Whether `text` is accepted as a name."""
    try:
        check_word(text)
    except InvalidName:
        return False
    return True


words = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,95}", fullmatch=True).filter(is_word)
adapters = st.builds(AdapterName, st.just(DEFAULT_NAMESPACE) | words, words)
versions = st.integers(min_value=1, max_value=2**31)


@settings(deadline=None)
@given(adapters)
def test_adapter_parses_back(adapter: AdapterName) -> None:
    """Short and qualified form of an adapter both mean it, whatever namespace a bare name would be in."""
    assert parse_adapter(str(adapter)) == adapter
    assert parse_adapter(adapter.qualified) == adapter
    assert parse_adapter(adapter.qualified, namespace="elsewhere") == adapter
    assert parse_reference(str(adapter)) == Reference(adapter)


@settings(deadline=None)
@given(adapters, versions)
def test_served_name_parses_back(adapter: AdapterName, version: int) -> None:
    """What an engine gets leads back to exactly one adapter and one version."""
    assert parse_reference(adapter.served_name(version)) == Reference(adapter, version=version)


@settings(deadline=None)
@given(adapters, words)
def test_alias_parses_back(adapter: AdapterName, alias: str) -> None:
    """An alias leads back to its adapter, also where the alias is the adapter's own name."""
    assert parse_reference(f"{adapter}@{alias}") == Reference(adapter, alias=alias)
    assert parse_reference(f"{adapter.qualified}@{adapter.name}") == Reference(adapter, alias=adapter.name)


@settings(deadline=None)
@given(adapters, adapters, versions, versions)
def test_different_things_are_written_differently(
    one: AdapterName, other: AdapterName, version: int, later: int
) -> None:
    """No two versions share a served name, and no served name is also an adapter's."""
    assert (one.served_name(version) == other.served_name(later)) == ((one, version) == (other, later))
    assert one.served_name(version) not in {str(other), other.qualified}


@settings(deadline=None)
@given(st.text(max_size=300) | st.text(alphabet="av01.@-_", max_size=20))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    """Whatever is typed, the answer is a reference that is written as it was typed, or InvalidName."""
    try:
        reference = parse_reference(text)
    except InvalidName:
        return
    adapter = text.partition("@")[0]
    if reference.version is not None:
        adapter = adapter.rpartition(".")[0]
    assert adapter in {str(reference.adapter), reference.adapter.qualified}


def test_a_bare_name_is_in_the_namespace_that_is_given() -> None:
    """`--namespace team` makes `name`, `name.v3` and `name@stable` those of the team."""
    team = AdapterName("team", "support-bot")
    assert parse_adapter("support-bot", namespace="team") == team
    assert parse_reference("support-bot.v3", namespace="team") == Reference(team, version=3)
    assert parse_reference("support-bot@stable", namespace="team") == Reference(team, alias="stable")


@pytest.mark.parametrize("text", ["a.v3", "team.a.v3", "a@stable", "a.v3@stable", "team.a@stable"])
def test_version_or_alias_where_an_adapter_is_meant_is_told_so(text: str) -> None:
    """The remedy is to give the name alone, not to spell it otherwise."""
    with pytest.raises(InvalidName, match="where an adapter is meant") as refused:
        parse_adapter(text)
    assert "NAMESPACE.NAME" in refused.value.remedy


@pytest.mark.parametrize("word", sorted(RESERVED))
def test_reserved_words_name_nothing(word: str) -> None:
    """No namespace, adapter or alias takes a word that engines give a meaning of their own."""
    for text in (word, f"{word}.adapter", f"team.{word}", f"adapter@{word}", f"{word}.v1"):
        with pytest.raises(InvalidName, match="reserved"):
            parse_reference(text)


@pytest.mark.parametrize("word", ["v1", "v0", "v007", "v" + "9" * 95])
def test_v_and_digits_name_nothing(word: str) -> None:
    """A name that reads like a version would make `a.v1` mean two things."""
    for namespace, name in ((word, "adapter"), ("team", word)):
        with pytest.raises(InvalidName, match="version"):
            AdapterName(namespace, name)
    with pytest.raises(InvalidName, match="version"):
        check_word(word, what="alias")


@pytest.mark.parametrize("word", ["v", "v1a", "v-1", "version1", "1v", "0", "a" * 96, "a-_b"])
def test_words_that_only_look_odd_are_names(word: str) -> None:
    """Nothing is refused without a rule."""
    assert check_word(word) == word


@pytest.mark.parametrize(
    "word",
    [
        "",
        "-a",
        "_a",
        "A",
        "support bot",
        "a/b",
        "a:b",
        "a{b}",
        "a\n",
        "\na",
        "a\0",
        "ä",
        "ａ",
        "v１",
        "٣",
        "a" * 97,
        "a*",
    ],
)
def test_other_words_are_refused(word: str) -> None:
    """Only ASCII words are names: nothing that could leave a key, a path, a URL or a line."""
    with pytest.raises(InvalidName, match="not legal"):
        check_word(word)


@pytest.mark.parametrize("text", ["", ".", "@", "a.", ".a", "a.b.c", "a@", "@a", "a@b@c", "a.v1.v2", "a.v1@b", "a.V1"])
def test_other_strings_are_no_references(text: str) -> None:
    """A string that is not one of the three forms is refused, with the reason in its message."""
    with pytest.raises(InvalidName):
        parse_reference(text)


def test_a_version_number_beyond_any_is_refused() -> None:
    """Thousands of digits are no version, and no crash."""
    with pytest.raises(InvalidName):
        parse_reference("support-bot.v" + "9" * 5000)


def test_reason_does_not_repeat_a_long_input() -> None:
    """A name of a megabyte does not come back in the message."""
    with pytest.raises(InvalidName) as refused:
        check_word("x" * 1_000_000)
    assert len(refused.value.message) < 400


@pytest.mark.parametrize(
    "base", ["tiny-llama", "meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-0.5B-Instruct", "a/b/c", "x" * 200]
)
def test_base_names_are_those_of_hubs(base: str) -> None:
    """Names as hubs and operators write them are legal."""
    assert check_base_name(base) == base


@pytest.mark.parametrize(
    "base",
    [
        "",
        "/llama",
        "llama/",
        "a//b",
        "../llama",
        "a/../b",
        ".hidden",
        "a b",
        "a\n",
        'a"b',
        "a%b",
        "a:b",
        "ä",
        "x" * 201,
    ],
)
def test_other_base_names_are_refused(base: str) -> None:
    """A base's name goes into keys, channels and messages as it is, so nothing else is legal."""
    with pytest.raises(InvalidName):
        check_base_name(base)
