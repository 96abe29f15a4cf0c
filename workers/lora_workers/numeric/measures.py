"""What is measured, without a word on whether it is good."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from lora_workers.numeric.plan import Part


@dataclass(frozen=True, slots=True)
class Extent:
    """Smallest and largest value of a tensor; NaN in both if one value is NaN."""

    low: float
    high: float

    @property
    def largest(self) -> float:
        """Largest magnitude; NaN if one value is."""
        return max(abs(self.low), abs(self.high))

    @property
    def is_finite(self) -> bool:
        """Whether all values are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def extended(self, low: float, high: float) -> Extent:
        """The extent with the values of another part of the tensor."""
        if math.isnan(self.low) or math.isnan(low):
            return Extent(math.nan, math.nan)
        return Extent(min(self.low, low), max(self.high, high))


@dataclass(frozen=True, slots=True)
class Size:
    """Size of B·A, without the scale: ‖B·A‖_F and its largest singular value."""

    frobenius: float
    sigma_1: float


@dataclass(slots=True)
class Measures:
    """All that one pass measured.

    Attributes:
        extents: by tensor.
        sizes: by number of the product; one with a value that is not finite has none, nor has one that would have
            taken too much memory.
    """

    extents: dict[str, Extent] = field(default_factory=dict)
    sizes: dict[int, Size] = field(default_factory=dict)


class Meter(Protocol):
    """Measures tensors from their pieces: one implementation for the CPU, one for a GPU."""

    @property
    def device(self) -> str:
        """What it computes on."""

    @property
    def most_bytes(self) -> int:
        """Longest piece, unless a unit is longer."""

    def unit_bytes(self, part: Part) -> int:
        """Pieces of `part` must be multiples of so many bytes."""

    def take(self, part: Part, piece: memoryview, *, is_last: bool) -> None:
        """Measure the next piece of `part`; its bytes may be overwritten as soon as this returns."""

    def finish(self) -> Measures:
        """What was measured."""
