"""`lora-registry token …` and `lora-registry namespace …`, on a real server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from lora_registry.policies import Policies
from lora_registry.tokens import Tokens, find_token
from lora_workers.cli.app import app
from tests.helpers.registry import Registry

Run = Callable[..., Result]


@pytest.fixture
def run(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line on the test's registry."""
    monkeypatch.setenv("LORA_REGISTRY_REDIS_URL", registry.settings.redis_url)
    monkeypatch.setenv("LORA_REGISTRY_KEY_PREFIX", registry.settings.key_prefix)
    return lambda *arguments: CliRunner().invoke(app, list(arguments), prog_name="lora-registry")


def test_a_token_is_shown_once_and_works_until_it_is_revoked(registry: Registry, run: Run) -> None:
    """Its secret is in the answer of `create` and nowhere else: not in the list, not in Redis."""
    tokens = Tokens(registry.client, registry.settings)
    scopes = ("--scope", "publish", "--scope", "read")
    created = run("token", "create", *scopes, "--namespace", "team", "--expires-days", "7", "--json")
    shown = json.loads(created.stdout)
    assert find_token(shown["token"], tokens.all(), now_s=time.time())
    assert find_token(shown["token"], tokens.all(), now_s=time.time() + 8 * 86_400) is None
    hidden = shown["token"].rpartition("_")[2]
    listed = run("token", "list")
    assert shown["id"] in listed.stdout
    assert "publish read" in listed.stdout
    assert hidden not in listed.stdout + run("token", "list", "--json").stdout
    assert hidden not in str(registry.client.hgetall(registry.keys.tokens))
    assert run("token", "revoke", shown["id"]).exit_code == 0
    assert tokens.all() == {}
    gone = run("token", "revoke", shown["id"])
    assert gone.exit_code == 1
    assert "NOT_FOUND" in gone.stderr


def test_the_plain_form_prints_the_token_on_a_line_of_its_own(registry: Registry, run: Run) -> None:
    """`create | head -1` is the token."""
    printed = run("token", "create", "--scope", "admin", "--namespace", "*").stdout.splitlines()[0]
    assert find_token(printed, Tokens(registry.client, registry.settings).all(), now_s=time.time())


@pytest.mark.parametrize(
    "arguments",
    [
        ("token", "create", "--scope", "publish"),
        ("token", "create", "--namespace", "team"),
        ("token", "create", "--scope", "everything", "--namespace", "team"),
        ("token", "create", "--scope", "read", "--namespace", "No Name"),
        ("namespace", "set", "team"),
        ("namespace", "set", "team", "--source", "s3://"),
        ("namespace", "set", "team", "--source", "s3://bucket::not a name"),
        ("namespace", "set", "team", "--source", "s3://bucket::a::b"),
        ("namespace", "set", "team", "--source", "s3://bucket/team", "--marker-from", "s3://bucket"),
        ("namespace", "set", "v1", "--any-source"),
        ("namespace", "set", "team", "--any-source", "--max-bytes", "-1"),
    ],
)
def test_wrong_usage_makes_nothing(registry: Registry, run: Run, arguments: tuple[str, ...]) -> None:
    """Exit code 2 and a line that says why, without a traceback."""
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "Traceback" not in refused.output
    assert registry.client.exists(registry.keys.tokens, registry.keys.policies) == 0


@pytest.mark.parametrize("command", ["show", "remove"])
def test_a_namespace_that_is_not_there_ends_with_1(run: Run, command: str) -> None:
    """The command was right, and what it names is missing."""
    refused = run("namespace", command, "nobody")
    assert (refused.exit_code, "NOT_FOUND" in refused.stderr) == (1, True)


def test_a_policy_is_set_shown_listed_and_removed(registry: Registry, run: Run) -> None:
    """With prefixes, credentials and quotas, and what of them is used."""
    sources = ("--source", "s3://bucket/team::minio", "--source", "hf://org", "--marker-from", "s3://bucket/team")
    assert run("namespace", "set", "team", *sources, "--max-adapters", "3").exit_code == 0
    registry.register("bot", content="one", namespace="team")
    shown = json.loads(run("namespace", "show", "team", "--json").stdout)
    assert shown["sources"] == [
        {"prefix": "s3://bucket/team", "credential": "minio", "needs_marker": True},
        {"prefix": "hf://org", "credential": "", "needs_marker": False},
    ]
    assert (shown["quotas"]["adapters"], shown["usage"]["adapters"], shown["usage"]["bytes"]) == (3, 1, 4096)
    plain = run("namespace", "show", "team").stdout
    assert "s3://bucket/team with credential minio if the marker file is there" in plain
    assert "team" in run("namespace", "list").stdout
    assert json.loads(run("namespace", "list", "--json").stdout)[0]["namespace"] == "team"
    assert run("namespace", "remove", "team").exit_code == 0
    assert Policies(registry.client, registry.settings).all() == {}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("s3://bucket/env=prod::", ("s3://bucket/env=prod", "")),
        ("s3://bucket/env=prod::minio", ("s3://bucket/env=prod", "minio")),
        ("s3://bucket/team", ("s3://bucket/team", "")),
    ],
)
def test_a_place_and_its_credential_cannot_be_confused(
    registry: Registry, run: Run, text: str, rule: tuple[str, str]
) -> None:
    """Directories are called `env=prod` in many buckets: what is no credential is not taken for one."""
    assert run("namespace", "set", "team", "--source", text).exit_code == 0
    [set_] = Policies(registry.client, registry.settings).get("team").sources
    assert (set_.prefix, set_.credential) == rule


def test_an_equals_sign_that_may_mean_either_is_refused(registry: Registry, run: Run) -> None:
    """The message has both ways to write it."""
    refused = run("namespace", "set", "team", "--source", "s3://bucket/env=prod")
    assert refused.exit_code == 2
    said = " ".join(refused.output.replace("│", " ").split())
    assert "s3://bucket/env::prod" in said
    assert "s3://bucket/env=prod::" in said
    assert registry.client.exists(registry.keys.policies) == 0
