"""What the numbers of an adapter's weights say: findings, and the size of each change of the base model.

The pass that measures them is in `lora_workers.numeric`, the only place that imports torch.

Source: 2106.09685 (LoRA: ΔW = s·B·A), 2312.03732 (rsLoRA's s).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from lora_registry.adapter_config import AdapterConfig
from lora_registry.base_profile import BaseProfile
from lora_registry.findings import Finding


@dataclass(frozen=True, slots=True)
class ModuleSpectrum:
    """The size of one module's change ΔW = s·B·A.

    Attributes:
        module: its name without the prefix base_model.model.
        scale: s.
        frobenius: ‖ΔW‖_F.
        sigma_1: largest singular value of ΔW.
        stable_rank: ‖ΔW‖_F² / sigma_1², at least 1; 0 where nothing changes.
        rms: ‖ΔW‖_F / √(out_features · in_features): comparable between modules of different shapes.
    """

    module: str
    scale: float
    frobenius: float
    sigma_1: float
    stable_rank: float
    rms: float


@dataclass(frozen=True, slots=True)
class FamilySpectrum:
    """The changes of all modules with one last name, such as q_proj.

    Attributes:
        family: that name.
        count: modules that were measured.
        frobenius_median: median of ‖ΔW‖_F.
        frobenius_max: its maximum.
        sigma_1_median: median of the largest singular values.
        sigma_1_max: their maximum.
        stable_rank_median: median of the stable ranks.
        largest: the modules with the largest rms, largest first.
    """

    family: str
    count: int
    frobenius_median: float
    frobenius_max: float
    sigma_1_median: float
    sigma_1_max: float
    stable_rank_median: float
    largest: tuple[ModuleSpectrum, ...]


@dataclass(frozen=True, slots=True)
class NumericReport:
    """What one numeric pass found.

    Attributes:
        findings: what is wrong or noteworthy about the numbers.
        families: spectra by family, in the order of the names.
        overflows: dtypes (F16, BF16, F32) in which some A, B or s·B is not finite.
        bytes_read: bytes of the file that were looked at; 0 if the structure was wrong already.
        milliseconds: time from the first chunk to the report, waiting for chunks included.
        device: where it was computed: cpu, or the name of the GPU.
    """

    findings: tuple[Finding, ...]
    families: tuple[FamilySpectrum, ...]
    overflows: tuple[str, ...]
    bytes_read: int
    milliseconds: float
    device: str

    def to_dict(self) -> dict[str, Any]:
        """All but the findings, for a report in JSON."""
        return {
            "device": self.device,
            "bytes_read": self.bytes_read,
            "milliseconds": round(self.milliseconds, 1),
            "overflows": list(self.overflows),
            "families": [asdict(family) for family in self.families],
        }


class NumericPass(Protocol):
    """Measures the weights of one adapter while their bytes pass by."""

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes of the file; they may be overwritten as soon as this returns.

        Raises:
            Transient: the device has no memory left; ProcessUnfit: it failed.
        """

    def finish(self) -> NumericReport:
        """The report, once the whole file was fed. Raises as `feed` does."""


class StartNumericPass(Protocol):
    """Starts a numeric pass for one adapter."""

    def __call__(self, config: AdapterConfig, base: BaseProfile, *, size_bytes: int) -> NumericPass:
        """Start one; `size_bytes` is the size of the weights file.

        Raises:
            Configuration: there is no such device.
        """
