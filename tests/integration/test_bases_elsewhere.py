"""Base models and dry runs from the Hub and S3: the same answers as from local files, and only ranges are read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lora_registry.engine_profiles import BUILT_IN, find_profiles
from lora_registry.errors import Rejected
from lora_registry.settings import Settings
from lora_workers.base_files import SourceBaseFiles
from lora_workers.base_models import read_base_profile
from lora_workers.cli.app import app
from lora_workers.dry_run import DryRun
from lora_workers.sources import SourceRouter
from tests.helpers.adapters import llama_shapes, make_adapter, make_base_config, safetensors_bytes
from tests.helpers.adapters_on_disk import DEMO_DATA
from tests.helpers.hub_server import HubServer
from tests.helpers.registry import Registry
from tests.helpers.s3_server import VERSIONED, S3Server
from tests.helpers.sources import ADAPTER, make_sources, unique, write_credentials

TINY = DEMO_DATA / "bases" / "tiny-llama"
TOKENIZER = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}


def write_sharded_base(directory: Path, *, shards: int = 12) -> Path:
    """A base model in shards, with an index, a tokenizer and a file of weights that the index does not name."""
    directory.mkdir()
    shapes = list(llama_shapes(layers=6).items())
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(shards)]
    weight_map = {}
    for number, name in enumerate(names):
        held = dict(shapes[number::shards])
        (directory / name).write_bytes(safetensors_bytes(held, dtype="BF16"))
        weight_map |= dict.fromkeys(held, name)
    (directory / "consolidated.safetensors").write_bytes(safetensors_bytes({"layers.0.wq.weight": (8, 8)}))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(make_base_config(num_hidden_layers=6)))
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return directory


@pytest.fixture
def sources(s3_server: S3Server, hub_server: HubServer, tmp_path: Path) -> SourceRouter:
    """Sources that know both servers."""
    named = {"default-s3": s3_server.credential(), "reader": hub_server.credential()}
    return make_sources(tmp_path, named, hub_endpoint=hub_server.endpoint)


def place(kind: str, directory: Path, *, s3: S3Server, hub: HubServer) -> tuple[str, str]:
    """Put a directory to a place of its own; returns its URL, and the URL that a profile has of it."""
    if kind == "s3":
        prefix = f"{VERSIONED}/{unique()}"
        s3.put_directory(directory, prefix)
        return f"s3://{prefix}", f"s3://{prefix}"
    repo = f"team/{unique()}"
    commit = hub.commit_directory(repo, directory)
    return f"hf://{repo}", f"hf://{repo}@{commit}"


@pytest.mark.parametrize("kind", ["hub", "s3"])
@pytest.mark.parametrize("shards", [0, 12])
def test_profile_is_the_same_wherever_the_base_lies(
    kind: str, shards: int, sources: SourceRouter, s3_server: S3Server, hub_server: HubServer, tmp_path: Path
) -> None:
    """One file or many shards: but for the place, with its commit, nothing differs from the local directory's."""
    directory = write_sharded_base(tmp_path / "base", shards=shards) if shards else TINY
    url, recorded = place(kind, directory, s3=s3_server, hub=hub_server)
    local = read_base_profile("tiny", directory, with_model=False)
    remote = read_base_profile("tiny", SourceBaseFiles(sources, url), with_model=False)
    assert remote.source == recorded
    assert remote == local.model_copy(update={"source": recorded})
    assert len(remote.modules) > 10
    assert bool(remote.tokenizer_digest) == bool(shards)
    assert not any("wq" in module for module in remote.modules), "the index does not name that file"


def test_no_weights_are_read(sources: SourceRouter, hub_server: HubServer, tmp_path: Path) -> None:
    """A shard with many megabytes behind its header costs the first read of a header."""
    directory = tmp_path / "base"
    directory.mkdir()
    shapes = {**llama_shapes(), "model.embed_tokens.weight": (64_000, 64), "lm_head.weight": (64_000, 64)}
    (directory / "config.json").write_text(json.dumps(make_base_config(vocab_size=64_000)))
    (directory / "model.safetensors").write_bytes(safetensors_bytes(shapes))
    repo = f"team/{unique()}"
    hub_server.commit_directory(repo, directory)
    hub_server.requests.clear()
    read_base_profile("big", SourceBaseFiles(sources, repo), with_model=False)
    at_cdn = [each for each in hub_server.requests if each.path.startswith("/cdn/")]
    assert [each.range for each in at_cdn] == ["bytes=0-99999"]
    assert sum(each.sent_bytes for each in at_cdn) == 100_000 < (directory / "model.safetensors").stat().st_size / 100


@pytest.mark.parametrize("spoilt", ["index", "missing shard", "no weights", "no config"])
def test_what_is_no_base_model_is_said(
    spoilt: str, sources: SourceRouter, hub_server: HubServer, tmp_path: Path
) -> None:
    """One sentence for each thing that may be wrong with it, at a source as in a directory."""
    directory = write_sharded_base(tmp_path / "base")
    if spoilt == "index":
        (directory / "model.safetensors.index.json").write_text('{"weight_map": 1}')
    if spoilt == "missing shard":
        (directory / "model-00003-of-00012.safetensors").unlink()
    if spoilt == "no weights":
        for path in directory.glob("*.safetensors"):
            path.unlink()
    if spoilt == "no config":
        (directory / "config.json").unlink()
    repo = f"team/{unique()}"
    hub_server.commit_directory(repo, directory)
    for files in (directory, SourceBaseFiles(sources, repo)):
        with pytest.raises(Rejected, match=r"index|missing|takes a config|config\.json"):
            read_base_profile("bad", files, with_model=False)


@pytest.mark.parametrize("kind", ["hub", "s3"])
def test_dry_run_gives_the_same_report_wherever_the_adapter_lies(
    kind: str, sources: SourceRouter, s3_server: S3Server, hub_server: HubServer
) -> None:
    """Verdict, findings and engines; a rejection, too."""
    base = read_base_profile("tiny-llama", TINY, with_model=False)
    dry_run = DryRun(base, profiles=find_profiles(BUILT_IN), max_lora_rank=512, sources=sources)
    for name in ("support-bot", "wrong-base", "truncated"):
        directory = DEMO_DATA / "adapters" / name
        url, _ = place(kind, directory, s3=s3_server, hub=hub_server)
        remote, local = dry_run.check(url), dry_run.check(str(directory))
        unlike = {"timings_ms", "bytes_read"}
        assert remote.model_dump(exclude=unlike) == local.model_dump(exclude=unlike)


def test_dry_run_counts_what_it_read_and_does_not_wait(
    sources: SourceRouter, hub_server: HubServer, tmp_path: Path
) -> None:
    """The config and the first read of the header; a file that is missing is missing now."""
    base = read_base_profile("tiny-llama", TINY, with_model=False)
    dry_run = DryRun(base, max_lora_rank=512, sources=sources)
    adapter = make_adapter()
    directory = tmp_path / "large"
    directory.mkdir()
    (directory / "adapter_config.json").write_bytes(adapter.config_bytes)
    weights = adapter.weights_bytes
    (directory / "adapter_model.safetensors").write_bytes(weights + bytes(3_000_000))
    repo = f"team/{unique()}"
    hub_server.commit_directory(repo, directory)
    report = dry_run.check(repo)
    assert report.bytes_read == len(adapter.config_bytes) + 100_000
    hub_server.commit(repo, {"adapter_model.safetensors": None})
    codes = [finding.code for finding in dry_run.check(repo).findings]
    assert codes[0] == "FILE_MISSING"


# The command line


def run(settings: Settings, *arguments: str) -> Result:
    """The command line with these settings in its environment."""
    named = {
        "REDIS_URL": settings.redis_url,
        "KEY_PREFIX": settings.key_prefix,
        "HUB_ENDPOINT": settings.hub_endpoint,
        "CREDENTIALS_FILE": str(settings.credentials_file),
    }
    environment: dict[str, Any] = {f"LORA_REGISTRY_{name}": value for name, value in named.items()}
    return CliRunner().invoke(app, list(arguments), env={**os.environ, **environment}, prog_name="lora-registry")


def test_commands_take_urls_and_named_credentials(
    registry: Registry, s3_server: S3Server, hub_server: HubServer, tmp_path: Path
) -> None:
    """`base add` and `check` read a private repository with a credential's name, and say what is wrong without it."""
    path = write_credentials(tmp_path, {"default-s3": s3_server.credential(), "reader": hub_server.credential()})
    changes = {"credentials_file": path, "hub_endpoint": hub_server.endpoint}
    settings = registry.settings.model_copy(update=changes)
    repo, bucket = f"team/{unique()}", f"{VERSIONED}/{unique()}"
    hub_server.add_repo(repo, private=True)
    commit = hub_server.commit_directory(repo, TINY)
    hub_server.commit_directory(repo, ADAPTER, ref="refs/heads/adapter")
    s3_server.put_directory(TINY, bucket)
    refused = run(settings, "base", "add", "tiny-llama", repo)
    assert refused.exit_code == 2, refused.output
    assert "does not say which. Check the name, and give a credential" in refused.output
    added = run(settings, "base", "add", "tiny-llama", repo, "--credential", "reader", "--json")
    assert added.exit_code == 0, added.output
    assert json.loads(added.stdout)["source"] == f"hf://{repo}@{commit}"
    assert registry.catalog.bases.get("tiny-llama").source == f"hf://{repo}@{commit}"
    again = run(settings, "base", "add", "tiny-llama", f"s3://{bucket}", "--json")
    assert json.loads(again.stdout)["new"] is False
    arguments = ("--base", "tiny-llama", "--credential", "reader", "--json")
    checked = run(settings, "check", f"hf://{repo}@adapter", *arguments)
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["verdict"] == "valid"
