from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.adapters import codes_of, errors_of, make_base

from lora_registry.all_codes import CODES
from lora_registry.base_profile import BaseProfile
from lora_registry.tokenizer_comparison import check_tokenizer
from lora_registry.tokenizer_maps import TOKENIZER_FILES, TokenizerMap, read_tokenizer, stored_digest
from lora_workers.base_models import read_base_tokenizer

WORDS = {f"w{number}": number for number in range(50)}


def make_files(
    ids: dict[str, int] | None = None, *, added: dict[str, int] | None = None, **config: Any
) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json with these maps."""
    entries = [{"id": number, "content": token, "special": True} for token, number in (added or {}).items()]
    whole = {"model": {"type": "BPE", "vocab": WORDS if ids is None else ids, "merges": []}, "added_tokens": entries}
    return {"tokenizer.json": json.dumps(whole).encode(), "tokenizer_config.json": json.dumps(config).encode()}


def make_map(ids: dict[str, int] | None = None, **rest: Any) -> TokenizerMap:
    """The map that those files hold."""
    tokenizer = read_tokenizer(make_files(ids, **rest))
    assert tokenizer is not None
    return tokenizer


def make_tokenized_base(tokenizer: TokenizerMap | None = None) -> BaseProfile:
    """A base of 64 rows whose tokenizer has 50 tokens."""
    return make_base().with_tokenizer(tokenizer or make_map())


def make_digested_base() -> BaseProfile:
    """The same with the digest of its tokenizer alone."""
    return make_tokenized_base().model_copy(update={"tokenizer": None})


@pytest.mark.parametrize(
    "files",
    [
        make_files(),
        {"vocab.json": json.dumps(WORDS).encode()},
        {"vocab.txt": "\n".join(WORDS).encode()},
        {"tokenizer.json": json.dumps({"model": {"vocab": [[token, -1.0] for token in WORDS]}}).encode()},
        {"added_tokens.json": json.dumps(WORDS).encode()},
        {
            "tokenizer_config.json": json.dumps(
                {"added_tokens_decoder": {str(number): {"content": token} for token, number in WORDS.items()}}
            ).encode()
        },
        {"tokenizer.json": json.dumps({"model": {"vocab": dict(reversed(WORDS.items()))}}, indent=3).encode()},
    ],
)
def test_one_map_in_every_form_has_one_digest(files: dict[str, bytes]) -> None:
    """The digest is that of the map from token to id, however it is written."""
    tokenizer = read_tokenizer(files)
    assert tokenizer is not None
    assert (tokenizer.digest, tokenizer.size) == (make_map().digest, 50)


def test_the_same_tokenizer_and_none_at_all_are_fine() -> None:
    """A tokenizer that is the base's gives no finding, and files that hold none are none."""
    assert list(check_tokenizer(make_map(), make_digested_base())) == []
    assert list(check_tokenizer(make_map(), make_tokenized_base())) == []
    assert read_tokenizer({}) is None
    assert read_tokenizer({"tokenizer_config.json": b"{}"}) is None


def test_ids_beyond_the_rows_are_refused() -> None:
    """An id for which the base's embedding has no row is refused, with or without the base's map."""
    beyond = make_map(added={"<new>": 64})
    assert errors_of(check_tokenizer(beyond, make_digested_base())) == ["TOKEN_ID_OUT_OF_RANGE"]
    assert errors_of(check_tokenizer(beyond, make_tokenized_base())) == ["TOKEN_ID_OUT_OF_RANGE"]


def test_padded_rows_are_told() -> None:
    """Ids between the base's tokens and its rows exist and are untrained, which is a warning."""
    findings = list(check_tokenizer(make_map(added={"<new>": 63}), make_tokenized_base()))
    assert codes_of(findings) == ["TOKENS_ADDED"]
    assert "<new>" in findings[0].subject


def test_changed_ids_are_refused() -> None:
    """A token that both have with different ids is refused; with the digest alone it is a warning."""
    permuted = make_map(WORDS | {"w3": 4, "w4": 3})
    assert codes_of(check_tokenizer(permuted, make_tokenized_base())) == ["TOKEN_ID_CHANGED"]
    assert codes_of(check_tokenizer(permuted, make_digested_base())) == ["TOKENIZER_DIFFERS"]


def test_renamed_tokens_are_told() -> None:
    """Another text for a reserved id is a warning: engines do not know that text."""
    renamed = {token: number for token, number in WORDS.items() if token != "w49"} | {"<tool>": 49}
    assert codes_of(check_tokenizer(make_map(renamed), make_tokenized_base())) == ["TOKENS_RENAMED"]


def test_special_tokens_and_template_are_compared() -> None:
    """Another end token or chat template is a warning, whatever form the token is written in."""
    base = make_map(eos_token="w2", chat_template="a")
    same = make_map(eos_token={"content": "w2"}, chat_template="a")
    other = make_map(eos_token="w3", chat_template="b")
    profile = make_tokenized_base(base)
    assert codes_of(check_tokenizer(same, profile)) == []
    assert codes_of(check_tokenizer(other, profile)) == ["SPECIAL_TOKEN_DIFFERS", "CHAT_TEMPLATE_DIFFERS"]


def test_unreadable_files_are_told() -> None:
    """A file that is no strict JSON is a warning and stops nothing."""
    tokenizer = read_tokenizer(make_files() | {"added_tokens.json": b'{"a":1,"a":2}'})
    assert tokenizer is not None
    assert codes_of(check_tokenizer(tokenizer, make_tokenized_base())) == ["TOKENIZER_UNREADABLE"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(TOKENIZER_FILES), st.binary(max_size=60), max_size=4), st.data())
def test_any_files_give_a_verdict(files: dict[str, bytes], data: st.DataObject) -> None:
    """No content of any file raises anything."""
    shape = data.draw(
        st.recursive(
            st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=3)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(["model", "vocab", "added_tokens", "id", "content", "added_tokens_decoder", "5"]),
                    inner,
                    max_size=3,
                ),
            ),
        )
    )
    tokenizer = read_tokenizer(files | {"tokenizer.json": json.dumps(shape).encode()})
    if tokenizer is not None:
        assert set(codes_of(check_tokenizer(tokenizer, make_tokenized_base()))) <= CODES.keys()


def test_a_base_brings_its_tokenizer(tmp_path: Path) -> None:
    """The files beside a base's weights are read; a directory without any has none."""
    assert read_base_tokenizer(tmp_path) is None
    for name, raw in make_files().items():
        (tmp_path / name).write_bytes(raw)
    found = read_base_tokenizer(tmp_path)
    assert found is not None
    assert found.digest == make_map().digest


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.text(max_size=5) | st.just("\ud800"), st.integers(0, 1 << 40), max_size=20),
    st.dictionaries(st.sampled_from(["eos_token", "bos_token"]), st.text(max_size=5)),
)
def test_a_stored_map_is_read_back_whole(ids: dict[str, int], special: dict[str, str]) -> None:
    """Ids with gaps or in common, lone surrogates, special tokens and template come back; the text says all."""
    tokenizer = TokenizerMap(ids, special, "ab" * 32)
    assert TokenizerMap.from_stored(tokenizer.stored) == tokenizer
    assert TokenizerMap(dict(reversed(ids.items())), special, "ab" * 32).stored == tokenizer.stored
    assert TokenizerMap(ids, special, "").stored != tokenizer.stored


def test_a_map_of_a_large_vocabulary_is_small_when_stored() -> None:
    """128,000 tokens of seven random letters take less than a megabyte; Redis holds one for each base model."""
    letters = random.Random(0)
    ids = {"".join(letters.choices(string.ascii_lowercase, k=7)): number for number in range(128_000)}
    assert len(TokenizerMap(ids).stored) < 1 << 20


def test_a_profile_names_its_tokenizer_and_is_written_without_it() -> None:
    """The profile, which every validation reads, stays small: digest and size are in it, the map is not."""
    profile = make_tokenized_base()
    assert (profile.tokenizer_digest, profile.tokenizer_size) == (make_map().digest, 50)
    written = BaseProfile.model_validate_json(profile.model_dump_json())
    assert written.tokenizer is None
    assert written.tokenizer_stored == stored_digest(make_map().stored)
    assert "w49" not in profile.model_dump_json() + repr(profile)


def test_a_base_without_a_readable_map_has_no_digest() -> None:
    """Adapters' tokenizers are then not compared with nothing."""
    assert make_tokenized_base().with_tokenizer(TokenizerMap({}, problems=(("a", "b"),))).tokenizer_digest == ""
    assert make_tokenized_base().with_tokenizer(None).tokenizer_stored == ""
