"""The tokenizer beside an adapter, in the pipeline: the verdict is that of `check` against the base's directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_registry.catalog import Catalog
from lora_registry.errors import Rejected
from lora_registry.findings import Finding
from lora_registry.policies import Policies
from lora_registry.registrations import load_findings
from lora_registry.stages import Stage
from lora_registry.stages.resolve import resolve
from lora_registry.stages.validate import validate
from lora_workers.base_models import read_base_profile
from lora_workers.cli.app import app
from lora_workers.dry_run import DryRun
from lora_workers.local_artifacts import LocalArtifactStore
from lora_workers.sources.local import LocalSource
from tests.helpers.adapters_on_disk import DEMO_DATA, copy_adapter
from tests.helpers.registry import BASE, Registry

WORDS = {f"w{number}": number for number in range(50)}
OTHERS = {
    "the same": (WORDS, []),
    "two ids changed": (WORDS | {"w3": 4, "w4": 3}, ["TOKEN_ID_CHANGED"]),
    "a token added in a padded row": (WORDS | {"<new>": 50}, ["TOKENS_ADDED"]),
    "a token beyond the rows": (WORDS | {"<new>": 1 << 20}, ["TOKEN_ID_OUT_OF_RANGE"]),
    "a reserved token renamed": (
        {token: number for token, number in WORDS.items() if token != "w49"} | {"<tool>": 49},
        ["TOKENS_RENAMED"],
    ),
}


def write_tokenizer(directory: Path, ids: dict[str, int]) -> Path:
    """A tokenizer.json with this map."""
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": ids, "merges": []}}))
    return directory


def make_base_directory(directory: Path, ids: dict[str, int]) -> Path:
    """The packaged base model with a tokenizer."""
    shutil.copytree(DEMO_DATA / "bases" / BASE, directory)
    return write_tokenizer(directory, ids)


def judged_by_the_stage(registry: Registry, adapter: Path, directory: Path) -> tuple[Finding, ...]:
    """The findings of the validate stage, of a registration that went through the stages before it."""
    source = LocalSource((adapter.parent,))
    registry.submit(source=str(adapter), base_model=BASE)
    [lease] = registry.advance(Stage.RESOLVE).values()
    policies = Policies(registry.client, registry.settings)
    left_by_resolve = resolve(
        lease, source=source, policies=policies, catalog=registry.catalog, max_adapter_bytes=1 << 30
    )
    registry.ledger.complete(lease, left_by_resolve)
    [lease] = registry.claim(Stage.VALIDATE)
    try:
        left = validate(
            lease,
            catalog=registry.catalog,
            ledger=registry.ledger,
            source=source,
            store=LocalArtifactStore(directory / "artifacts"),
            max_lora_rank=512,
        )
    except Rejected as error:
        return error.findings
    return load_findings(str(left["findings"]))


@pytest.mark.parametrize("other", OTHERS)
def test_the_verdict_is_that_of_check_against_the_directory(registry: Registry, tmp_path: Path, other: str) -> None:
    """With the map in the registry the stage finds what a comparison of both tokenizers finds, errors included."""
    ids, codes = OTHERS[other]
    base = read_base_profile(BASE, make_base_directory(tmp_path / "base", WORDS), with_model=False)
    registry.catalog.bases.add(base)
    adapter = write_tokenizer(copy_adapter(tmp_path / "adapter"), ids)

    found = judged_by_the_stage(registry, adapter, tmp_path)
    assert [finding.code for finding in found if finding.code != "BASE_NAME_DIFFERS"] == codes
    assert found == DryRun(base, max_lora_rank=512).check(str(adapter)).findings


def test_check_of_a_registered_base_has_its_tokenizer(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no directory of the base learns the same from the registry."""
    registry.catalog.bases.add(read_base_profile(BASE, make_base_directory(tmp_path / "base", WORDS), with_model=False))
    adapter = write_tokenizer(copy_adapter(tmp_path / "adapter"), WORDS | {"w3": 4, "w4": 3})
    monkeypatch.setenv("LORA_REGISTRY_REDIS_URL", registry.settings.redis_url)
    monkeypatch.setenv("LORA_REGISTRY_KEY_PREFIX", registry.settings.key_prefix)
    checked = CliRunner().invoke(app, ["check", str(adapter), "--base", BASE, "--json"])
    assert checked.exit_code == 1, checked.output
    unknown = CliRunner().invoke(app, ["check", str(adapter), "--base", "not-registered", "--json"])
    assert unknown.exit_code == 2, unknown.output  # as a base that cannot be read
    assert "TOKEN_ID_CHANGED" in {finding["code"] for finding in json.loads(checked.stdout)["findings"]}


def test_a_new_revision_brings_its_own_tokenizer(registry: Registry, tmp_path: Path) -> None:
    """The map follows the profile, in processes too that knew the old one; without a tokenizer it goes."""
    working = Catalog(registry.client, registry.settings)
    directories = [
        make_base_directory(tmp_path / "old", WORDS),
        make_base_directory(tmp_path / "new", WORDS | {"w50": 50}),
        DEMO_DATA / "bases" / BASE,
    ]
    for directory in directories:
        profile = read_base_profile(BASE, directory, with_model=False)
        registry.catalog.bases.add(profile)
        assert working.bases.tokenizer_of(working.bases.get(BASE)) == profile.tokenizer
    assert registry.client.hlen(registry.keys.tokenizers) == 0


def test_a_map_that_is_not_the_profiles_is_not_used(registry: Registry, tmp_path: Path) -> None:
    """Between reading the profile and its map the base may have been replaced: then the digest alone decides."""
    profile = read_base_profile(BASE, make_base_directory(tmp_path / "base", WORDS), with_model=False)
    registry.catalog.bases.add(profile)
    registry.client.hset(registry.keys.tokenizers, BASE, "of another revision")
    adapter = write_tokenizer(copy_adapter(tmp_path / "adapter"), WORDS | {"w3": 4, "w4": 3})
    codes = [finding.code for finding in judged_by_the_stage(registry, adapter, tmp_path)]
    assert codes == ["BASE_NAME_DIFFERS", "TOKENIZER_DIFFERS"]
