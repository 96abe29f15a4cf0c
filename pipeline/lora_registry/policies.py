"""The policies of namespaces, and what each namespace has published so far, as Redis keeps them."""

from __future__ import annotations

import redis

from lora_registry.connection import command, redis_errors
from lora_registry.errors import NotFound
from lora_registry.keys import Keys
from lora_registry.names import AdapterName
from lora_registry.namespaces import NamespacePolicy, SourceRule, Usage, check_quotas, check_size, check_source
from lora_registry.settings import SECONDS_PER_DAY, Settings


class Policies:
    """Typed access to the policies; the publish script reads the same ones and has the last word on quotas."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._required = settings.require_namespace_policy
        self._keys = Keys(settings.key_prefix)

    def find(self, namespace: str) -> NamespacePolicy | None:
        """The namespace's policy; None if it has none.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        stored = command(self._redis, "HGET", self._keys.policies, namespace)
        return None if stored is None else NamespacePolicy.model_validate_json(stored)

    def get(self, namespace: str) -> NamespacePolicy:
        """The namespace's policy.

        Raises:
            NotFound: it has none.
            RedisUnavailable: the server is out of reach.
        """
        policy = self.find(namespace)
        if policy is None:
            raise _no_policy(namespace)
        return policy

    def all(self) -> dict[str, NamespacePolicy]:
        """Every policy by its namespace.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        stored = command(self._redis, "HGETALL", self._keys.policies)
        return {name: NamespacePolicy.model_validate_json(stored[name]) for name in sorted(stored)}

    def set(self, policy: NamespacePolicy) -> bool:
        """Give a namespace its policy, in place of the one it has.

        Returns:
            True if it had none.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        stored = policy.model_dump_json(exclude_none=True)  # a script reads it: an absent limit is no limit
        return bool(command(self._redis, "HSET", self._keys.policies, policy.namespace, stored))

    def remove(self, namespace: str) -> None:
        """Take the namespace's policy away.

        Raises:
            NotFound: it has none.
            RedisUnavailable: the server is out of reach.
        """
        if not command(self._redis, "HDEL", self._keys.policies, namespace):
            raise _no_policy(namespace)

    def usage(self, adapter: AdapterName) -> tuple[Usage, bool]:
        """What the adapter's namespace has published, and whether the adapter would be a new one.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(self._keys.usage(adapter.namespace))
            pipe.hexists(self._keys.adapters, adapter.qualified)
            (seconds, _), kept, is_known = pipe.execute()
        today = int(kept.get("day", -1)) == seconds // SECONDS_PER_DAY
        versions = int(kept.get("versions", 0)) if today else 0
        return Usage(int(kept.get("adapters", 0)), versions, int(kept.get("bytes", 0))), not is_known

    def check_source(self, adapter: AdapterName, source: str) -> SourceRule:
        """The rule by which `adapter` may be registered from `source`.

        Raises:
            Rejected: it may not, with the finding.
            RedisUnavailable: the server is out of reach.
        """
        return check_source(self.find(adapter.namespace), adapter, source, required=self._required)

    def check_quotas(self, adapter: AdapterName, *, size_bytes: int = 0) -> None:
        """Refuse what the publish script would refuse if a new version of so many bytes came now.

        Raises:
            Rejected: a quota is used up, or the version is larger than all of the namespace's artifacts may be; with
                the finding.
            RedisUnavailable: the server is out of reach.
        """
        policy = self.find(adapter.namespace)
        if policy is not None and policy.quotas.any:
            usage, is_new = self.usage(adapter)
            check_quotas(policy, usage, is_new_adapter=is_new)
            check_size(policy, size_bytes)


def _no_policy(namespace: str) -> NotFound:
    return NotFound(
        f"namespace {namespace[:100]!r} has no policy", remedy="List them with `lora-registry namespace list`."
    )
