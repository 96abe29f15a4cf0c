"""Stage 3, validate: copy the two files once, hashing and measuring them; judge that copy; keep it under its digest.

What is judged, what is stored and what nodes load later are the same bytes: the source is not looked at again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from lora_registry.adapter_config import MAX_CONFIG_BYTES, AdapterConfig, canonical_config, parse_adapter_config
from lora_registry.artifacts import FileDigest, Manifest
from lora_registry.base_profile import BaseProfile
from lora_registry.catalog import Catalog
from lora_registry.engine_profiles import EngineProfile
from lora_registry.errors import Rejected
from lora_registry.judgement import judge, judge_tokenizer, largest_rank
from lora_registry.kept_traits import keep_traits
from lora_registry.ledger import Lease, Ledger
from lora_registry.module_patterns import CompilePattern
from lora_registry.numeric_report import NumericPass, StartNumericPass
from lora_registry.registrations import dump_findings
from lora_registry.report import ValidationReport, Verdict, rejected, report_of
from lora_registry.safetensors_header import Header, read_header
from lora_registry.sources import PinnedSource, Source


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

    def keep_report(self, registration_id: str, report: ValidationReport) -> None:
        """Keep the whole report of a registration."""


def validate(
    lease: Lease,
    *,
    catalog: Catalog,
    source: Source,
    store: ArtifactStore,
    ledger: Ledger,
    max_lora_rank: int,
    compile_pattern: CompilePattern | None = None,
    profiles: Sequence[EngineProfile] = (),
    numeric: StartNumericPass | None = None,
) -> dict[str, str | int]:
    """Judge the pinned adapter against its base model and keep it as an artifact.

    The store keeps the report, if it says more than that all is well.

    Args:
        lease: the registration.
        catalog: where the base model is.
        source: where the adapter is.
        store: where it is kept.
        ledger: where its digest is pinned, so that no garbage collection takes it before it is published.
        max_lora_rank: largest rank that is accepted.
        compile_pattern: compiles an adapter's regular expressions to run in linear time; None: they are refused.
        profiles: nodes to give verdicts for.
        numeric: measures the numbers of the weights while they are copied; None: they are not looked at.

    Returns:
        `digest`, `rank` (the largest among its modules), `size_bytes` (of the weights), `base_revision`, `findings`,
        `traits` (what engines' verdicts depend on).

    Raises:
        Rejected: it does not fit, or changed after it was pinned; with the findings.
        NotFound: the base model was removed meanwhile.
        LeaseLost: another worker owns the registration.
        Transient: source, store or Redis is out of reach.
    """
    registration = lease.registration
    base = catalog.bases.get(registration.base_model)
    pinned = PinnedSource.from_json(registration.fields["pinned"])
    with store.stage() as staged:
        with _rejection_reported(store, registration.id, profiles):
            copy = _copy(pinned, source, staged.weights_path, base, compile_pattern=compile_pattern, numeric=numeric)
        measured = copy.numbers.finish() if copy.numbers else None
        judged = judge(
            copy.config,
            copy.header,
            base,
            max_lora_rank=max_lora_rank,
            profiles=profiles,
            more_findings=(
                *judge_tokenizer(pinned, source, base, load=catalog.bases.tokenizer_of),
                *(measured.findings if measured else ()),
            ),
            overflows=measured.overflows if measured else (),
            with_traits=True,
        )
        report = report_of(
            judged,
            bytes_read=len(copy.raw_config) + copy.weights.size_bytes,
            timings_ms={"copy": copy.took_ms},
            spectra=measured.to_dict() if measured else None,
        )
        _settle(store, registration.id, report)
        stored_config = canonical_config(copy.raw_config)
        ledger.pin(lease, Manifest.of(stored_config, copy.weights).digest)
        digest = staged.keep(stored_config, copy.weights)
    return {
        "digest": digest,
        "rank": largest_rank(copy.config),
        "size_bytes": copy.weights.size_bytes,
        "base_revision": base.revision,
        "findings": dump_findings(judged.findings),
        "traits": keep_traits(judged.traits) if judged.traits else "",
    }


@dataclass(frozen=True)
class _Copied:
    """What was read of the source: its config, and its weights into the staging."""

    raw_config: bytes
    config: AdapterConfig
    weights: FileDigest
    header: Header
    numbers: NumericPass | None
    took_ms: float


def _copy(
    pinned: PinnedSource,
    source: Source,
    weights_path: str,
    base: BaseProfile,
    *,
    compile_pattern: CompilePattern | None,
    numeric: StartNumericPass | None,
) -> _Copied:
    """Read the source, once; the numbers of the weights are measured as they pass.

    Raises:
        Rejected: it cannot be read as an adapter, or changed after it was pinned.
        Transient: the source is out of reach.
    """
    raw_config = source.read(pinned.config, limit_bytes=MAX_CONFIG_BYTES)
    config = parse_adapter_config(raw_config, compile_pattern=compile_pattern)
    begun = perf_counter()
    numbers = numeric(config, base, size_bytes=pinned.weights.size_bytes) if numeric else None
    weights = source.copy(pinned.weights, weights_path, tap=numbers.feed if numbers else None)
    took_ms = (perf_counter() - begun) * 1000
    return _Copied(raw_config, config, weights, read_staged_header(weights_path), numbers, took_ms)


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


def _settle(store: ArtifactStore, registration_id: str, report: ValidationReport) -> None:
    """Keep the report if it says anything; raise if it rejects."""
    if report.is_worth_keeping:
        store.keep_report(registration_id, report)
    if report.verdict is Verdict.INVALID:
        raise Rejected("the adapter does not fit its base model", findings=report.findings)


@contextmanager
def _rejection_reported(
    store: ArtifactStore, registration_id: str, profiles: Sequence[EngineProfile]
) -> Iterator[None]:
    """Keep the report of what cannot even be read; nothing can be compared then."""
    try:
        yield
    except Rejected as error:
        store.keep_report(registration_id, rejected(error, profiles))
        raise
