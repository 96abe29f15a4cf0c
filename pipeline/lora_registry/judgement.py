"""The judgement of one adapter by its config and header alone: findings, then a verdict for each engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from time import perf_counter

from lora_registry import fit_codes
from lora_registry.adapter_config import AdapterConfig
from lora_registry.adapter_traits import AdapterTraits, traits_of
from lora_registry.base_profile import BaseProfile
from lora_registry.compatibility import check_compatibility
from lora_registry.engine_profiles import EngineProfile
from lora_registry.engine_verdicts import EngineVerdict, judge_engines, refuse_invalid
from lora_registry.errors import Rejected
from lora_registry.findings import Finding, Severity, has_error
from lora_registry.safetensors_header import Header
from lora_registry.sources import PinnedSource, Source
from lora_registry.tokenizer_comparison import check_tokenizer
from lora_registry.tokenizer_maps import TokenizerMap, read_tokenizer

MAX_TOKENIZER_BYTES = 1 << 26
"""The largest file of a tokenizer that is compared; those of a quarter of a million tokens have 35 MB."""

LoadTokenizer = Callable[[BaseProfile], TokenizerMap | None]


@dataclass(frozen=True)
class Judgement:
    """What was decided about one adapter.

    Attributes:
        findings: everything that is wrong or noteworthy.
        engines: verdict by the name of an engine profile.
        timings_ms: milliseconds for `structure` and `engines`.
        traits: what any engine's verdict depends on; None if an error was found, or nobody needs them.
    """

    findings: tuple[Finding, ...]
    engines: dict[str, EngineVerdict]
    timings_ms: dict[str, float]
    traits: AdapterTraits | None = None


def judge(
    config: AdapterConfig,
    header: Header,
    base: BaseProfile,
    *,
    max_lora_rank: int,
    profiles: Sequence[EngineProfile] = (),
    other_files: Sequence[str] = (),
    more_findings: Sequence[Finding] = (),
    overflows: Sequence[str] = (),
    with_traits: bool = False,
) -> Judgement:
    """Judge an adapter by its two parts.

    Args:
        config: its adapter_config.json. header: that of its weights. base: the model that it is for.
        max_lora_rank: largest rank that any engine here serves.
        profiles: nodes to give verdicts for.
        other_files: names of further files beside the two, where the source itself is looked at.
        more_findings: what was found besides, about the tokenizer or the numbers.
        overflows: dtypes, as safetensors calls them, that the numbers overflow, where they were looked at.
        with_traits: gather the traits for the version record, though no profile may need them now.
    """
    begun = perf_counter()
    if any(profile.served_dtype(base.dtype) not in overflows for profile in profiles):
        more_findings = [_tolerated(finding) for finding in more_findings]
    findings = (*_check_rank(config, max_lora_rank), *check_compatibility(config, header, base), *more_findings)
    timings_ms = {"structure": (perf_counter() - begun) * 1000}
    begun = perf_counter()
    traits, engines = None, {}
    if has_error(findings):
        engines = refuse_invalid(profiles, findings)
    elif profiles or with_traits:
        traits = traits_of(config, header, base, other_files=other_files, overflows=overflows)
        engines = judge_engines(traits, profiles)
    timings_ms["engines"] = (perf_counter() - begun) * 1000
    return Judgement(findings, engines, timings_ms, traits)


def _tolerated(finding: Finding) -> Finding:
    """The finding, of an adapter that some node serves right.

    An overflow in the base's own dtype is an error, because engines serve in that dtype unless told otherwise; where a
    profile says that a node serves in one that holds the values, it is that of each profile to refuse the adapter.
    """
    if finding.code != fit_codes.DTYPE_OVERFLOW.code:
        return finding
    return finding.model_copy(update={"severity": Severity.WARNING})


def judge_tokenizer(
    pinned: PinnedSource, source: Source, base: BaseProfile, *, load: LoadTokenizer
) -> tuple[Finding, ...]:
    """Compare the tokenizer that lies beside the adapter, if one does; it is not part of the artifact.

    Args:
        pinned: the adapter.
        source: where it is.
        base: the model that it is for.
        load: gives the map of the base's tokenizer, which the profile only has the digest of; asked if it is needed.
    """
    if not pinned.tokenizer:
        return ()
    files, findings = read_tokenizer_files(pinned, source)
    return (*findings, *check_tokenizer_files(files, base.model_copy(update={"tokenizer": load(base)})))


def read_tokenizer_files(pinned: PinnedSource, source: Source) -> tuple[dict[str, bytes], list[Finding]]:
    """The files of the tokenizer beside the adapter, by name, and a finding for each that cannot be read."""
    files: dict[str, bytes] = {}
    findings: list[Finding] = []
    for file in pinned.tokenizer:
        name = PurePosixPath(file.name or file.location).name
        if file.size_bytes > MAX_TOKENIZER_BYTES:
            findings.append(fit_codes.TOKENIZER_UNREADABLE.finding(name, actual=f"{file.size_bytes} bytes"))
            continue
        try:
            files[name] = source.read(file, limit_bytes=MAX_TOKENIZER_BYTES)
        except Rejected as error:
            findings.append(fit_codes.TOKENIZER_UNREADABLE.finding(name, str(error)))
    return files, findings


def check_tokenizer_files(files: dict[str, bytes], base: BaseProfile) -> Iterator[Finding]:
    """Compare a tokenizer with the base model's, if the files hold one."""
    tokenizer = read_tokenizer(files)
    if tokenizer is not None:
        yield from check_tokenizer(tokenizer, base)


def largest_rank(config: AdapterConfig) -> int:
    """The largest rank among an adapter's modules."""
    return max([config.rank, *config.rank_pattern.values()])


def _check_rank(config: AdapterConfig, max_lora_rank: int) -> list[Finding]:
    largest = largest_rank(config)
    if largest <= max_lora_rank:
        return []
    return [fit_codes.RANK_TOO_LARGE.finding("r", expected=f"at most {max_lora_rank}", actual=largest)]
