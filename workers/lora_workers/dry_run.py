"""A validation without a registry: adapters are judged where they lie, and nothing is kept.

Only adapter_config.json, the header of the weights and a tokenizer beside them are read. The verdict is that of the
validate stage, engines included; what lies beside the two files is noted, because an engine that is pointed at the
directory may read it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from lora_registry.adapter_config import MAX_CONFIG_BYTES, AdapterConfig, parse_adapter_config
from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.base_profile import BaseProfile
from lora_registry.engine_profiles import EngineProfile
from lora_registry.errors import Deferred, Rejected
from lora_registry.findings import Finding
from lora_registry.judgement import check_tokenizer_files, judge, read_tokenizer_files
from lora_registry.report import ValidationReport, rejected, report_of
from lora_registry.safetensors_header import FIRST_READ_BYTES, Header, read_header
from lora_registry.sources import PinnedFile, PinnedSource, Source
from lora_workers.extras import require
from lora_workers.linear_patterns import linear_time_patterns
from lora_workers.sources import scheme_of
from lora_workers.sources.digesting import CHUNK_BYTES
from lora_workers.sources.local import LocalSource

_FIRST_READ_BYTES = 4096
"""A second read of a local file costs less than bytes that are not needed; elsewhere it is the other way round."""
_MOST_TOKENIZERS = 64


@dataclass(frozen=True)
class Measured:
    """What the numbers of an adapter say.

    Attributes:
        findings: what is wrong or noteworthy about them.
        overflows: dtypes, as safetensors calls them, that they overflow.
        spectra: what else is known, in plain JSON types.
        bytes_read: bytes of the weights that were read for it.
    """

    findings: tuple[Finding, ...] = ()
    overflows: tuple[str, ...] = ()
    spectra: dict[str, Any] | None = None
    bytes_read: int = 0


NumericCheck = Callable[[PinnedFile, AdapterConfig, Header, BaseProfile], Measured]
"""Looks at the numbers of pinned weights; it leaves weights alone whose header does not fit the base."""


def numeric_findings(device: Literal["auto", "cpu", "cuda"] = "auto", *, sources: Source | None = None) -> NumericCheck:
    """The check of the numbers, which reads all of the weights.

    Args:
        device: what to compute on; auto: a GPU where there is one.
        sources: what reads adapters that are not local.

    Raises:
        MissingExtra: torch is not installed.
    """
    require("numeric")
    from lora_workers.numeric.numeric_pass import NumericChecks

    checks = NumericChecks(device)

    def measure(weights: PinnedFile, config: AdapterConfig, _: Header, base: BaseProfile) -> Measured:
        started = checks(config, base, size_bytes=weights.size_bytes)
        source = sources if sources is not None and _is_elsewhere(weights.location) else LocalSource(())
        with source.ranged(weights) as read:
            for at in range(0, weights.size_bytes, CHUNK_BYTES):
                started.feed(memoryview(read(at, CHUNK_BYTES)))
        report = started.finish()
        spectra = report.to_dict() if report.bytes_read else None
        return Measured(report.findings, report.overflows, spectra, report.bytes_read)

    return measure


class DryRun:
    """Judges adapters against one base model.

    Args:
        base: profile of the base model.
        profiles: nodes to give verdicts for.
        max_lora_rank: largest rank that any engine serves.
        measure: looks at the numbers, too; None: they are left alone.
        sources: reads adapters that are not local; None: there are none.
    """

    def __init__(
        self,
        base: BaseProfile,
        *,
        profiles: Sequence[EngineProfile] = (),
        max_lora_rank: int,
        measure: NumericCheck | None = None,
        sources: Source | None = None,
    ) -> None:
        self._base = base
        self._profiles = tuple(profiles)
        self._max_lora_rank = max_lora_rank
        self._measure = measure
        self._sources = sources
        self._compile_pattern = linear_time_patterns()
        self._tokenizers: dict[bytes, tuple[Finding, ...]] = {}

    def check(self, source: str, *, credential: str = "") -> ValidationReport:
        """Judge the adapter in directory `source` (an absolute path, or a URL); `credential` is a name.

        What is wrong with it is in the report, and nothing about it raises.

        Raises:
            Transient: the file system failed, or the place is out of reach.
        """
        begun = perf_counter()
        counted = _Counted()
        try:
            report = self._judge(source, credential, counted)
        except Rejected as error:
            report = rejected(error, self._profiles, bytes_read=counted.bytes_read)
        total_ms = round((perf_counter() - begun) * 1000, 3)
        return report.model_copy(update={"timings_ms": {**report.timings_ms, "total": total_ms}})

    def _judge(self, source: str, credential: str, counted: _Counted) -> ValidationReport:
        begun = perf_counter()
        opened, pinned, other_files = self._resolve(source, credential)
        raw_config = opened.read(pinned.config, limit_bytes=MAX_CONFIG_BYTES)
        counted.bytes_read += len(raw_config)
        config = parse_adapter_config(raw_config, compile_pattern=self._compile_pattern)
        with opened.ranged(pinned.weights) as read:
            header = read_header(
                counted.counting(read),
                file_size_bytes=pinned.weights.size_bytes,
                first_read_bytes=FIRST_READ_BYTES if _is_elsewhere(pinned.weights.location) else _FIRST_READ_BYTES,
            )
        timings_ms = {"read": (perf_counter() - begun) * 1000}
        measured = Measured()
        if self._measure is not None:
            begun = perf_counter()
            measured = self._measure(pinned.weights, config, header, self._base)
            timings_ms["numbers"] = (perf_counter() - begun) * 1000
        judged = judge(
            config,
            header,
            self._base,
            max_lora_rank=self._max_lora_rank,
            profiles=self._profiles,
            other_files=other_files,
            more_findings=(*self._tokenizer_findings(pinned, opened, counted), *measured.findings),
            overflows=measured.overflows,
        )
        bytes_read = counted.bytes_read + measured.bytes_read
        return report_of(judged, bytes_read=bytes_read, timings_ms=timings_ms, spectra=measured.spectra)

    def _resolve(self, source: str, credential: str) -> tuple[Source, PinnedSource, tuple[str, ...]]:
        """What reads it, the pinned adapter, and the names of the other files there."""
        if self._sources is not None and _is_elsewhere(source):
            try:
                pinned = self._sources.resolve(source, credential=credential)
            except Deferred as error:  # nothing waits here: what is not there now is missing
                raise Rejected(error.message, findings=error.findings) from error
            names = self._sources.list(pinned.url, credential=credential).files if self._profiles else ()
            return self._sources, pinned, _others(names)
        directory = os.path.realpath(source.removeprefix("file://"))
        local = LocalSource(_roots_of(directory))
        return local, local.resolve(source), _others(local.list(source).files) if self._profiles else ()

    def _tokenizer_findings(self, pinned: PinnedSource, source: Source, counted: _Counted) -> tuple[Finding, ...]:
        """As `judge_tokenizer`; a copy of a tokenizer that was compared before is only read and hashed."""
        files, unreadable = read_tokenizer_files(pinned, source)
        if not files:
            return tuple(unreadable)
        sha256 = hashlib.sha256()
        for name, content in files.items():
            sha256.update(f"{name}\0{len(content)}\0".encode())
            sha256.update(content)
            counted.bytes_read += len(content)
        key = sha256.digest()
        if key not in self._tokenizers:
            if len(self._tokenizers) >= _MOST_TOKENIZERS:
                self._tokenizers.clear()
            self._tokenizers[key] = tuple(check_tokenizer_files(files, self._base))
        return (*unreadable, *self._tokenizers[key])


class _Counted:
    """Bytes that were read, however the reading ends."""

    def __init__(self) -> None:
        self.bytes_read = 0

    def counting(self, read: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
        """The same reads, counted."""

        def counted(offset: int, length: int) -> bytes:
            got = read(offset, length)
            self.bytes_read += len(got)
            return got

        return counted


def _roots_of(directory: str) -> tuple[Path, ...]:
    """The directory itself; of a snapshot in the hub's cache also the folder that its links lead to."""
    path = Path(directory)
    if path.parent.name == "snapshots":
        return (path, path.parent.parent / "blobs")
    return (path,)


def _others(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if name not in (CONFIG_FILE, WEIGHTS_FILE) and "/" not in name))


def _is_elsewhere(source: str) -> bool:
    return scheme_of(source) != "file"
