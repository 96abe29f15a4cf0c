from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.helpers.hooks import CERTIFICATE_URL, RULES, SECRET, SECRETS, STANDARD_SECRET, write_hooks

from lora_registry.errors import Configuration, Transient
from lora_workers.hooks.configuration import HooksFile, load_hooks, read_secrets
from lora_workers.hooks.fetching import AwsFetcher

HUB = RULES["hub"]
RULE = HUB["rules"][0]


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    """The example of the documentation is a legal file, and a JSON file with the same content gives the same hooks."""
    readme = (Path(__file__).parents[2] / "deploy" / "hooks" / "README.md").read_text()
    text = readme.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "hooks.toml").write_text(text)
    (tmp_path / "hooks.json").write_text(json.dumps(tomllib.loads(text)))
    hooks = load_hooks(tmp_path / "hooks.toml")
    assert {hook.kind for hook in hooks.values()} == {hook["kind"] for hook in RULES.values()}
    assert hooks == load_hooks(tmp_path / "hooks.json")
    assert load_hooks(None) == {}


@pytest.mark.parametrize(
    ("hook", "named"),
    [
        (HUB | {"kind": "gitlab"}, "kind"),
        (HUB | {"secrets": ["the-secret-itself"]}, "secrets"),
        (HUB | {"secrets": ["file:relative"]}, "secrets"),
        (HUB | {"secrets": []}, "has no secrets"),
        (HUB | {"namespace": "Not Legal"}, "namespace"),
        (HUB | {"rulez": []}, "rulez"),
        (HUB | {"quiet_s": -1}, "quiet_s"),
        (HUB | {"rules": [{"repo": "*"}]}, "base"),
        (HUB | {"rules": [RULE | {"name": "{model}"}]}, "{repo_name}"),
        (HUB | {"rules": [RULE | {"name": "{repo"}]}, "no placeholder"),
        (HUB | {"rules": [RULE | {"labels": {"Not legal!": "x"}}]}, "labels"),
        (HUB | {"rules": [RULE | {"subfolder": "/absolute"}]}, "subfolder"),
        (RULES["s3"] | {"topics": ["arn:aws:s3:::bucket"]}, "topics"),
        (RULES["s3"] | {"topics": [], "secrets": []}, "secrets, topics"),
        (RULES["wandb"] | {"tokens": [], "secrets": []}, "secrets, tokens"),
    ],
)
def test_what_is_not_legal_is_named(tmp_path: Path, hook: dict[str, Any], named: str) -> None:
    """A file with a mistake is refused at the start, with a message that names the place."""
    with pytest.raises(Configuration) as wrong:
        load_hooks(write_hooks(tmp_path / "hooks.json", {"a": hook}))
    assert named in wrong.value.message
    assert "the-secret-itself" not in wrong.value.message


@pytest.mark.parametrize(
    "text", ["{", "[hooks", "\x00", '{"hooks": []}', '{"other": 1}', '{"hooks": {"Not Legal": {}}}']
)
@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_a_file_that_cannot_be_read_is_a_mistake_of_the_configuration(tmp_path: Path, text: str, suffix: str) -> None:
    """Neither broken syntax nor a missing file is a traceback."""
    file = tmp_path / f"hooks.{suffix}"
    with pytest.raises(Configuration):
        load_hooks(file)
    file.write_text(text)
    with pytest.raises(Configuration):
        load_hooks(file)


def test_secrets_come_from_the_environment_and_from_files(tmp_path: Path) -> None:
    """Several are read, so that one can be replaced by the next; none is in what the objects print."""
    file = tmp_path / "old secret"
    file.write_text("an-older-secret\n")
    told = {"hooks": {"a": HUB | {"secrets": ["env:HOOK_SECRET", f"file:{file}"]}}}
    hook = HooksFile.model_validate(told).hooks["a"]
    secrets = read_secrets("a", hook, environment=SECRETS)
    assert secrets.secrets == (SECRET, "an-older-secret")
    assert SECRET not in f"{secrets!r} {hook!r}"


@pytest.mark.parametrize("given", [{}, {"HOOK_SECRET": ""}, {"HOOK_SECRET": "short"}])
def test_a_missing_or_guessable_secret_stops_the_gateway(given: dict[str, str]) -> None:
    """A hook without a real secret would take anybody's deliveries."""
    hook = HooksFile.model_validate({"hooks": {"a": HUB}}).hooks["a"]
    with pytest.raises(Configuration) as wrong:
        read_secrets("a", hook, environment=given)
    assert "short" not in wrong.value.message


def test_a_file_of_secrets_that_is_not_there(tmp_path: Path) -> None:
    """Its path is named."""
    hook = HooksFile.model_validate({"hooks": {"a": HUB | {"secrets": [f"file:{tmp_path}/none"]}}}).hooks["a"]
    with pytest.raises(Configuration, match="none"):
        read_secrets("a", hook)


@pytest.mark.parametrize("secret", ["whsec_short", "plain-secret-of-somebody", "whsec_%%%%", STANDARD_SECRET[6:]])
def test_a_secret_of_standard_webhooks_has_its_form(secret: str) -> None:
    """A secret that base64 would silently misread is refused at the start, and is not in the message."""
    hook = HooksFile.model_validate({"hooks": {"a": RULES["standard"]}}).hooks["a"]
    with pytest.raises(Configuration) as wrong:
        read_secrets("a", hook, environment={"HOOK_STANDARD_SECRET": secret})
    assert secret not in wrong.value.message


class Server:
    """Amazon SNS, as far as fetching goes."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def fetcher(self) -> AwsFetcher:
        """A fetcher that asks this server."""
        return AwsFetcher(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        return self.answers.pop(0)


def test_a_certificate_is_fetched_once() -> None:
    """Each message names the same certificate, so it is kept; a confirmation is visited each time."""
    server = Server(*(httpx.Response(200, content=b"certificate") for _ in range(3)))
    fetch = server.fetcher()
    assert fetch(CERTIFICATE_URL) == fetch(CERTIFICATE_URL) == b"certificate"
    fetch.visit(CERTIFICATE_URL)
    fetch.visit(CERTIFICATE_URL)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(302, headers={"location": "https://169.254.169.254/"}),
        httpx.Response(500),
        httpx.Response(200, content=b"x" * 100_000),
    ],
    ids=["redirect", "error", "endless"],
)
def test_what_is_not_a_small_document_is_not_taken(answer: httpx.Response) -> None:
    """A redirect is not followed, an error and a long answer are no certificate, and nothing of it is kept."""
    server = Server(answer, httpx.Response(200, content=b"certificate"))
    fetch = server.fetcher()
    with pytest.raises(Transient):
        fetch(CERTIFICATE_URL)
    assert fetch(CERTIFICATE_URL) == b"certificate"


def test_no_other_address_is_fetched() -> None:
    """Whatever asks for it."""
    server = Server()
    with pytest.raises(Transient):
        server.fetcher()("https://169.254.169.254/latest/meta-data/c.pem")
    assert server.asked == []
