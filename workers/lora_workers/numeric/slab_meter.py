"""Measures on a GPU: tensors are gathered in a slab, copied in one piece, and those of one shape measured at once.

There are two slabs of pinned memory: one is filled while the other travels. Nothing waits for the device before
`finish`, but for a slab that is still travelling when its turn comes again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lora_workers.numeric.devices import device_label
from lora_workers.numeric.measures import Extent, Measures
from lora_workers.numeric.meter import DTYPES
from lora_workers.numeric.plan import Half, Part, Plan
from lora_workers.numeric.products import LARGEST_MEASURED, gram_of_many, sizes_of

SLAB_BYTES = 32 << 20
_ALIGNMENT = 16
_SOLVED_AT_ONCE = 1 << 26
"""Bytes of r x r matrices that are solved together."""


@dataclass(slots=True)
class _Slab:
    """Bytes on their way to the device.

    Attributes:
        host: pinned where the device is a GPU.
        parts: what lies in it, and at which byte.
        used: bytes that are taken.
        arrived: when the copy is done, and `host` may be filled again.
    """

    host: torch.Tensor
    parts: list[tuple[Part, int, int]] = field(default_factory=list)
    used: int = 0
    arrived: torch.cuda.Event | None = None


class SlabMeter:
    """Measures many tensors at once.

    Args:
        plan: what the tensors are.
        device: a GPU; tests take the CPU.
        slab_bytes: size of a slab, unless one half is larger.
    """

    def __init__(self, plan: Plan, device: torch.device, *, slab_bytes: int = SLAB_BYTES) -> None:
        self._plan = plan
        self._device = device
        halves = [part.entry.end - part.entry.begin for part in plan.parts if part.half is not None]
        self._slab_bytes = max([slab_bytes, *halves])
        pinned = device.type == "cuda"
        self._slabs = [_Slab(torch.empty(self._slab_bytes, dtype=torch.uint8, pin_memory=pinned)) for _ in range(2)]
        self._extremes: list[tuple[list[Part], torch.Tensor]] = []
        self._grams: dict[int, dict[Half, torch.Tensor]] = {}

    @property
    def device(self) -> str:
        """The GPU's name."""
        return device_label(self._device)

    def unit_bytes(self, part: Part) -> int:
        """Both halves are needed whole."""
        return DTYPES[part.entry.dtype].itemsize if part.half is None else part.entry.end - part.entry.begin

    @property
    def most_bytes(self) -> int:
        """A slab at most."""
        return self._slab_bytes

    def take(self, part: Part, piece: memoryview, *, is_last: bool) -> None:  # noqa: ARG002 - extents are merged anyway
        """Put a piece into the slab; send the slab when it is full."""
        slab = self._slabs[0]
        if slab.used + len(piece) > self._slab_bytes:
            self._send()
            slab = self._slabs[0]
        if not slab.used and slab.arrived is not None:
            slab.arrived.synchronize()
        slab.host[slab.used : slab.used + len(piece)] = torch.frombuffer(piece, dtype=torch.uint8)
        slab.parts.append((part, slab.used, len(piece)))
        slab.used += -(-len(piece) // _ALIGNMENT) * _ALIGNMENT

    def finish(self) -> Measures:
        """Wait for the device; what was measured."""
        self._send()
        measures = Measures()
        for parts, extremes in self._extremes:
            for part, (low, high) in zip(parts, extremes.tolist(), strict=True):
                known = measures.extents.get(part.entry.name)
                measures.extents[part.entry.name] = known.extended(low, high) if known else Extent(low, high)
        self._solve(measures)
        return measures

    def _send(self) -> None:
        slab = self._slabs[0]
        if slab.parts:
            arrived = slab.host[: slab.used].to(self._device, non_blocking=True)
            if self._device.type == "cuda":
                slab.arrived = torch.cuda.current_stream(self._device).record_event()
            self._measure(slab.parts, arrived)
        slab.parts, slab.used = [], 0
        self._slabs.append(self._slabs.pop(0))

    def _measure(self, parts: list[tuple[Part, int, int]], slab: torch.Tensor) -> None:
        alike: dict[tuple[object, ...], list[tuple[Part, torch.Tensor]]] = {}
        for part, at, length in parts:
            key = part.half, part.entry.dtype, part.entry.shape if part.half else length, self._experts(part)
            alike.setdefault(key, []).append((part, slab[at : at + length].view(DTYPES[part.entry.dtype])))
        for some in alike.values():
            those = [part for part, _ in some]
            values = torch.stack([each for _, each in some])
            values = values.to(torch.float64 if values.dtype is torch.float64 else torch.float32)
            low, high = values.amin(dim=1), values.amax(dim=1)
            self._extremes.append((those, torch.stack([low, high], dim=1).double()))
            if those[0].half is not None:
                self._add_grams(those, values, torch.maximum(low.abs(), high.abs()))

    def _add_grams(self, parts: list[Part], values: torch.Tensor, largest: torch.Tensor) -> None:
        half, experts = parts[0].half, self._experts(parts[0])
        assert half is not None  # noqa: S101 - only halves come here
        # A power of two keeps every digit, and squares of what is scaled stay in range.
        exponents = torch.frexp(torch.where(largest > 0, largest, 1.0)).exponent
        scaled = torch.ldexp(values, -exponents[:, None]).view(len(parts), *parts[0].entry.shape)
        grams = gram_of_many(scaled, experts, of_a=half is Half.A)
        grams = grams * torch.ldexp(torch.ones_like(largest, dtype=torch.float64), 2 * exponents)[:, None, None, None]
        for part, gram in zip(parts, grams, strict=True):
            self._grams.setdefault(part.product, {})[half] = gram

    def _solve(self, measures: Measures) -> None:
        ready: dict[torch.Size, list[int]] = {}
        for number, grams in self._grams.items():
            product = self._plan.products[number]
            extents = [measures.extents[entry.name] for entry in (product.a, product.b)]
            if len(grams) == len(Half) and all(each.is_finite and each.largest <= LARGEST_MEASURED for each in extents):
                ready.setdefault(grams[Half.A].shape, []).append(number)
        for shape, numbers in ready.items():
            step = max(1, _SOLVED_AT_ONCE // (shape.numel() * 8))
            for some in (numbers[start : start + step] for start in range(0, len(numbers), step)):
                first, second = (torch.stack([self._grams[number][half] for number in some]) for half in Half)
                measures.sizes.update(zip(some, sizes_of(first, second), strict=True))

    def _experts(self, part: Part) -> int:
        return self._plan.products[part.product].experts if part.half is not None else 1
