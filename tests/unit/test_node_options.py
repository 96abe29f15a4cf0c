"""Options of a node: flags over environment, legal values, and no secret in sight."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_registry.errors import Configuration
from lora_workers.cli.app import app
from lora_workers.node.options import load_options


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both may be used together, as in a container."""
    monkeypatch.setenv("LORA_REGISTRY_NODE_BASE", "tiny-llama")
    monkeypatch.setenv("LORA_REGISTRY_NODE_DRAIN_S", "5")
    options = load_options(drain_s=7.0, cache=None)
    assert (options.base, options.drain_s, options.cache) == ("tiny-llama", 7.0, Path("lora-registry-node"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "BASE"),
        ({"base": "no base!"}, "BASE"),
        ({"base": "b", "slots": -1}, "SLOTS"),
        ({"base": "b", "max_cache_gb": 0}, "MAX_CACHE_GB"),
        ({"base": "b", "node_id": "a b"}, "NODE_ID"),
    ],
)
def test_a_wrong_option_is_named(fields: dict[str, object], named: str) -> None:
    """One line, with the variable that it could be given as."""
    with pytest.raises(Configuration, match=f"LORA_REGISTRY_NODE_{named}: "):
        load_options(**fields)


def test_the_engines_key_is_what_a_header_takes() -> None:
    """What HTTP refuses it would quote in its error; a file that holds a key ends with a line break."""
    assert load_options(base="b", engine_api_key="sk-secret\n").engine_api_key.get_secret_value() == "sk-secret"
    for wrong in ("sk-sécret", "sk\nsecret"):
        with pytest.raises(Configuration, match="ENGINE_API_KEY") as refused:
            load_options(base="b", engine_api_key=wrong)
        assert wrong not in f"{refused.value}{refused.value.__cause__}"


def test_the_engines_key_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither printed nor dumped."""
    monkeypatch.setenv("LORA_REGISTRY_NODE_ENGINE_API_KEY", "sk-very-secret")
    options = load_options(base="b")
    assert options.engine_api_key.get_secret_value() == "sk-very-secret"
    assert "sk-very-secret" not in f"{options!r} {options} {options.model_dump()} {options.model_dump_json()}"


def test_two_engines_on_one_host_are_two_nodes() -> None:
    """The default name tells them apart, and a restart keeps it."""
    for url, port in ("http://127.0.0.1:8000", "-8000"), ("http://127.0.0.1:8001/", "-8001"):
        assert load_options(base="b", engine_url=url).node_id.endswith(port)
        assert load_options(base="b", engine_url=url, cache="other").node_id.endswith(port)


@pytest.mark.parametrize("engine_url", ["", "/srv/adapters", "file:///srv/adapters", "./é"])
def test_without_a_port_two_nodes_on_one_host_differ_by_their_caches(
    engine_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has one of its own; however its path is written, it is the same after a restart."""
    if engine_url:
        monkeypatch.setenv("LORA_REGISTRY_NODE_ENGINE_URL", engine_url)
    monkeypatch.chdir(tmp_path)
    one, other = load_options(base="b", cache="one").node_id, load_options(base="b", cache=Path("other")).node_id
    assert one != other
    assert load_options(base="b", cache=tmp_path / "other" / ".." / "one").node_id == one
    monkeypatch.setenv("LORA_REGISTRY_NODE_CACHE", "one")
    assert load_options(base="b").node_id == one
    assert ("-adapters-" in one) is ("adapters" in engine_url)
    assert load_options(base="b", node_id="mine").node_id == "mine"


def test_a_long_name_of_a_host_keeps_what_tells_nodes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the name that is cut."""
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 200)
    assert load_options(base="b", cache="one").node_id != load_options(base="b", cache="other").node_id
    assert load_options(base="b", engine_url="http://x:8001").node_id.endswith("-8001")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--base", "b", "--engine", "tgi"], "there are drivers for directory, sglang, vllm"),
        (["--base", "b", "--engine-url", "localhost"], "does not begin with http"),
        (["--base", "b", "--profile", "/no/such/profile.json"], "engine profile /no/such/profile.json"),
        (["--base", "b", "--select", "=x"], "is no term of a selector"),
        ([], "LORA_REGISTRY_NODE_BASE"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(arguments: list[str], says: str) -> None:
    """Before anything is connected; exit code 2."""
    result = CliRunner().invoke(app, ["node", *arguments])
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.output.split())
    assert "Traceback" not in result.output
