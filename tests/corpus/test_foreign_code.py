"""Code that a base model or an adapter brings is never run: not when the base is added, not by a check, not by the
validate stage.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from lora_registry.base_profile import BaseProfile, BuiltFrom
from lora_registry.errors import Rejected
from lora_registry.ledger import Lease
from lora_registry.names import AdapterName
from lora_registry.registrations import Registration
from lora_registry.stages import Stage
from lora_registry.stages.validate import validate
from lora_workers.base_models import read_base_profile
from lora_workers.dry_run import DryRun
from lora_workers.local_artifacts import LocalArtifactStore
from lora_workers.sources.local import LocalSource
from tests.corpus.conftest import Corpus
from tests.helpers.adapters import codes_of

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]
_MODULE = "modeling_trap"
_AUTO_MAP = {
    "AutoConfig": f"{_MODULE}.TrapConfig",
    "AutoModel": f"{_MODULE}.TrapModel",
    "AutoModelForCausalLM": f"{_MODULE}.TrapModel",
}


@dataclass(frozen=True)
class Trap:
    """A base and an adapter that bring a module along which, once imported, leaves a trace."""

    base: Path
    adapter: Path
    trace: Path


@dataclass(frozen=True)
class Registry:
    """What the validate stage asks Redis for."""

    profile: BaseProfile

    @property
    def bases(self) -> Self:
        """What the catalog has of bases."""
        return self

    def get(self, _: str) -> BaseProfile:
        """The one base."""
        return self.profile

    def tokenizer_of(self, _: BaseProfile) -> None:
        """It has no tokenizer."""

    def pin(self, *_: object) -> None:
        """Nothing collects garbage here."""


@pytest.fixture
def trap(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trap:
    """The module lies beside the base, beside the adapter, and where Python looks first."""
    trace = tmp_path / "trace"
    base, adapter, path = tmp_path / "trap-base", tmp_path / "trap-adapter", tmp_path / "path"
    shutil.copytree(corpus.root / "bases" / "llama", base)
    shutil.copytree(corpus.root / "valid" / "llama-q-v", adapter)
    path.mkdir()
    for directory in (base, adapter, path):
        (directory / f"{_MODULE}.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    for file in (base / "config.json", adapter / "adapter_config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": _AUTO_MAP}))
    monkeypatch.delitem(sys.modules, _MODULE, raising=False)
    monkeypatch.syspath_prepend(str(path))
    monkeypatch.chdir(adapter)
    return Trap(base, adapter, trace)


def _validate(trap: Trap, profile: BaseProfile) -> str:
    """The digest under which the validate stage keeps the adapter."""
    source = LocalSource([trap.adapter.parent])
    registration = Registration(
        "reg_000000000000000000000001",
        AdapterName("default", "trap"),
        profile.name,
        source=str(trap.adapter),
        order=1,
        fields={"pinned": source.resolve(str(trap.adapter)).to_json()},
    )
    registry: Any = Registry(profile)
    left = validate(
        Lease(registration, Stage.VALIDATE, 1, "worker"),
        catalog=registry,
        source=source,
        store=LocalArtifactStore(trap.trace.with_name("store")),
        ledger=registry,
        max_lora_rank=64,
    )
    return str(left["digest"])


def _check(trap: Trap, profile: BaseProfile) -> list[str]:
    """The codes that a check finds."""
    return codes_of(DryRun(profile, max_lora_rank=64).check(str(trap.adapter)).findings)


def test_code_beside_a_base_and_an_adapter_is_not_run(trap: Trap) -> None:
    """With auto_map in both configurations the base gets its profile from transformers' own class, the adapter its
    verdict, and the module is never imported.
    """
    profile = read_base_profile("trap/base", trap.base)
    assert profile.built_from is BuiltFrom.MODEL
    assert _check(trap, profile) == ["BASE_NAME_DIFFERS", "CONFIG_FIELD_UNKNOWN"]
    assert _validate(trap, profile).startswith("sha256:")
    assert not trap.trace.exists()


def test_a_class_that_only_the_base_brings_is_not_built(trap: Trap) -> None:
    """An architecture that transformers does not have leaves the profile to the headers alone."""
    file = trap.base / "config.json"
    fields = json.loads(file.read_text()) | {"architectures": ["TrapModel"], "model_type": "trap"}
    file.write_text(json.dumps(fields))
    assert read_base_profile("trap/base", trap.base).built_from is BuiltFrom.HEADERS
    assert not trap.trace.exists()


def test_a_module_that_an_adapter_names_is_not_imported(trap: Trap) -> None:
    """auto_mapping and megatron_core may name a module that Python would find; the adapter is refused unread."""
    profile = read_base_profile("trap/base", trap.base)
    file = trap.adapter / "adapter_config.json"
    named = {
        "auto_mapping": {"parent_library": _MODULE, "base_model_class": "TrapModel"},
        "megatron_core": _MODULE,
        "megatron_config": {"x": 1},
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    assert _check(trap, profile) == ["CONFIG_FOREIGN_IMPORT"] * 3
    with pytest.raises(Rejected) as rejected:
        _validate(trap, profile)
    assert codes_of(rejected.value.findings) == ["CONFIG_FOREIGN_IMPORT"] * 3
    assert not trap.trace.exists()


def test_the_trap_works(trap: Trap, tmp_path: Path) -> None:
    """Who trusts the code runs it: transformers leaves the trace when it is told to."""
    load = "import sys, transformers; transformers.AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)"
    home = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(  # it fails after the import, for the module has no class
        [sys.executable, "-c", load, str(trap.base)],
        env=os.environ | home,
        check=False,
        capture_output=True,
        timeout=120,
    )
    assert trap.trace.exists()
