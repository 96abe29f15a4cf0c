"""Quotas of a namespace: the publish script counts, so that no crowd and no crash gets past them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lora_registry.adapter_config import canonical_config
from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE, FileDigest, Manifest
from lora_registry.errors import LeaseLost, NotFound, Rejected
from lora_registry.ledger import Lease
from lora_registry.names import AdapterName
from lora_registry.namespaces import NamespacePolicy, Quotas, SourceRule, Usage
from lora_registry.policies import Policies
from lora_registry.stages import Stage
from lora_registry.stages.resolve import resolve
from lora_workers.sources import open_sources
from tests.helpers.adapters import codes_of
from tests.helpers.hub_server import HubServer
from tests.helpers.registry import Registry
from tests.helpers.sources import ADAPTER, CONFIG, WEIGHTS, unique

TEAM = AdapterName("team", "bot")


def limit(registry: Registry, **quotas: int) -> Policies:
    """Give namespace team these quotas."""
    policies = Policies(registry.client, registry.settings)
    policies.set(NamespacePolicy(namespace="team", any_source=True, quotas=Quotas(**quotas)))
    return policies


def publish_all(registry: Registry, leases: list[Lease]) -> list[str]:
    """Publish all at once, as workers would; returns for each the outcome, or the code that it was refused with."""

    def publish(lease: Lease) -> str:
        try:
            return str(registry.publish(lease).outcome)
        except Rejected as error:
            return codes_of(error.findings)[0]

    with ThreadPoolExecutor(50) as pool:
        return list(pool.map(publish, leases))


@pytest.mark.parametrize(
    ("quotas", "names", "code"),
    [
        ({"adapters": 7}, [f"bot-{number}" for number in range(50)], "QUOTA_ADAPTERS"),
        ({"versions_per_day": 7}, ["bot"] * 50, "QUOTA_VERSIONS_PER_DAY"),
        ({"bytes": 7 * 4096 + 4095}, [f"bot-{number}" for number in range(50)], "QUOTA_BYTES"),
    ],
    ids=["adapters", "versions", "bytes"],
)
def test_fifty_writers_at_once_get_exactly_what_is_allowed(
    registry: Registry, quotas: dict[str, int], names: list[str], code: str
) -> None:
    """All of them pass every earlier look; seven are published, and the others are refused with the quota's code."""
    policies = limit(registry, **quotas)
    for number, name in enumerate(names):
        registry.submit(name, content=f"c{number}", namespace="team")
    leases = list(registry.advance(Stage.PUBLISH).values())
    assert len(leases) == 50
    outcomes = publish_all(registry, leases)
    assert (outcomes.count("published"), outcomes.count(code)) == (7, 43)
    usage, _ = policies.usage(TEAM)
    assert usage == Usage(adapters=len(set(names[:7])), versions_today=7, bytes=7 * 4096)
    assert len(list(registry.catalog.select(namespace="team"))) == 7


def test_a_version_is_counted_once_whatever_is_repeated(registry: Registry) -> None:
    """A publish that is asked for again finds its lease gone; unchanged bytes and what is rejected count nothing."""
    policies = limit(registry, versions_per_day=100)
    registry.submit("bot", content="one", namespace="team")
    (lease,) = registry.advance(Stage.PUBLISH).values()
    registry.publish(lease)
    with pytest.raises(LeaseLost):
        registry.publish(lease)
    registry.register("bot", content="one", namespace="team")
    registry.submit("bot", content="two", namespace="team")
    limit(registry, versions_per_day=1)
    (lease,) = registry.advance(Stage.PUBLISH).values()
    with pytest.raises(Rejected):
        registry.publish(lease)
    assert policies.usage(TEAM) == (Usage(adapters=1, versions_today=1, bytes=4096), False)


def test_bytes_that_several_versions_hold_are_counted_once(registry: Registry) -> None:
    """The store keeps them once. They are given back with the last version that holds them, when it is retired."""
    policies = limit(registry, bytes=2 * 4096)
    registry.register("bot", content="one", namespace="team")
    registry.register("other", content="one", namespace="team")
    registry.register("bot", content="two", namespace="team")
    registry.register("bot", content="one", namespace="team")
    assert policies.usage(TEAM)[0] == Usage(adapters=2, versions_today=4, bytes=2 * 4096)
    left = []
    for version in (2, 1, 1):  # the last one again: it gives nothing back twice
        registry.lifecycle.retire_version(TEAM, version)
        left.append(policies.usage(TEAM)[0].bytes)
    for name in ("other", "bot"):
        registry.lifecycle.retire_adapter(AdapterName("team", name))
        left.append(policies.usage(TEAM)[0].bytes)
    assert left == [4096, 4096, 4096, 4096, 0]
    assert policies.usage(TEAM)[0] == Usage(adapters=2, versions_today=4, bytes=0)


def test_bytes_of_versions_that_a_newer_one_retires_are_given_back(registry: Registry) -> None:
    """With one version to keep, a namespace with room for two publishes for ever."""
    policies = limit(registry, bytes=2 * 4096)
    keeping = registry.with_settings(keep_last=1)
    for content in ("one", "two", "three", "four"):
        keeping.register("bot", content=content, namespace="team")
        assert policies.usage(TEAM)[0].bytes == 4096


def test_the_count_of_versions_begins_anew_each_day(registry: Registry) -> None:
    """By the server's clock, in UTC."""
    policies = limit(registry, versions_per_day=1)
    registry.register("bot", content="one", namespace="team")
    registry.client.hincrby(registry.keys.usage("team"), "day", -1)
    assert policies.usage(TEAM)[0].versions_today == 0
    assert registry.register("bot", content="two", namespace="team").served_name == "team.bot.v2"
    assert policies.usage(TEAM)[0].versions_today == 1


def test_one_namespaces_quota_is_not_anothers(registry: Registry) -> None:
    """A namespace without a policy is counted, so that a later policy knows, and limited by nothing."""
    limit(registry, adapters=0)
    assert registry.register("bot", content="one").served_name == "bot.v1"
    assert Policies(registry.client, registry.settings).usage(AdapterName("default", "bot"))[0].adapters == 1
    registry.submit("bot", content="two", namespace="team")
    assert publish_all(registry, list(registry.advance(Stage.PUBLISH).values())) == ["QUOTA_ADAPTERS"]


def test_policies_are_kept_and_removed(registry: Registry) -> None:
    """What is set is read back equal; what there is not, is said so."""
    policies = Policies(registry.client, registry.settings)
    policy = NamespacePolicy(
        namespace="team",
        sources=(SourceRule(prefix="s3://bucket/team", credential="minio"),),
        quotas=Quotas(adapters=3, bytes=2**53),
    )
    assert (policies.set(policy), policies.set(policy)) == (True, False)
    assert policies.get("team") == policy
    assert policies.all() == {"team": policy}
    policies.remove("team")
    assert policies.find("team") is None
    for missing in (policies.get, policies.remove):
        with pytest.raises(NotFound):
            missing("team")


def judged() -> dict[str, Any]:
    """What validate says of the adapter that `tests.helpers.sources` has."""
    weights = FileDigest(hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    digest = Manifest.of(canonical_config(CONFIG), weights).digest
    return {"digest": digest, "rank": 8, "size_bytes": len(WEIGHTS), "base_revision": "main", "findings": "[]"}


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"README.md": b"a better card"}, ""),
        ({CONFIG_FILE: CONFIG.replace(b'"r": 8', b'"r": 9')}, "QUOTA_VERSIONS_PER_DAY"),
        ({WEIGHTS_FILE: WEIGHTS[:-1]}, "QUOTA_VERSIONS_PER_DAY"),
    ],
    ids=["readme", "config", "weights"],
)
def test_a_commit_of_the_readme_needs_no_quota(
    registry: Registry, hub_server: HubServer, changed: dict[str, bytes], code: str
) -> None:
    """It brings the bytes that are current, and ends as unchanged though the day's quota is used up; others do not."""
    limit(registry, versions_per_day=1)
    registry = registry.with_settings(hub_endpoint=hub_server.endpoint)
    source, repo = open_sources(registry.settings), f"acme/{unique()}"
    policies = Policies(registry.client, registry.settings)

    def resolved() -> Lease:
        registry.submit("bot", namespace="team", source=f"hf://{repo}")
        (lease,) = registry.advance(Stage.RESOLVE).values()
        left = resolve(lease, source=source, policies=policies, catalog=registry.catalog, max_adapter_bytes=1 << 30)
        registry.ledger.complete(lease, left)
        (lease,) = registry.claim(Stage.VALIDATE)
        registry.ledger.complete(lease, judged())
        (lease,) = registry.claim(Stage.PUBLISH)
        return lease

    hub_server.commit_directory(repo, ADAPTER)
    assert registry.publish(resolved()).outcome == "published"
    hub_server.commit(repo, changed)
    if code:
        with pytest.raises(Rejected) as refused:
            resolved()
        assert codes_of(refused.value.findings) == [code]
    else:
        assert registry.publish(resolved()).outcome == "unchanged"
    assert policies.usage(TEAM)[0].versions_today == 1
