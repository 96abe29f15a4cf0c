"""The key-leak check: every key a registry leaves behind expires, or is declared here as permanent."""

from __future__ import annotations

import re

import redis

_WORK = r"(due:[a-z]+:[a-z0-9_-]+|turns:[a-z]+|leases:[a-z]+|slots:[a-z]+|wake:[a-z]+)"
PERMANENT = re.compile(
    r":(server|ids:last"
    r"|inbox:(events|number:[^:]+)"
    r"|hooks:(pending|named-after)"
    rf"|ledger:({_WORK}|superseded|dead|pins|marked|removing)"
    r"|catalog:(adapters|sequences|bases|keep|collections|tokenizers|(adapter|versions|aliases|numbers|usage|stored|retired|directed|moves):[^:]+)"
    r"|access:(namespaces|tokens)"
    r"|log:[^:]+"
    r"|celery:.+)"
)
"""Kinds of key that stay: one for each registry, stage, adapter or base model, never one for each registration."""


def leaked_keys(client: redis.Redis, prefix: str) -> list[str]:
    """Keys without an end that nothing which is still running needs."""
    keys = list(client.scan_iter(f"{prefix}:*", count=1000))
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.ttl(key)
        lifetimes = pipeline.execute()
    endless = [key for key, ttl_s in zip(keys, lifetimes, strict=True) if ttl_s == -1]
    undeclared = [key for key in endless if not PERMANENT.fullmatch(key.removeprefix(prefix))]
    return sorted(key for key in undeclared if not _belongs_to_a_running_registration(client, prefix, key))


def _belongs_to_a_running_registration(client: redis.Redis, prefix: str, key: str) -> bool:
    part = key.removeprefix(f"{prefix}:")
    if part.startswith(("hooks:origin:", "hooks:waiting:")):
        return client.zscore(f"{prefix}:hooks:pending", part.rpartition(":")[2]) is not None
    if part.startswith("inbox:idempotency:"):
        registration_id = (client.get(key) or "").partition(" ")[0]
        return _is_running(client, prefix, registration_id)
    if part.startswith(("inbox:accepted:", "ledger:registration:", "ledger:history:")):
        return _is_running(client, prefix, part.rpartition(":")[2])
    return False


def _is_running(client: redis.Redis, prefix: str, registration_id: str) -> bool:
    if client.exists(f"{prefix}:inbox:accepted:{registration_id}"):
        waiting = client.xrange(f"{prefix}:inbox:events")
        return any(fields.get("id") == registration_id for _, fields in waiting)
    return client.hget(f"{prefix}:ledger:registration:{registration_id}", "outcome") == ""
