"""Stage 2, resolve: find the adapter's two files where the publisher said they are, and pin them.

Here the policy of the namespace is enforced: a publisher writes to the event queue directly, so no gateway can be
relied on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lora_registry import file_codes, source_codes
from lora_registry.adapter_config import MAX_CONFIG_BYTES, canonical_config
from lora_registry.artifacts import FileDigest, Manifest
from lora_registry.catalog import Catalog
from lora_registry.errors import Rejected
from lora_registry.ledger import Lease
from lora_registry.namespaces import check_pinned
from lora_registry.policies import Policies
from lora_registry.readiness import Readiness, deferred
from lora_registry.ready_marker import MARKER_FILE
from lora_registry.registrations import Registration
from lora_registry.safetensors_header import read_header
from lora_registry.sources import PinnedFile, PinnedSource, Source

_MAY_PASS = {file_codes.WEIGHTS_TRUNCATED.code, source_codes.SOURCE_CHANGED.code}
"""What a file in the making looks like."""


Locate = Callable[[str], str]
"""Says where a source really is that another registry has a name for; every other source is there already.

Raises:
    Rejected: the name means nothing there.
    Transient: that registry is out of reach.
"""


def resolve(
    lease: Lease,
    *,
    source: Source,
    policies: Policies,
    catalog: Catalog,
    max_adapter_bytes: int,
    locate: Locate | None = None,
) -> dict[str, str | int]:
    """Pin the registration's source, with the credential that the namespace's policy gives for it.

    The policy is about the place where the files are, whatever name led there. A used-up quota refuses what would be a
    new version; bytes that are known to be the current ones will be none.

    Returns:
        `pinned`: the pinned source, for the validate stage.

    Raises:
        Rejected: there is no adapter there, or it may not be read, or the namespace may not register it.
        Deferred: not all of it is there yet.
        Transient: the place, or Redis, is out of reach.
    """
    registration = lease.registration
    url = locate(registration.source) if locate else registration.source
    rule = policies.check_source(registration.adapter, url)
    pinned = source.resolve(url, credential=rule.credential)
    check_pinned(rule, pinned)
    if rule.needs_marker and not pinned.weights.sha256:
        missing = source_codes.MARKER_MISSING.finding(MARKER_FILE)
        raise Readiness(pinned.may_grow_s).incomplete(url, [missing])
    _check_size(pinned.weights, limit_bytes=max_adapter_bytes)
    try:
        policies.check_quotas(registration.adapter, size_bytes=pinned.weights.size_bytes)
    except Rejected:
        if not _is_current(registration, pinned, source, catalog):
            raise
    if pinned.may_grow_s:
        _check_whole(pinned, source)
    return {"pinned": replace(pinned, url=pinned.url or url).to_json()}


def _check_size(weights: PinnedFile, *, limit_bytes: int) -> None:
    if weights.size_bytes > limit_bytes:
        actual = f"{weights.size_bytes} bytes"
        finding = source_codes.ADAPTER_TOO_LARGE.finding(weights.name, expected=f"at most {limit_bytes}", actual=actual)
        raise Rejected(finding.message, findings=(finding,))


def _is_current(registration: Registration, pinned: PinnedSource, source: Source, catalog: Catalog) -> bool:
    """Whether the bytes are those of the current version: a commit of the README alone brings the same ones again.

    Raises:
        Rejected: the config cannot be read.
        Transient: the place, or Redis, is out of reach.
    """
    if not pinned.weights.known_sha256:
        return False
    config = canonical_config(source.read(pinned.config, limit_bytes=MAX_CONFIG_BYTES))
    weights = FileDigest(pinned.weights.known_sha256, pinned.weights.size_bytes)
    return catalog.is_current(registration.adapter, registration.base_model, Manifest.of(config, weights).digest)


def _check_whole(pinned: PinnedSource, source: Source) -> None:
    """Look at the header of weights that may still be on their way; whatever else is wrong is for validate to say.

    Raises:
        Deferred: the header announces more bytes than there are, or the file changed meanwhile.
        Transient: the place is out of reach.
    """
    try:
        with source.ranged(pinned.weights) as read:
            read_header(read, file_size_bytes=pinned.weights.size_bytes)
    except Rejected as error:
        if any(finding.code in _MAY_PASS for finding in error.findings):
            raise deferred(str(error), error.findings, deadline_s=pinned.may_grow_s) from error
