"""The users of deploy/redis/users.acl: the pipeline runs under them, and none can do more than its part."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import redis

from lora_registry.announcements import Kind
from lora_registry.catalog import Catalog, Opening
from lora_registry.client import RegistrationClient
from lora_registry.connection import command, connect
from lora_registry.engine_profiles import Ruling
from lora_registry.errors import Configuration
from lora_registry.hook_deliveries import HookDeliveries
from lora_registry.inbox import admit
from lora_registry.kept_traits import parse_traits
from lora_registry.keys import Keys
from lora_registry.names import AdapterName
from lora_registry.namespaces import NamespacePolicy, Quotas, SourceRule
from lora_registry.node_verdicts import verdict_for_node
from lora_registry.nodes import NodeRegistry, NodeState
from lora_registry.policies import Policies
from lora_registry.registrations import Outcome
from lora_registry.settings import Settings
from lora_registry.stages import ORDER, Stage
from lora_registry.subscriber import Subscriber
from lora_registry.tokens import Scope, Tokens
from lora_workers import processes
from lora_workers.base_models import read_base_profile
from lora_workers.embedded import EmbeddedValkey
from tests.helpers import hooks
from tests.helpers.adapters_on_disk import DEMO_DATA, copy_adapter
from tests.helpers.gateway import REGISTRATIONS, running_gateway
from tests.helpers.hub_server import HubServer
from tests.helpers.node_stand import StoringRegistry, make_options, running_agent
from tests.helpers.nodes import make_info, serve
from tests.helpers.registry import BASE, Registry
from tests.helpers.sources import unique
from tests.helpers.stack import environment_of, make_settings
from tests.helpers.vllm_server import VllmServer, vllm_server
from tests.helpers.waiting import wait_until

USERS = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
ROLES = re.findall(r"^user (\w+) on ", USERS.read_text(), flags=re.MULTILINE)
OUTSIDE = ("publisher", "gateway", "node")
"""Roles of processes that the operator does not run."""
KEYS = Keys()
ADAPTER = AdapterName("default", "support-bot")
REGISTRATION = "reg_000000000000000000000000"

NEVER = [
    "CONFIG GET maxmemory",
    "CONFIG SET maxmemory-policy allkeys-lru",
    "FLUSHALL",
    "FLUSHDB",
    "SWAPDB 0 1",
    "KEYS *",
    "DEBUG SLEEP 0",
    "SHUTDOWN NOSAVE",
    "ACL LIST",
    "ACL SETUSER intruder on nopass +@all",
    "CLIENT LIST",
    "CLIENT KILL ID 1",
    "CLIENT PAUSE 1000",
    "MONITOR",
    "REPLICAOF 127.0.0.1 1",
    "MODULE LIST",
    "BGREWRITEAOF",
]
"""What only an administrator of the server does."""

WRITES = {
    "ring the bell of a base model": ("PUBLISH", KEYS.channel(BASE), "forged"),
    "ring the bell of an outcome": ("PUBLISH", KEYS.outcome_channel(REGISTRATION), "published"),
    "add to the log": ("XADD", KEYS.log(BASE), "*", "message", "forged"),
    "trim the log": ("XTRIM", KEYS.log(BASE), "MAXLEN", 0),
    "forge a version": ("HSET", KEYS.versions(BASE), f"{ADAPTER.qualified}.v9", "{}"),
    "move an alias": ("HSET", KEYS.aliases(BASE), f"{ADAPTER.qualified}@stable", "9 pinned sha256:0"),
    "add a base model": ("HSET", KEYS.bases, "forged", "{}"),
    "replace a tokenizer": ("HSET", KEYS.tokenizers, BASE, "forged"),
    "remove the catalog": ("DEL", KEYS.versions(BASE)),
    "end a registration": ("HSET", KEYS.registration(REGISTRATION), "outcome", "published"),
    "make work due": ("ZADD", f"{KEYS.ledger}:due:publish:default", 0, REGISTRATION),
    "admit a server": ("HSET", KEYS.server, "run_id", "0"),
    "reset the ids": ("SET", KEYS.next_id, 0),
    "wake a stage": ("LPUSH", f"{KEYS.prefix}:celery:{Stage.PUBLISH}", "{}"),
    "give a namespace a policy": ("HSET", KEYS.policies, "default", "{}"),
    "remove a policy": ("HDEL", KEYS.policies, "default"),
    "make a token": ("HSET", KEYS.tokens, "0123456789ab", "{}"),
    "forget what was published": ("DEL", KEYS.usage("default")),
    "write another application's keys": ("SET", "somebody-elses", 1),
}
"""What nobody outside may do, as the command that would do it."""


class Server:
    """A server with the users of the file, and one more for the test's own questions."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        users = directory / "users.acl"
        users.write_text(f"{USERS.read_text()}user tests on >tests ~* &* +@all\n")
        self.embedded = EmbeddedValkey(directory, acl_file=users)

    def url(self, role: str) -> str:
        """The server, as a process of this role reaches it."""
        password = "tests" if role == "tests" else f"change-me-{role}"
        return self.embedded.url.replace("unix://", f"unix://{role}:{password}@")

    def as_role(self, role: str) -> redis.Redis:
        """A client of this role."""
        return connect(self.url(role), name=role)

    def permits(self, role: str, *parts: object) -> bool:
        """Whether the server would run the command for this role."""
        answer = command(self.as_role("tests"), "ACL", "DRYRUN", role, *(str(part) for part in parts))
        return str(answer) == "OK"


@pytest.fixture
def canary_engine() -> Iterator[VllmServer]:
    """What the worker tries candidates on."""
    with vllm_server() as engine:
        yield engine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for this module; where there is none, that is a skip on a laptop and an error in CI."""
    server = Server(tmp_path_factory.mktemp("acl"))
    try:
        server.embedded.start()
    except Configuration as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    yield server
    server.embedded.stop()


class Processes:
    """Command lines of operators, each under its role."""

    def __init__(self, server: Server, settings: Settings, log: Path) -> None:
        self._server = server
        self._settings = settings
        self._log = log.open("ab")
        self.started: list[Popen[bytes]] = []

    def start(self, role: str, *arguments: str) -> None:
        """Start `lora-registry ARGUMENTS` under a role."""
        settings = self._settings.model_copy(update={"redis_url": self._server.url(role)})
        command = [sys.executable, "-m", "lora_workers", *arguments, "--log-level", "warning"]
        self.started.append(processes.start(command, environment=environment_of(settings), log=self._log))

    def all_run(self) -> bool:
        """Whether none has ended."""
        return all(each.poll() is None for each in self.started)

    def stop(self) -> list[int]:
        """End them in order; returns their exit codes."""
        codes = [processes.stop(each) for each in self.started]
        self._log.close()
        return codes


@contextmanager
def without_refusal(server: Server, settings: Settings, log: Path) -> Iterator[Processes]:
    """Processes that end with the test, and of which none may say that it was refused anything."""
    running = Processes(server, settings, log)
    try:
        yield running
    finally:
        running.stop()
        said = log.read_text()
        print(said)
    assert "noperm" not in said.lower()
    assert "no permissions" not in said.lower()


def test_a_registration_goes_from_publisher_to_node_with_each_process_under_its_role(
    server: Server, canary_engine: VllmServer, tmp_path: Path
) -> None:
    """Dispatcher, worker, operator, publisher and node each have what they need: it is tried, published and heard.

    Nothing that they say in between is a refusal.
    """
    engines = {BASE: f"vllm@{canary_engine.url}"}
    settings = make_settings(server.url("publisher"), tmp_path, stall_timeout_s=60.0, canary_engines=engines)
    with without_refusal(server, settings, tmp_path / "processes.log") as running:
        running.start("dispatcher", "dispatcher")
        running.start("worker", "worker", "--queues", ",".join(ORDER))
        operator = Catalog(server.as_role("operator"), settings)
        operator.bases.add(read_base_profile(BASE, DEMO_DATA / "bases" / BASE, with_model=False))

        client = RegistrationClient.from_url(server.url("publisher"))
        source = copy_adapter(tmp_path / "sources" / "support-bot")
        one = client.submit(name="support-bot", base_model=BASE, source=str(source), idempotency_key="once")
        again = client.submit(name="support-bot", base_model=BASE, source=str(source), idempotency_key="once")
        assert again == one
        published = client.wait(one, timeout_s=60)
        assert published.outcome is Outcome.PUBLISHED
        assert Stage.CANARY in published.timings_ms
        operator.move_alias(ADAPTER, "stable", published.version)
        (record,) = client.catalog.versions(ADAPTER)
        assert parse_traits(record.traits).largest_rank == record.rank
        assert verdict_for_node(record, make_info(max_lora_rank=record.rank)).verdict is Ruling.ACCEPT
        nodes = NodeRegistry(server.as_role("node"), settings)
        nodes.heartbeat(make_info(), digests=[], fresh=True)
        serve(nodes, "node-1", "support-bot.v1")
        assert [each.state for each in client.wait_routable("support-bot", timeout_s=60)] == [NodeState.ROUTABLE]
        assert client.standings("support-bot")[0].reason == ""
        assert client.catalog.versions(ADAPTER)[0].lora_int_id == published.lora_int_id

        node = Subscriber(BASE, url=server.url("node")).follow(idle_s=60)
        snapshot = next(node)
        assert {change.subject for change in snapshot.changes} == {
            "support-bot.v1",
            "default.support-bot@support-bot",
            "default.support-bot@stable",
        }
        retrained = copy_adapter(tmp_path / "sources" / "retrained", variant=1)
        client.submit(name="support-bot", base_model=BASE, source=str(retrained))
        (heard,) = next(node).changes
        assert (heard.kind, heard.subject) == (Kind.VERSION_PUBLISHED, "support-bot.v2")
        node.close()

        slots = f"{KEYS.ledger}:slots:{Stage.ALLOCATE}"
        wait_until(lambda: server.as_role("tests").zcard(slots), what="the worker's slots")
        assert running.all_run()


def test_a_node_agent_works_under_its_own_role(server: Server, tmp_path: Path) -> None:
    """The node's role is enough to follow, fetch, acknowledge and leave."""
    operator = make_settings(server.url("operator"), tmp_path)
    registry = StoringRegistry(server.as_role("operator"), operator)
    registry.admit()
    options = make_options(tmp_path)
    with running_agent(options, operator.model_copy(update={"redis_url": server.url("node")})):
        record = registry.publish_version()
        registry.wait_for(record.served_name, NodeState.ROUTABLE)
        assert [node.info.node_id for node in registry.nodes.nodes()] == ["node-1"]
    assert registry.nodes.nodes() == []


def test_a_promotion_without_its_promoter_is_decided_under_the_roles(server: Server, tmp_path: Path) -> None:
    """The operator promotes; dispatcher and worker need no more than their roles have to decide it in its place."""
    settings = make_settings(server.url("operator"), tmp_path, stall_timeout_s=60.0)
    registry = Registry(server.as_role("operator"), settings)
    with without_refusal(server, settings, tmp_path / "processes.log") as running:
        running.start("dispatcher", "dispatcher")
        running.start("worker", "worker", "--queues", Stage.PUBLISH)
        registry.admit()
        for content in ("one", "two"):
            registry.register("promoted-bot", content=content)
        adapter = AdapterName("default", "promoted-bot")
        registry.catalog.move_alias(adapter, "stable", 1)
        gone = Opening("token", lease_s=0.0, length_s=0.0, failures_since_s=1.0)
        registry.catalog.move_alias(adapter, "stable", 2, opens=gone)
        registry.catalog.move_alias(adapter, "beta", 2, opens=gone)
        wait_until(lambda: not registry.client.exists(KEYS.promotions), what="the decisions")
        assert running.all_run()
    assert registry.version("promoted-bot", alias="stable").version == 1
    assert "beta" not in registry.catalog.aliases(adapter)
    registry.lifecycle.retire_adapter(adapter)


def test_node_says_what_it_is_and_does_under_its_own_role(server: Server) -> None:
    """A node's role is enough for all that nodes say, and the publisher's to read it."""
    settings = make_settings(server.url("node"), Path("/nowhere"))
    nodes = NodeRegistry(server.as_role("node"), settings)
    nodes.heartbeat(make_info(), digests=[], fresh=True)
    nodes.heartbeat(make_info(), digests=["sha256:1"])
    serve(nodes, "node-1", "support-bot.v1")
    nodes.ack("node-1", "support-bot.v0", NodeState.RETIRED)
    for role in ("publisher", "gateway", "worker", "operator"):
        reader = NodeRegistry(server.as_role(role), settings)
        assert [node.info.node_id for node in reader.nodes()] == ["node-1"]
        assert [ack.state for ack in reader.acks("support-bot.v1")] == [NodeState.ROUTABLE]
        assert len(reader.acks_of("node-1")) == 2
    nodes.leave("node-1")
    assert nodes.nodes() == []


def test_a_registration_over_http_with_the_gateway_under_its_role(server: Server, tmp_path: Path) -> None:
    """The gateway has what it needs for tokens, policies, quotas, waiting and showing, and says no refusal."""
    settings = make_settings(server.url("publisher"), tmp_path, stall_timeout_s=60.0, require_namespace_policy=True)
    operator = server.as_role("operator")
    Catalog(operator, settings).bases.add(read_base_profile(BASE, DEMO_DATA / "bases" / BASE, with_model=False))
    rules = (SourceRule(prefix=str(tmp_path / "sources")),)
    Policies(operator, settings).set(NamespacePolicy(namespace="web", sources=rules, quotas=Quotas(adapters=1)))
    secret, token = Tokens(operator, settings).create(scopes=[Scope.PUBLISH, Scope.READ], namespaces=["web"])
    source = copy_adapter(tmp_path / "sources" / "web-bot", variant=9)
    body = {"namespace": "web", "name": "web-bot", "base_model": BASE, "source": str(source)}
    as_gateway = settings.model_copy(update={"redis_url": server.url("gateway")})
    with ExitStack() as after, without_refusal(server, settings, tmp_path / "processes.log") as running:
        after.callback(Tokens(operator, settings).revoke, token.id)
        running.start("dispatcher", "dispatcher")
        running.start("worker", "worker", "--queues", ",".join(ORDER))
        with running_gateway(as_gateway, on_loopback=False, token=secret.get_secret_value()) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200, what="readiness")
            accepted = client.post(REGISTRATIONS, json=body, headers={"Idempotency-Key": "once"})
            assert accepted.status_code == 202, accepted.text
            state: dict[str, Any] = {"state": "", "outcome": None}
            while not state["outcome"]:
                state = client.get(accepted.headers["location"], params={"wait_s": 20, "seen": state["state"]}).json()
            assert state["outcome"] == "published"
            assert client.get("/v1/adapters").json()["adapters"][0]["current"]["served_name"] == "web.web-bot.v1"
            assert client.get("/v1/adapters/web/web-bot").json()["versions"] == [1]
            assert client.get(f"/v1/bases/{BASE}").status_code == 200
            refused = client.post(REGISTRATIONS, json={**body, "name": "second-bot"})
            assert refused.json()["findings"][0]["code"] == "QUOTA_ADAPTERS"
            again = client.post(REGISTRATIONS, json=body, headers={"Idempotency-Key": "once"})
            assert again.status_code == 200
        assert running.all_run()


def test_aliases_move_over_http_under_the_role_of_the_promoter(server: Server, tmp_path: Path) -> None:
    """That role is enough for all that a gateway does with aliases; with its own alone it moves none, and says so."""
    settings = make_settings(server.url("operator"), tmp_path)
    registry = StoringRegistry(server.as_role("operator"), settings)
    registry.admit()
    name = registry.publish_version().adapter.name
    path = f"/v1/adapters/default/{name}/aliases/canary"
    as_gateway = settings.model_copy(update={"redis_url": server.url("gateway")})
    with running_gateway(as_gateway) as client:
        refused = client.put(path, json={"version": 1})
        assert (refused.status_code, refused.json()["code"]) == (503, "CONFIGURATION")
    assert "canary" not in registry.catalog.aliases(AdapterName("default", name))
    with running_gateway(as_gateway.model_copy(update={"alias_redis_url": server.url("promoter")})) as client:
        assert client.put(path, json={"version": 1, "expect": 0}).status_code == 200
        assert client.put(path, json={"version": 1, "expect": 2}).status_code == 409
        assert client.get(path).json()["version"] == 1
        assert client.put(f"/v1/adapters/default/{name}/aliases/{name}", json={"version": 1}).status_code == 200
        assert client.put(f"/v1/adapters/default/{name}/aliases/{name}", json={"version": None}).status_code == 200
        assert client.put(path, json={"version": 9}).status_code == 404
        assert client.delete(path).json()["before"] == 1
        assert client.put(path, json={"version": 1}).status_code == 200  # its history was about to expire


def test_a_delivery_with_gateway_and_dispatcher_under_their_roles(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer of a hook, and the way from a delivery to a registration, need no more than the roles have."""
    for name, value in hooks.SECRETS.items():
        monkeypatch.setenv(name, value)
    hooks_file = hooks.write_hooks(tmp_path / "hooks.json")
    settings = make_settings(server.url("gateway"), tmp_path, hooks_file=hooks_file, hook_quiet_s=0.05, hook_history=2)
    deliveries = HookDeliveries(server.as_role("operator"), settings)
    push = hooks.hub(hooks.hub_push("acme/a", sha="1" * 40))
    with without_refusal(server, settings, tmp_path / "processes.log") as running:
        running.start("dispatcher", "dispatcher")
        with running_gateway(settings) as client:

            def verdict(sent: hooks.Sent) -> str:
                answer = client.post("/v1/webhooks/hub", content=sent.body, headers=dict(sent.headers))
                return str(answer.json().get("verdict", answer.json().get("code")))

            assert verdict(push) == "queued"
            wait_until(lambda: deliveries.delivery("hub", "delivery-1").registrations, what="the registration")
            assert verdict(push) == "duplicate"
            assert verdict(push.changed(x_webhook_secret="wrong-secret")) == "HOOK_FORGED"
            assert [verdict(push.changed(webhook_id=each)) for each in "234"] == ["duplicate"] * 3
            assert verdict(hooks.hub(b"{}", delivery_id="5")) == "ignored"
        assert running.all_run()


def test_a_resync_under_the_role_of_the_gateway(server: Server, tmp_path: Path, hub_server: HubServer) -> None:
    """Asking for what is new, recalling what is known and noting what cannot be had need no more than that role has."""
    repo = f"acme/{unique()}"
    hub_server.commit(repo, {"adapter_config.json": b"{}"})
    watched = hooks.RULES["hub"] | {"secrets": [], "watch": [f"hf://{repo}", "hf://acme/not-there"]}
    hooks_file = hooks.write_hooks(tmp_path / "hooks.json", {"hub": watched})
    changes = {"hooks_file": hooks_file, "hook_quiet_s": 0.05, "hub_endpoint": hub_server.endpoint}
    settings = make_settings(server.url("gateway"), tmp_path, resync_interval_s=0.1, **changes)
    deliveries = HookDeliveries(server.as_role("operator"), settings)
    with without_refusal(server, settings, tmp_path / "processes.log") as running:
        running.start("dispatcher", "dispatcher")
        running.start("gateway", "resync")
        wait_until(lambda: any(each.registrations for each in deliveries.history("hub")), what="the registration")
        wait_until(lambda: any(each.times > 1 for each in deliveries.history("hub")), what="a second round")
        assert running.all_run()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("forbidden", NEVER)
def test_no_role_administers_the_server(server: Server, role: str, forbidden: str) -> None:
    """Neither settings, users, other clients nor the data as a whole are any role's."""
    assert not server.permits(role, *forbidden.split())


@pytest.mark.parametrize("role", OUTSIDE)
@pytest.mark.parametrize("what", WRITES)
def test_nobody_outside_writes_what_the_pipeline_writes(server: Server, role: str, what: str) -> None:
    """Publishers, gateways and nodes cannot write or announce anything, and a script of theirs cannot either."""
    before = dump(server)
    client = server.as_role(role)
    parts = [str(part) for part in WRITES[what]]
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*parts)
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|ACL failure"):
        client.eval("return redis.call(unpack(ARGV))", 0, *parts)
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|ACL failure"):
        client.eval("return redis.call(unpack(ARGV))", 1, KEYS.accepted(REGISTRATION), *parts)
    assert dump(server) == before


@pytest.mark.parametrize("role", ROLES)
def test_only_dispatcher_and_operator_admit_a_server(server: Server, role: str) -> None:
    """Whoever could write the server key could have ids issued twice: two roles can."""
    client, settings = server.as_role(role), make_settings(server.url(role), Path("/nowhere"))
    if role in ("dispatcher", "operator"):
        admit(client, settings)
        assert server.permits(role, "HSET", KEYS.server, "run_id", "0")
        return
    assert not server.permits(role, "HSET", KEYS.server, "run_id", "0")
    server.as_role("tests").hset(KEYS.server, "run_id", "of another server")
    with pytest.raises((Configuration, redis.exceptions.ResponseError), match=r"(?i)permission|ACL failure"):
        admit(client, settings)
    assert server.as_role("tests").hget(KEYS.server, "run_id") == "of another server"


@pytest.mark.parametrize(
    ("role", "allowed", "forbidden"),
    [
        ("publisher", ("HSET", KEYS.accepted(REGISTRATION), "a", "b"), ("HGETALL", f"{KEYS.ledger}:wake:allocate")),
        ("gateway", ("XRANGE", KEYS.log(BASE), "-", "+"), ("HSET", KEYS.sequences, BASE, "9")),
        ("gateway", ("HGETALL", KEYS.policies), ("HDEL", KEYS.policies, "team")),
        ("promoter", ("HSET", KEYS.aliases(BASE), "a", "b"), ("HSET", KEYS.versions(BASE), "a", "b")),
        ("promoter", ("HGET", KEYS.versions(BASE), "a"), ("HSET", KEYS.bases, "forged", "{}")),
        ("promoter", ("HSET", KEYS.adapter(ADAPTER), "a", "b"), ("HSET", KEYS.adapters, "a", "b")),
        ("promoter", ("XADD", KEYS.log(BASE), "*", "message", "m"), ("XADD", KEYS.events, "*", "id", REGISTRATION)),
        ("promoter", ("PUBLISH", KEYS.channel(BASE), "m"), ("PUBLISH", KEYS.outcome_channel(REGISTRATION), "forged")),
        ("promoter", ("HMGET", KEYS.server, "run_id"), ("HGETALL", KEYS.tokens)),
        ("gateway", ("HGETALL", KEYS.tokens), ("HSET", KEYS.tokens, "0123456789ab", "{}")),
        ("gateway", ("HGETALL", KEYS.usage("team")), ("HSET", KEYS.usage("team"), "adapters", "0")),
        ("gateway", ("HSET", KEYS.delivery("hub:1"), "a", "b"), ("XADD", KEYS.log(BASE), "*", "message", "forged")),
        ("dispatcher", ("ZREM", KEYS.pending_origins, "1"), ("HSET", KEYS.bases, "forged", "{}")),
        ("publisher", ("XLEN", KEYS.events), ("HSET", KEYS.origin("1"), "event", "{}")),
        ("worker", ("GET", KEYS.next_id), ("HGETALL", KEYS.delivery("hub:1"))),
        ("node", ("HGETALL", KEYS.adapters), ("HGETALL", KEYS.delivery("hub:1"))),
        ("gateway", ("SUBSCRIBE", KEYS.state_channel(REGISTRATION)), ("PUBLISH", KEYS.state_channel(REGISTRATION), "")),
        ("worker", ("HGET", KEYS.policies, "team"), ("HGETALL", KEYS.tokens)),
        ("worker", ("HSET", KEYS.usage("team"), "adapters", "1"), ("HSET", KEYS.policies, "team", "{}")),
        ("publisher", ("HGETALL", KEYS.usage("team")), ("HGETALL", KEYS.tokens)),
        ("dispatcher", ("HGETALL", KEYS.sequences), ("HGETALL", KEYS.tokens)),
        ("node", ("HGETALL", KEYS.aliases(BASE)), ("HGETALL", KEYS.tokens)),
        ("operator", ("HSET", KEYS.tokens, "0123456789ab", "{}"), ("SET", "somebody-elses", "1")),
        ("node", ("XRANGE", KEYS.log(BASE), "-", "+"), ("XADD", KEYS.events, "*", "id", REGISTRATION)),
        ("node", ("HSET", KEYS.node_acks("node-1"), "a", "b"), ("HSET", KEYS.aliases(BASE), "a", "b")),
        ("node", ("PUBLISH", KEYS.ack_bell("a.v1"), "seen"), ("PUBLISH", KEYS.channel(BASE), "forged")),
        ("publisher", ("HGETALL", KEYS.node("node-1")), ("HSET", KEYS.node_acks("node-1"), "a", "b")),
        ("gateway", ("SUBSCRIBE", KEYS.ack_bell("a.v1")), ("PUBLISH", KEYS.ack_bell("a.v1"), "seen")),
        ("worker", ("HGETALL", KEYS.node("node-1")), ("HSET", KEYS.node_acks("node-1"), "a", "b")),
        ("node", ("SUBSCRIBE", KEYS.channel(BASE)), ("SUBSCRIBE", KEYS.outcome_channel(REGISTRATION))),
        ("node", ("HGETALL", KEYS.versions(BASE)), ("HGETALL", KEYS.accepted(REGISTRATION))),
        ("dispatcher", ("HSET", KEYS.registration(REGISTRATION), "a", "b"), ("HSET", KEYS.versions(BASE), "a", "b")),
        ("dispatcher", ("XDEL", KEYS.events, "1-0"), ("XADD", KEYS.log(BASE), "*", "message", "forged")),
        ("worker", ("XADD", KEYS.log(BASE), "*", "message", "m"), ("XADD", KEYS.events, "*", "id", REGISTRATION)),
        ("worker", ("HSET", KEYS.versions(BASE), "a", "b"), ("XRANGE", KEYS.events, "-", "+")),
        ("worker", ("GET", KEYS.next_id), ("HGETALL", KEYS.accepted(REGISTRATION))),
        ("operator", ("HSET", KEYS.aliases(BASE), "a", "b"), ("SET", "somebody-elses", "1")),
    ],
)
def test_each_role_has_its_part_of_the_keys(
    server: Server, role: str, allowed: tuple[str, ...], forbidden: tuple[str, ...]
) -> None:
    """What deploy/redis/README.md says of the roles: what is theirs they can do, what is not they cannot."""
    assert server.permits(role, *allowed)
    assert not server.permits(role, *forbidden)


def test_without_a_user_nobody_gets_in(server: Server) -> None:
    """The default user is off: a connection that names no user may not even read."""
    with pytest.raises(Configuration):
        command(connect(server.embedded.url, retries=0), "GET", KEYS.next_id)


def dump(server: Server) -> dict[str, Any]:
    """Everything the server holds."""
    client = server.as_role("tests")
    return {key: client.execute_command("DUMP", key, NEVER_DECODE=True) for key in client.scan_iter("*")}
