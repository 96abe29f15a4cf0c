"""Errors: a code, a remedy and a message each, and all of it survives Celery's pickling."""

from __future__ import annotations

import pickle
import re

import pytest

from lora_registry import codes, errors
from lora_registry.adapter_config import ConfigError
from lora_registry.base_profile import BaseProfileError
from lora_registry.safetensors_header import HeaderError
from lora_workers.extras import MissingExtra

BESIDE_WHAT_RAISES_THEM: set[type[errors.RegistryError]] = {ConfigError, BaseProfileError, HeaderError}
OF_THE_WORKERS: set[type[errors.RegistryError]] = {MissingExtra}


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
    """Every error class of the package is drawn, those of other modules included, and nothing else is."""
    tree = (errors.__doc__ or "").partition("\n\n")[2].partition("The docstring of a class")[0]
    kinds = {kind.__name__ for kind in all_kinds() if kind not in OF_THE_WORKERS}
    assert set(re.findall(r"\b[A-Z]\w+", tree)) == kinds


def test_every_other_error_is_in_the_one_module() -> None:
    """Errors are where they can be found; those beside what raises them are known by name."""
    elsewhere = {kind for kind in all_kinds() if kind.__module__ != errors.__name__}
    assert elsewhere == BESIDE_WHAT_RAISES_THEM | OF_THE_WORKERS


def test_own_attributes_survive_pickle() -> None:
    """A remedy that was given for this one error is not exchanged for its class's."""
    again = pickle.loads(pickle.dumps(errors.NotFound("no", remedy="Look elsewhere.")))
    assert (again.message, again.remedy) == ("no", "Look elsewhere.")
    assert errors.NotFound("no").remedy == errors.NotFound.remedy != "Look elsewhere."
