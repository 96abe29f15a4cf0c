"""What an engine calls its base model is compared with the registry's names where both are names of the Hub."""

from __future__ import annotations

import pytest
from tests.helpers.adapters import make_base

from lora_workers.node.same_base import why_another_base

SNAPSHOT = "/root/.cache/huggingface/hub/models--acme--{}/snapshots/0123abcd"


@pytest.mark.parametrize(
    ("told", "is_other"),
    [
        ("acme/llama-8b", False),
        ("Acme/Llama-8B", False),
        ("acme/llama-8b-awq", False),
        ("acme/llama-8b-instruct", True),
        ("other/llama-8b", True),
        (SNAPSHOT.format("llama-8b"), False),
        (SNAPSHOT.format("llama-8b-instruct"), True),
        ("/models/llama-8b-instruct", False),
        ("./llama", False),
        ("llama", False),
        ("", False),
    ],
)
def test_other_names_of_the_hub_are_other_bases(told: str, is_other: bool) -> None:
    """Source, name and other names count, in any case; a path or a name of the operator's own tells nothing."""
    base = make_base(name="llama-8b").model_copy(
        update={"source": "hf://acme/llama-8b@abc", "also_known_as": ("acme/llama-8b-awq",)}
    )
    assert bool(why_another_base(told, base)) is is_other


def test_a_base_without_a_hub_name_is_compared_with_nothing() -> None:
    """It was registered from a directory: any name may be right."""
    assert why_another_base("acme/llama-8b", make_base(name="llama").model_copy(update={"source": "/models/x"})) == ""
