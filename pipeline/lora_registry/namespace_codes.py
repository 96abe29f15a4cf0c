"""Codes of what a namespace, or a sender, may do."""

from __future__ import annotations

from lora_registry.code import error, obstacle

# Namespaces
NAMESPACE_UNKNOWN = obstacle(
    "NAMESPACE_UNKNOWN",
    "The namespace has no policy, and the operator requires one.",
    "Use a namespace of yours, or have the operator run `lora-registry namespace set`.",
)
SOURCE_NOT_ALLOWED = obstacle(
    "SOURCE_NOT_ALLOWED",
    "The namespace may not register from this place.",
    "Put the adapter under a prefix of the namespace's policy, or have the operator add this one.",
)

# Quotas
QUOTA_ADAPTERS = obstacle(
    "QUOTA_ADAPTERS",
    "The namespace has as many adapters as its quota allows.",
    "Register new versions of its adapters, or have the operator raise the quota.",
)
QUOTA_VERSIONS_PER_DAY = obstacle(
    "QUOTA_VERSIONS_PER_DAY",
    "The namespace has published as many versions today as its quota allows.",
    "Register again after midnight UTC, or have the operator raise the quota.",
)
QUOTA_BYTES = obstacle(
    "QUOTA_BYTES",
    "The namespace's artifacts would take more bytes than its quota allows.",
    "Retire versions that nobody uses, or have the operator raise the quota.",
)

# The HTTP gateway
FIELD_INVALID = error(
    "FIELD_INVALID", "A part of the request is not legal.", "Correct the field that the finding names."
)
