"""Quotas of a namespace: the publish script counts, so that no crowd and no crash gets past them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from lora_registry import scripts
from lora_registry.errors import LeaseLost, NotFound, Rejected
from lora_registry.ledger import Lease
from lora_registry.names import AdapterName
from lora_registry.namespaces import NamespacePolicy, Quotas, SourceRule, Usage
from lora_registry.policies import Policies
from lora_registry.stages import Stage
from tests.helpers.adapters import codes_of
from tests.helpers.registry import Registry, digest_of

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
    retire = scripts._read("_quota.lua") + "\ncount_retired(ARGV[1], 'team', ARGV[2], 4096)"
    left = []
    for content in ("two", "one", "one", "one"):
        registry.client.eval(retire, 0, registry.keys.prefix, digest_of(content))
        left.append(policies.usage(TEAM)[0].bytes)
    assert left == [4096, 4096, 4096, 0]


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
