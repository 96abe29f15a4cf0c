"""What the measured numbers mean: findings and spectra. No tensors here, only numbers.

Source of the dtypes' ranges: IEEE 754 (F16, F32) and bfloat16's 8 bits of exponent and 7 of fraction. Engines fold the
scale into B in the dtype they serve (vLLM 0.33.0, vllm/lora/lora_weights.py:41).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isnan, log, sqrt

from lora_registry import fit_codes
from lora_registry.compatibility import MAX_FINDINGS
from lora_registry.findings import Finding
from lora_registry.numeric_report import FamilySpectrum, ModuleSpectrum
from lora_workers.numeric.measures import Measures
from lora_workers.numeric.plan import Plan, Product

SCALE_LIMIT = 64.0
"""lora_alpha of 64 times the rank; recipes use one to four times the rank."""
RATIO_LIMIT = 100.0
"""A module's rms above so many times the median of its family is an outlier."""
_CROWD = 16
"""Members from which on the spread of a family means something."""
_CROWD_RATIO_LIMIT = 10.0
_CROWD_Z_LIMIT = 10.0
"""Modified z-score of log(rms), 0.6745·(x - median)/MAD, far above the usual 3.5 (Iglewicz & Hoaglin 1993)."""
_LARGEST_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ServingDtype:
    """A dtype that weights are cast to.

    Attributes:
        name: as safetensors calls it.
        largest: its largest finite value.
        vanishing: magnitudes up to this become zero.
    """

    name: str
    largest: float
    vanishing: float


SERVING_DTYPES = {
    dtype.name: dtype
    for dtype in (
        ServingDtype("F16", 65504.0, 2.0**-25),
        ServingDtype("BF16", (2 - 2.0**-7) * 2.0**127, 2.0**-134),
        ServingDtype("F32", (2 - 2.0**-23) * 2.0**127, 2.0**-150),
    )
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the numbers mean; the fields are those of `NumericReport`."""

    findings: tuple[Finding, ...] = ()
    families: tuple[FamilySpectrum, ...] = ()
    overflows: tuple[str, ...] = ()


def meaning_of(plan: Plan, measures: Measures, *, serving_dtype: str) -> Meaning:
    """What the measures mean.

    Args:
        plan: what the tensors are.
        measures: of every tensor and product.
        serving_dtype: what the base model's weights are in, as safetensors calls it.
    """
    dtype = SERVING_DTYPES.get(serving_dtype, SERVING_DTYPES["F32"])
    spectra = _spectra(plan, measures)
    findings = list(islice(_findings(plan, measures, dtype, spectra), MAX_FINDINGS + 1))
    if len(findings) > MAX_FINDINGS:
        findings[MAX_FINDINGS:] = [fit_codes.TOO_MANY_FINDINGS.finding()]
    overflows = tuple(name for name, each in SERVING_DTYPES.items() if any(_overflowing(plan, measures, each)))
    families = tuple(_family(name, members) for name, members in sorted(spectra.items()))
    return Meaning(tuple(findings), families, overflows)


def _findings(
    plan: Plan, measures: Measures, dtype: ServingDtype, spectra: dict[str, list[ModuleSpectrum]]
) -> Iterator[Finding]:
    yield from _not_finite(plan, measures)
    for product, tensor, value in _overflowing(plan, measures, dtype):
        yield fit_codes.DTYPE_OVERFLOW.finding(
            tensor, f"{fit_codes.DTYPE_OVERFLOW.cause[:-1]}: {product.module}, scale {product.scale:g}.",
            expected=f"at most {dtype.largest:g} ({dtype.name})", actual=f"{value:g}",
        )  # fmt: skip
    yield from _without_effect(plan, measures, dtype)
    yield from _scales(plan.products)
    for members in spectra.values():
        yield from _norms(members)
    for entry in plan.magnitudes:
        extent = measures.extents[entry.name]
        if extent.is_finite and extent.low <= 0:
            yield fit_codes.MAGNITUDE_INVALID.finding(entry.name, expected="more than 0", actual=f"{extent.low:g}")
    unmeasured = [product.module for product in _finite_products(plan, measures, measured=False)]
    if unmeasured:
        yield fit_codes.SPECTRUM_NOT_MEASURED.finding(unmeasured[0], actual=f"{len(unmeasured)} modules")


def _not_finite(plan: Plan, measures: Measures) -> Iterator[Finding]:
    for part in plan.parts:
        extent = measures.extents[part.entry.name]
        if not extent.is_finite:
            found = "NaN" if isnan(extent.low) else "an infinity"
            yield fit_codes.NUMBERS_NOT_FINITE.finding(part.entry.name, expected="finite numbers", actual=found)


def _finite_products(plan: Plan, measures: Measures, *, measured: bool | None = None) -> Iterator[Product]:
    for number, product in enumerate(plan.products):
        is_finite = measures.extents[product.a.name].is_finite and measures.extents[product.b.name].is_finite
        if is_finite and measured in (None, number in measures.sizes):
            yield product


def _overflowing(plan: Plan, measures: Measures, dtype: ServingDtype) -> Iterator[tuple[Product, str, float]]:
    """Each half, cast and, if it is B, scaled, that the dtype cannot hold: product, tensor, value."""
    for product in _finite_products(plan, measures):
        a, b = measures.extents[product.a.name].largest, measures.extents[product.b.name].largest
        for tensor, value in ((product.a.name, a), (product.b.name, b * max(1.0, abs(product.scale)))):
            if value > dtype.largest:
                yield product, tensor, value


def _without_effect(plan: Plan, measures: Measures, dtype: ServingDtype) -> Iterator[Finding]:
    zero, total = [], 0
    for number, product in enumerate(plan.products):
        size = measures.sizes.get(number)
        if size is None:
            continue
        total += 1
        a, b = measures.extents[product.a.name].largest, measures.extents[product.b.name].largest
        if size.frobenius == 0 or product.scale == 0:
            zero.append(product.module)
        elif min(a, b, b * abs(product.scale)) <= dtype.vanishing:
            yield fit_codes.DTYPE_UNDERFLOW.finding(
                product.module, expected=f"more than {dtype.vanishing:g} ({dtype.name})", actual=f"{min(a, b):g}"
            )
    if len(zero) == total > 1:
        yield fit_codes.ZERO_DELTA.finding(zero[0], f"The changes B·A of all {total} modules are exactly zero: "
                                       "the adapter looks untrained and answers as the base model does.",
                                       actual=f"all {total} modules")  # fmt: skip
    else:
        for module in zero:
            yield fit_codes.ZERO_DELTA.finding(module)


def _scales(products: Sequence[Product]) -> Iterator[Finding]:
    """One finding for each scale that is too large, about the first module that has it."""
    modules: dict[float, list[str]] = defaultdict(list)
    for product in products:
        if abs(product.scale) > SCALE_LIMIT:
            modules[product.scale].append(product.module)
    for scale, those in modules.items():
        yield fit_codes.SCALE_OUTLIER.finding(
            those[0], expected=f"at most {SCALE_LIMIT:g}", actual=f"{scale:g} ({len(those)} modules)"
        )


def _spectra(plan: Plan, measures: Measures) -> dict[str, list[ModuleSpectrum]]:
    """Spectra of the measured products by family."""
    spectra: dict[str, list[ModuleSpectrum]] = defaultdict(list)
    for number, product in enumerate(plan.products):
        size = measures.sizes.get(number)
        if size is not None:
            scale = abs(product.scale)
            stable_rank = (size.frobenius / size.sigma_1) ** 2 if size.sigma_1 else 0.0
            frobenius = scale * size.frobenius
            rms = frobenius / sqrt(product.elements)
            spectra[product.family].append(
                ModuleSpectrum(product.module, product.scale, frobenius, scale * size.sigma_1, stable_rank, rms)
            )
    return spectra


def _norms(members: Sequence[ModuleSpectrum]) -> Iterator[Finding]:
    """Modules far above the median of their family."""
    changed = [each.rms for each in members if each.rms]
    if len(changed) < 3:  # of two, neither is the outlier
        return
    median = statistics.median(changed)
    logs = [log(rms) for rms in changed]
    middle = statistics.median(logs)
    spread = statistics.median(abs(each - middle) for each in logs)
    for each in members:
        ratio = each.rms / median
        z = 0.6745 * (log(each.rms) - middle) / spread if each.rms and spread else 0.0
        is_apart = len(changed) >= _CROWD and ratio > _CROWD_RATIO_LIMIT and z > _CROWD_Z_LIMIT
        if ratio > RATIO_LIMIT or is_apart:
            yield fit_codes.NORM_OUTLIER.finding(
                each.module, expected=f"rms about {median:.3g}, as others", actual=f"{each.rms:.3g}, {ratio:.0f} times"
            )


def _family(name: str, members: Sequence[ModuleSpectrum]) -> FamilySpectrum:
    return FamilySpectrum(
        name,
        len(members),
        statistics.median(each.frobenius for each in members),
        max(each.frobenius for each in members),
        statistics.median(each.sigma_1 for each in members),
        max(each.sigma_1 for each in members),
        statistics.median(each.stable_rank for each in members),
        tuple(sorted(members, key=lambda each: -each.rms)[:_LARGEST_SHOWN]),
    )
