"""The commands of operators, on a real server: what they print for programs, and how they end."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lora_registry.names import AdapterName
from lora_registry.nodes import NodeState
from lora_registry.stages import Stage
from lora_workers import processes
from lora_workers.cli.app import app
from tests.helpers.nodes import join, serve
from tests.helpers.registry import BASE, Registry
from tests.helpers.stack import environment_of
from tests.helpers.waiting import wait_until

BOT = AdapterName("default", "support-bot")


@pytest.fixture(autouse=True)
def _settings_of_the_registry(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands read what the registry was made with."""
    monkeypatch.setenv("LORA_REGISTRY_REDIS_URL", registry.settings.redis_url)
    monkeypatch.setenv("LORA_REGISTRY_KEY_PREFIX", registry.settings.key_prefix)


def run(*arguments: str) -> Result:
    """Runs the command line in this process."""
    return CliRunner().invoke(app, list(arguments), prog_name="lora-registry")


def ask(*arguments: str, ends: int = 0) -> Any:
    """What a command prints with --json."""
    result = run(*arguments, "--json")
    assert result.exit_code == ends, result.output
    return json.loads(result.stdout)


def test_version_and_adapter_are_retired(registry: Registry) -> None:
    """A version in use is refused with the alias in the message; an adapter goes with all it has."""
    registry.register(content="one")
    registry.register(content="two")
    refused = ask("retire", "support-bot.v2", ends=1)
    assert refused["error"]["code"] == "CONFLICT"
    assert "support-bot@support-bot" in refused["error"]["message"]
    assert ask("retire", "support-bot.v1") == {"retired": 1}
    assert run("retire", "support-bot.v1").stdout == "retired 0 versions of support-bot\n"
    assert run("retire", "support-bot").stdout == "retired 1 version of support-bot\n"
    assert run("show", "support-bot.v2").exit_code == 1
    assert run("retire", "support-bot@stable").exit_code == 2


def test_promotion_that_is_terminated_ends_its_direction(registry: Registry, tmp_path: Path) -> None:
    """A job that is cancelled leaves nothing behind that keeps it from being run again."""
    registry.register(content="one")
    join(registry, "silent")
    arguments = ("promote", "support-bot", "1", "--alias", "stable", "--canary", "silent", "--timeout", "600")
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "lora_workers", *arguments]
        promoter = processes.start(command, environment=environment_of(registry.settings), log=log)
        wait_until(lambda: registry.view().directed, what="the direction")
        promoter.terminate()
        assert promoter.wait(60) == 128 + signal.SIGTERM
    assert registry.view().directed == {}
    assert registry.catalog.aliases(BOT).keys() == {BOT.name}


def test_alias_is_rolled_back_and_its_history_is_shown(registry: Registry) -> None:
    """Without an alias the adapter's own is meant; the history names the people that the commands ran as."""
    registry.register(content="one")
    registry.register(content="two")
    moved = ask("rollback", "support-bot")
    assert (moved["alias"], moved["version"]["version"]) == ("support-bot@support-bot", 1)
    ask("alias", "set", "support-bot", "stable", "v2")
    for command in ("set", "support-bot", "stable", "v1"), ("remove", "support-bot", "stable"):
        assert ask("alias", *command, "--expect", "1", ends=1)["error"]["code"] == "CONFLICT"
    assert ask("alias", "remove", "support-bot", "nowhere", ends=1)["error"]["code"] == "NOT_FOUND"
    assert ask("alias", "remove", "support-bot", "stable", "--expect", "2") == {
        "alias": "support-bot@stable",
        "before": 2,
    }
    history = ask("alias", "history", "support-bot", "support-bot")
    assert [(each["from"], each["to"], each["how"]) for each in history] == [
        (2, 1, "rollback"),
        (1, 2, "follow"),
        (None, 1, "follow"),
    ]
    assert "@" in history[0]["by"]
    assert "rollback" in run("alias", "history", "support-bot", "support-bot").stdout


def test_promotion_ends_with_3_if_the_gate_stays_shut(registry: Registry) -> None:
    """And with 0 without a gate; the canaries are named, or so many."""
    registry.register(content="one", follow="manual")
    nodes = join(registry)
    assert ask("promote", "support-bot", "v1")["before"] is None
    registry.register(content="two")
    nodes.ack("node-1", "support-bot.v2", NodeState.SEEN)
    failed = ask("promote", "support-bot", "2", "--canary", "node-1", "--timeout", "0.05", ends=3)
    assert failed["error"]["code"] == "PROMOTION_ABORTED"
    assert ask("promote", "support-bot", "2", "--canary", "5", ends=3)["error"]["code"] == "NOT_SERVED"
    assert run("promote", "support-bot", "2", "--canary", "0").exit_code == 2
    serve(nodes, "node-1", "support-bot.v2")
    done = ask("promote", "support-bot", "2", "--canary", "1", "--timeout", "30")
    assert (done["before"], done["canaries"], done["nodes"][0]["state"]) == (1, ["node-1"], "routable")
    assert "routable" in run("promote", "support-bot", "2", "--canary", "node-1").stdout


def test_labels_are_set_and_dropped(registry: Registry) -> None:
    """KEY=VALUE sets, KEY- drops; anything else is wrong usage."""
    registry.register(labels={"tier": "silver", "old": "x"})
    changed = ask("label", "support-bot", "tier=gold", "old-")
    assert (changed["changed"], changed["version"]["labels"]) == (True, {"tier": "gold"})
    assert run("label", "support-bot.v1", "env=").stdout.split() == ["support-bot.v1", "env=", "tier=gold"]
    assert run("label", "support-bot", "nothing").exit_code == 2
    assert ask("label", "support-bot", "bad key=1", ends=2)["error"]["code"] == "REJECTED"


def test_how_many_versions_are_kept_is_said_for_adapters_and_namespaces(registry: Registry) -> None:
    """A dot at the end means a namespace; without a number it is only shown."""
    registry.register()
    assert ask("keep-last", "support-bot") == {"name": "support-bot", "keep_last": 0}
    assert ask("keep-last", "default.", "5")["keep_last"] == 5
    assert ask("keep-last", "support-bot")["keep_last"] == 5
    assert ask("keep-last", "support-bot", "2")["keep_last"] == 2
    assert "the newest 2" in run("keep-last", "support-bot").stdout
    refused = run("keep-last", "support-bot", "7", "--forget")
    assert (refused.exit_code, "--forget" in refused.stderr) == (2, True)
    assert ask("keep-last", "support-bot")["keep_last"] == 2
    assert ask("keep-last", "support-bot", "--forget")["keep_last"] == 5


def test_nothing_is_kept_of_an_adapter_that_is_not_there(registry: Registry) -> None:
    """A typo is told, by whoever asks as by whoever says; what was said of one that has gone can be taken back."""
    for number in (), ("5",):
        error = ask("keep-last", "nosuch", *number, ends=1)["error"]
        assert (error["code"], "nosuch" in error["message"], "default." in error["remedy"]) == ("NOT_FOUND", True, True)
    assert registry.client.hgetall(registry.keys.keep) == {}
    registry.register()
    run("keep-last", "support-bot", "2")
    run("retire", "support-bot")
    assert ask("keep-last", "support-bot", "--forget")["keep_last"] == 0
    assert registry.client.hgetall(registry.keys.keep) == {}


def test_collection_is_what_its_selector_finds_now(registry: Registry) -> None:
    """By default what each adapter's own alias points at; labels, terms and aliases narrow it."""
    for name, tier in (("a", "gold"), ("b", "gold"), ("c", "silver")):
        for content in "12":
            registry.register(name, content=name + content, labels={"tier": tier})
    registry.catalog.move_alias(AdapterName("default", "a"), "stable", 1)

    def stands_for(name: str) -> list[str]:
        return [each["served_name"] for each in ask("collection", "show", name)["versions"]]

    assert ask("collection", "set", "gold", "--base", BASE, "--label", "tier=gold")["new"] is True
    assert stands_for("gold") == ["a.v2", "b.v2"]
    assert ask("collection", "set", "gold", "--select", "tier!=silver,alias=stable,alias=@own")["new"] is False
    assert stands_for("gold") == ["a.v1", "a.v2", "b.v2"]
    assert ask("collection", "set", "other", "--select", "name=c*", "--namespace", "default", "--alias", "c")["new"]
    assert stands_for("other") == ["c.v2"]
    assert [each["name"] for each in ask("collection", "list")] == ["gold", "other"]
    assert "tier!=silver" in run("collection", "list").stdout
    assert "a.v1" in run("collection", "show", "gold").stdout
    assert ask("collection", "remove", "gold") == {"removed": "gold"}
    assert ask("collection", "show", "gold", ends=1)["error"]["code"] == "NOT_FOUND"
    assert run("collection", "set", "bad", "--select", "no term!").exit_code == 2
    assert run("collection", "set", "every").stdout == "added every: what each adapter's own alias points at\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--select", "namespace=Team A!!"), "NAME_INVALID"),
        (("--namespace", "Team A!!"), "NAME_INVALID"),
        (("--namespace", ""), "NAME_INVALID"),
        (("--alias", ""), "NAME_INVALID"),
        (("--namespace", "team", "--select", "namespace=other"), "REJECTED"),
        (("--label", "a=b", "--select", "a=c"), "REJECTED"),
        (("--label", "a=b", "--select", "a!=b"), "REJECTED"),
        (("--label", "bad key=1"), "REJECTED"),
    ],
)
def test_collection_that_would_stand_for_nothing_is_refused(
    registry: Registry, arguments: tuple[str, ...], code: str
) -> None:
    """What can be no name, and terms that contradict one another; nothing is kept of it."""
    assert ask("collection", "set", "some", *arguments, ends=2)["error"]["code"] == code
    assert ask("collection", "list") == []


def test_collection_s_terms_may_be_said_twice(registry: Registry) -> None:
    """As an option and in the selector, with the same value."""
    terms = ("--namespace", "team", "--label", "a=b", "--label", "a=b", "--select", "namespace=team,a=b")
    assert ask("collection", "set", "some", *terms)["selector"]["labels"] == {"a": "b"}


def test_versions_are_listed_by_each_adapter_s_own_alias_or_any(registry: Registry) -> None:
    """As in a selector; what can be no namespace, alias or label is refused instead of finding nothing."""
    registry.register("a", content="one")
    registry.register("a", content="two")
    registry.register("a", content="three")
    registry.catalog.move_alias(AdapterName("default", "a"), "stable", 1)

    def listed(*arguments: str) -> list[str]:
        return [each["served_name"] for each in ask("list", *arguments)]

    assert listed("--alias", "@own") == ["a.v3"]
    assert listed("--alias", "@any") == ["a.v1", "a.v3"]
    assert listed("--alias", "stable") == ["a.v1"]
    for option, wrong in ("--alias", "@mine"), ("--alias", ""), ("--namespace", "Team A!!"), ("--namespace", ""):
        assert ask("list", option, wrong, ends=2)["error"]["code"] == "NAME_INVALID"
    assert ask("list", "--label", "bad key=1", ends=2)["error"]["code"] == "REJECTED"
    assert ask("collection", "set", "own", "--alias", "@own")["selector"]["aliases"] == ["@own"]


def test_nodes_and_rollout_are_listed(registry: Registry) -> None:
    """Who is there, what one said of each version, and how a version stands, for people and for programs."""
    assert "no serving node" in run("nodes").stdout
    registry.register()
    nodes = join(registry, digests=("sha256:1",), engine_version="0.33.0", select="tier=gold")
    join(registry, "node-2", base_model="other", eager=False)
    nodes.ack("node-1", "support-bot.v1", NodeState.SKIPPED, code="ENGINE_DORA", reason="no DoRA here")
    assert [each["node_id"] for each in ask("nodes")] == ["node-1", "node-2"]
    (only,) = ask("nodes", "--base", "other")
    assert (only["node_id"], only["eager"], only["alive"], only["artifacts"]) == ("node-2", False, True, 0)
    shown = ask("nodes", "show", "node-1")
    assert (shown["artifacts"], shown["acknowledged"][0]["code"]) == (1, "ENGINE_DORA")
    assert ask("nodes", "show", "nobody", ends=1)["error"]["code"] == "NOT_FOUND"
    assert "0.33.0" in run("nodes").stdout
    assert "no DoRA here" in run("nodes", "show", "node-1").stdout
    (stands,) = ask("rollout", "support-bot")
    assert (stands["node"], stands["state"], stands["wanted"]) == ("node-1", "skipped", False)
    assert "no DoRA here" in run("rollout", "support-bot.v1").stdout
    nodes.leave("node-1")
    assert "no node that lives wants support-bot" in run("rollout", "support-bot").stdout
    assert "no serving node of nosuch is known" in run("nodes", "--base", "nosuch").stdout


_BIG = "9" * 40


@pytest.mark.parametrize(
    ("arguments", "ends", "code", "says"),
    [
        (("rollback", "x", ""), 2, "NAME_INVALID", "alias ''"),
        (("rollback", "x", "nosuch"), 1, "NOT_FOUND", "x has no alias 'nosuch'"),
        (("rollback", "x.v3"), 2, "NAME_INVALID", "'x.v3' is a version"),
        (("rollback", "x@prod"), 2, "NAME_INVALID", "'x@prod' is an alias"),
        (("alias", "set", "x.v1", "prod", "1"), 2, "NAME_INVALID", "'x.v1' is a version"),
        (("alias", "set", "x", "x@prod", "1"), 2, "NAME_INVALID", "alias 'x@prod'"),
        (("alias", "set", "x", "prod", _BIG), 1, "NOT_FOUND", "no version 999"),
        (("alias", "set", "x", "prod", "9" * 5000), 2, "WRONG_USAGE", "is no version number"),
        (("alias", "set", "x", "prod", "-1"), 2, "WRONG_USAGE", "-1"),
        (("alias", "set", "x", "prod", "1", "--expect", "0"), 1, "CONFLICT", "points at 2, not at nothing"),
        (("alias", "set", "x", "prod", "1", "--expect", ""), 2, "WRONG_USAGE", "'' is no version number"),
        (("alias", "remove", "x", "prod", "--expect", "0"), 1, "CONFLICT", "points at 2"),
        (("alias", "remove", "x", "x"), 2, "REJECTED", "the adapter's own alias"),
        (("alias", "history", "x", "nosuch"), 1, "NOT_FOUND", "x has no alias 'nosuch'"),
        (("alias", "history", "nosuch", "nosuch"), 1, "NOT_FOUND", "'nosuch'"),
        (("promote", "x", "3", "--alias", ""), 2, "NAME_INVALID", "alias ''"),
        (("promote", "default.x.v3", "3"), 2, "NAME_INVALID", "'default.x.v3' is a version"),
        (("promote", "x", "x.v3"), 2, "WRONG_USAGE", "'x.v3' is no version number"),
        (("promote", "x", "3", "--canary", "nosuch"), 1, "NOT_FOUND", "nosuch"),
        (("promote", "x", "3", "--canary", "-1"), 2, "WRONG_USAGE", "'-1'"),
        (("promote", "x", "3", "--canary", "1.5,bad id"), 2, "WRONG_USAGE", "'1.5,bad id'"),
        (("promote", "x", "3", "--canary", "00"), 2, "WRONG_USAGE", "'00'"),
        (("promote", "x", "3", "--canary", "9" * 5000), 2, "WRONG_USAGE", "'999"),
        (("label", "x", "=v"), 2, "REJECTED", "labels"),
        (("label", "x", "a=b", "a=c"), 2, "WRONG_USAGE", "'a=c'"),
        (("label", "x", "a=b", "a-"), 2, "WRONG_USAGE", "'a-'"),
        (("retire", "x@x"), 2, "WRONG_USAGE", "'x@x' is an alias"),
        (("retire", f"x.v{_BIG}"), 1, "NOT_FOUND", "no version 999"),
        (("nodes", "show", ""), 1, "NOT_FOUND", "no node ''"),
        (("rollout", "x@"), 2, "NAME_INVALID", "alias ''"),
        (("rollout", "default.x.v9"), 1, "NOT_FOUND", "x has no version 9"),
        (("keep-last", "x", "9" * 400), 2, "WRONG_USAGE", "'[N]'"),
        (("keep-last", "x.v3", "5"), 2, "NAME_INVALID", "'x.v3' is a version"),
        (("watch", "--base", BASE, "--from", _BIG), 2, "WRONG_USAGE", "'--from'"),
        (("collection", "set", "c", "--select", "name=x.v3"), 2, "NAME_INVALID", "name 'x.v3'"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_odd_input_ends_with_a_code_a_cause_and_a_remedy(
    registry: Registry, arguments: tuple[str, ...], ends: int, code: str, says: str
) -> None:
    """As an operator would mistype it: one sentence of each, for programs too, and nothing is changed."""
    for content in "123":
        registry.register("x", content=content)
    registry.catalog.move_alias(AdapterName("default", "x"), "prod", 2)
    serve(join(registry), "node-1", "x.v3")
    before = registry.log()
    error = ask(*arguments, ends=ends)["error"]
    assert (error["code"], says in error["message"], bool(error["remedy"])) == (code, True, True)
    if code == "REJECTED":
        assert "findings" not in error["remedy"]
    assert registry.log() == before


def test_canaries_may_be_written_with_spaces(registry: Registry) -> None:
    """After commas, as people do."""
    registry.register()
    nodes = join(registry)
    join(registry, "node-2")
    for node in "node-1", "node-2":
        serve(nodes, node, "support-bot.v1")
    done = ask("promote", "support-bot", "1", "--canary", "node-1, node-2")
    assert done["canaries"] == ["node-1", "node-2"]


def register_and_publish(registry: Registry, *wait: str) -> Result:
    """`register … --wait …`, with this test in the place of dispatcher and workers."""
    results: list[Result] = []
    arguments = ("register", *wait, "support-bot", "/one", "--base", BASE, "--timeout", "30")
    command = threading.Thread(target=lambda: results.append(run(*arguments)))
    command.start()
    wait_until(lambda: registry.inbox.waiting() or not command.is_alive(), what="the event")
    for lease in registry.advance(Stage.PUBLISH).values():
        registry.publish(lease)
    command.join()
    return results[0]


@pytest.mark.parametrize("wait", [("--wait",), ("--wait=outcome",)])
def test_wait_alone_means_the_outcome(registry: Registry, wait: tuple[str, ...]) -> None:
    """The next word is the name, and is not taken for what is waited for; no node has to be there."""
    result = register_and_publish(registry, *wait)
    assert result.exit_code == 0
    assert "support-bot.v1" in result.stdout


@pytest.mark.parametrize("wait", ["routable", "routable:1", "routable:all"])
def test_waiting_for_nodes_ends_when_they_serve_it(registry: Registry, wait: str) -> None:
    """The command ends with the nodes that do, among its results."""
    serve(join(registry), "node-1", "support-bot.v1")
    result = register_and_publish(registry, "--wait", wait, "--json")
    assert result.exit_code == 0, result.output
    answered = json.loads(result.stdout)
    assert (answered["outcome"], answered["nodes"][0]["state"]) == ("published", "routable")
    assert "routable" in register_and_publish(registry, "--wait", wait).stdout


def test_waiting_for_nodes_that_do_not_serve_it_ends_with_3_and_why(registry: Registry) -> None:
    """The registration is published all the same, and said so."""
    result = register_and_publish(registry, "--wait", "routable", "--json")
    assert result.exit_code == 3
    answered = json.loads(result.stdout)
    assert (answered["outcome"], answered["error"]["code"]) == ("published", "NOT_SERVED")
    assert "no node" in result.stderr
    join(registry).ack("node-1", "support-bot.v1", NodeState.FAILED, code="NODE_FULL", reason="no space left")
    assert "NODE_FULL no space left" in register_and_publish(registry, "--wait=routable:all").stdout


@pytest.mark.parametrize("wait", ["--wait=soon", "--wait=routable:0", "--wait=routable:some"])
def test_what_cannot_be_waited_for_is_wrong_usage(registry: Registry, wait: str) -> None:
    """Nothing is submitted then."""
    assert run("register", wait, "support-bot", "/one", "--base", BASE).exit_code == 2
    assert registry.inbox.waiting() == 0
