"""Stage 3, validate: copy the two files once, hashing and measuring them; judge that copy; keep it under its digest.

What is judged, what is stored and what nodes load later are the same bytes: the source is not looked at again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import PurePosixPath
from typing import Protocol

from lora_registry import codes
from lora_registry.adapter_config import MAX_CONFIG_BYTES, AdapterConfig, canonical_config, parse_adapter_config
from lora_registry.artifacts import FileDigest
from lora_registry.base_profile import BaseProfile
from lora_registry.catalog import Catalog
from lora_registry.compatibility import check_compatibility
from lora_registry.errors import Rejected
from lora_registry.findings import Finding, has_error
from lora_registry.ledger import Lease
from lora_registry.module_patterns import CompilePattern
from lora_registry.numeric_report import NumericReport, StartNumericPass
from lora_registry.registrations import dump_findings
from lora_registry.safetensors_header import Header, read_header
from lora_registry.sources import PinnedSource, Source
from lora_registry.tokenizer_maps import check_tokenizer, read_tokenizer

MAX_TOKENIZER_BYTES = 1 << 26
"""The largest file of a tokenizer that is compared; those of a quarter of a million tokens have 35 MB."""


class Staged(Protocol):
    """An artifact in the making: nobody sees it before `keep`."""

    @property
    def weights_path(self) -> str:
        """Local path to copy the weights to."""

    def keep(self, config: bytes, weights: FileDigest) -> str:
        """Make it durable and visible under its digest, whole or not at all; one that is there already is kept.

        Returns:
            The digest, `sha256:…`.

        Raises:
            Transient: the store cannot take it now.
        """


class ArtifactStore(Protocol):
    """Where artifacts are kept; see `lora_workers.artifact_store`."""

    def stage(self) -> AbstractContextManager[Staged]:
        """Begin an artifact; what was not kept when the context ends is removed."""

    def keep_report(
        self, registration_id: str, findings: tuple[Finding, ...], *, numeric: NumericReport | None = None
    ) -> None:
        """Keep all findings of a registration, and the spectra of its weights."""


def validate(
    lease: Lease,
    *,
    catalog: Catalog,
    source: Source,
    store: ArtifactStore,
    max_lora_rank: int,
    compile_pattern: CompilePattern | None = None,
    numeric: StartNumericPass | None = None,
) -> dict[str, str | int]:
    """Judge the pinned adapter against its base model and keep it as an artifact.

    Args:
        lease: the registration.
        catalog: where the base model is.
        source: where the adapter is.
        store: where it is kept.
        max_lora_rank: largest rank that is accepted.
        compile_pattern: compiles an adapter's regular expressions to run in linear time; None: they are refused.
        numeric: measures the numbers of the weights while they are copied; None: they are not looked at.

    Returns:
        `digest`, `rank` (the largest among its modules), `size_bytes` (of the weights), `base_revision`, `findings`.

    Raises:
        Rejected: it does not fit, or changed after it was pinned; with the findings.
        NotFound: the base model was removed meanwhile.
        Transient: source, store or Redis is out of reach.
    """
    registration = lease.registration
    base = catalog.base(registration.base_model)
    pinned = PinnedSource.from_json(registration.fields["pinned"])
    with store.stage() as staged:
        raw_config = source.read(pinned.config, limit_bytes=MAX_CONFIG_BYTES)
        config = parse_adapter_config(raw_config, compile_pattern=compile_pattern)
        numbers = numeric(config, base, size_bytes=pinned.weights.size_bytes) if numeric else None
        weights = source.copy(pinned.weights, staged.weights_path, tap=numbers.feed if numbers else None)
        header = read_staged_header(staged.weights_path)
        report = numbers.finish() if numbers else None
        findings = (
            *_judge(config, header, base, max_lora_rank),
            *_judge_tokenizer(pinned, source, base),
            *(report.findings if report else ()),
        )
        if findings or report:
            store.keep_report(registration.id, findings, numeric=report)
        if has_error(findings):
            raise Rejected("the adapter does not fit its base model", findings=findings)
        digest = staged.keep(canonical_config(raw_config), weights)
    return {
        "digest": digest,
        "rank": _largest_rank(config),
        "size_bytes": weights.size_bytes,
        "base_revision": base.revision,
        "findings": dump_findings(findings),
    }


def read_staged_header(path: str) -> Header:
    """The header of a local weights file.

    Raises:
        HeaderError: it is not a legal safetensors file.
    """
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered ranges of a path that we made
        return read_header(
            lambda offset, length: os.pread(file.fileno(), length, offset),
            file_size_bytes=os.fstat(file.fileno()).st_size,
        )


def _judge(config: AdapterConfig, header: Header, base: BaseProfile, max_lora_rank: int) -> Iterator[Finding]:
    largest = _largest_rank(config)
    if largest > max_lora_rank:
        yield codes.RANK_TOO_LARGE.finding("r", expected=f"at most {max_lora_rank}", actual=largest)
    yield from check_compatibility(config, header, base)


def _judge_tokenizer(pinned: PinnedSource, source: Source, base: BaseProfile) -> Iterator[Finding]:
    """Compare the tokenizer that lies beside the adapter, if one does; it is not part of the artifact."""
    files: dict[str, bytes] = {}
    for file in pinned.tokenizer:
        name = PurePosixPath(file.name or file.location).name
        if file.size_bytes > MAX_TOKENIZER_BYTES:
            yield codes.TOKENIZER_UNREADABLE.finding(name, actual=f"{file.size_bytes} bytes")
            continue
        try:
            files[name] = source.read(file, limit_bytes=MAX_TOKENIZER_BYTES)
        except Rejected as error:
            yield codes.TOKENIZER_UNREADABLE.finding(name, str(error))
    tokenizer = read_tokenizer(files)
    if tokenizer is not None:
        yield from check_tokenizer(tokenizer, base)


def _largest_rank(config: AdapterConfig) -> int:
    return max([config.rank, *config.rank_pattern.values()])
