"""Errors: a code, a remedy and a message each, and all of it survives Celery's pickling."""

from __future__ import annotations

import pickle

import pytest

from lora_registry import codes, errors
from lora_registry.adapter_config import ConfigError
from lora_registry.base_profile import BaseProfileError
from lora_registry.safetensors_header import HeaderError

BESIDE_WHAT_RAISES_THEM = {ConfigError, BaseProfileError, HeaderError}


def all_kinds(root: type[errors.RegistryError] = errors.RegistryError) -> list[type[errors.RegistryError]]:
    """All errors, those that live beside what raises them included."""
    return [root, *(kind for child in root.__subclasses__() for kind in all_kinds(child))]


@pytest.mark.parametrize("kind", all_kinds())
def test_error_survives_pickle(kind: type[errors.RegistryError]) -> None:
    """Type, message and code are the same on the other side."""
    error = kind("what happened")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.message, again.code) == ("what happened", "what happened", kind.code)


def test_findings_survive_pickle() -> None:
    """A rejection keeps its findings."""
    finding = codes.BASE_UNKNOWN.finding("acme/llama", expected="tiny-llama")
    again = pickle.loads(pickle.dumps(errors.Rejected("no", findings=(finding,))))
    assert again.findings == (finding,)
    assert again.message == "no"


@pytest.mark.parametrize("kind", all_kinds())
def test_docstring_is_the_default_message(kind: type[errors.RegistryError]) -> None:
    """An error raised bare says what its class says."""
    assert str(kind()) == kind().message
    assert kind.__doc__ is not None
    assert str(kind()).split("\n")[0] == kind.__doc__.strip().split("\n")[0]


def test_codes_and_remedies_are_stable_and_distinct() -> None:
    """Programs tell errors apart by their codes, and people are told what to do."""
    kinds = all_kinds()
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(kind.code.isupper() and kind.remedy.endswith(".") for kind in kinds)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Every error class appears in the module's drawing."""
    drawing = errors.__doc__ or ""
    drawn = set(all_kinds()) - BESIDE_WHAT_RAISES_THEM
    assert [kind.__name__ for kind in drawn if kind.__name__ not in drawing] == []
