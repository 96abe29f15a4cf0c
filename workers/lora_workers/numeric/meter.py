"""Measures on the CPU: piece by piece, in blocks that stay in the cache, and nothing is kept but r x r matrices.

A half is dropped as soon as its matrix is made; products are solved some at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lora_workers.numeric.measures import Extent, Measures
from lora_workers.numeric.plan import Half, Part, Plan
from lora_workers.numeric.products import LARGEST_MEASURED, gram_of_a, gram_of_b, needs_double, sizes_of

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCK_ELEMENTS = 1 << 15
"""Elements that are converted at once: 128 KiB of float32. More save time, but take room beside the largest half."""
_SOLVE_BYTES = 1 << 16
"""Bytes of r x r matrices that are solved together."""
_SOLVE_PRODUCTS = 4
"""Most products that are."""
_WAITING_BYTES = 1 << 28
"""Most bytes of matrices whose other half has not come yet; files of PEFT hold the halves side by side."""


class CpuMeter:
    """Measures pieces one by one with one thread.

    Args:
        plan: what the tensors are.
    """

    device = "cpu"
    most_bytes = 1 << 18

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._measures = Measures()
        self._buffer = torch.empty(0)
        self._views: dict[torch.Size, torch.Tensor] = {}
        self._extent: Extent | None = None
        self._gram: torch.Tensor | None = None
        self._waiting: dict[int, torch.Tensor] = {}
        self._waiting_bytes = 0
        self._given_up: set[int] = set()
        self._ready: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._ready_bytes = 0

    def unit_bytes(self, part: Part) -> int:
        """A is needed whole, because each of its columns has a value of every row; of B whole rows do."""
        if part.half is Half.A:
            return part.entry.end - part.entry.begin
        return part.row_bytes if part.half is Half.B else DTYPES[part.entry.dtype].itemsize

    def take(self, part: Part, piece: memoryview, *, is_last: bool) -> None:
        """Measure a piece."""
        values = torch.frombuffer(piece, dtype=DTYPES[part.entry.dtype])
        lowest, highest = torch.aminmax(values)
        low, high = lowest.item(), highest.item()
        extent = self._extent = self._extent.extended(low, high) if self._extent else Extent(low, high)
        if part.half is not None and part.product not in self._given_up and extent.is_finite:
            in_double = needs_double(max(-low, high))
            for block in _blocks(part, values):
                converted = self._converted(block)
                self._add(part, converted.double() if in_double else converted)
        if is_last:
            self._end(part)

    def finish(self) -> Measures:
        """What was measured."""
        self._solve()
        return self._measures

    def _add(self, part: Part, values: torch.Tensor) -> None:
        """Add a block to the matrix of its half."""
        experts = self._plan.products[part.product].experts
        if experts == 1 and self._gram is not None and self._gram.dtype is values.dtype:
            columns = values if part.half is Half.A else values.T
            torch.addmm(self._gram, columns, columns.T, out=self._gram)
            return
        gram = gram_of_a(values, experts) if part.half is Half.A else gram_of_b(values, experts)
        self._gram = gram if self._gram is None else self._gram.double().add_(gram)

    def _converted(self, block: torch.Tensor) -> torch.Tensor:
        """The block in float32 (float64 stays), without a gap; in a buffer that the next one overwrites."""
        if block.dtype is torch.float64:
            return block.contiguous()
        if block.dtype is torch.float32 and block.is_contiguous():
            return block
        if block.numel() > self._buffer.numel():
            self._buffer = torch.empty(block.numel())
            self._views = {}
        view = self._views.get(block.shape)
        if view is None:
            view = self._views[block.shape] = self._buffer[: block.numel()].view(block.shape)
        return view.copy_(block)

    def _end(self, part: Part) -> None:
        extent, gram, self._extent, self._gram = self._extent, self._gram, None, None
        if extent is None:
            return
        self._measures.extents[part.entry.name] = extent
        if part.half is None:
            return
        if gram is None or not extent.is_finite or extent.largest > LARGEST_MEASURED:
            self._give_up(part.product)
        elif part.product not in self._given_up:
            self._pair(part, gram)

    def _pair(self, part: Part, gram: torch.Tensor) -> None:
        other = self._waiting.pop(part.product, None)
        if other is None:
            if self._waiting_bytes + gram.nbytes > _WAITING_BYTES:
                self._give_up(part.product)
                return
            self._waiting[part.product] = gram
            self._waiting_bytes += gram.nbytes
            return
        self._waiting_bytes -= other.nbytes
        # Which is A's and which is B's matters to neither the norm nor the singular values.
        self._ready.append((part.product, other, gram))
        self._ready_bytes += other.nbytes + gram.nbytes
        if self._ready_bytes > _SOLVE_BYTES or len(self._ready) >= _SOLVE_PRODUCTS:
            self._solve()

    def _give_up(self, product: int) -> None:
        self._given_up.add(product)
        other = self._waiting.pop(product, None)
        if other is not None:
            self._waiting_bytes -= other.nbytes

    def _solve(self) -> None:
        by_shape: dict[torch.Size, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}
        for each in self._ready:
            by_shape.setdefault(each[1].shape, []).append(each)
        for some in by_shape.values():
            numbers, first, second = zip(*some, strict=True)
            sizes = sizes_of(_stack(first), _stack(second))
            self._measures.sizes.update(zip(numbers, sizes, strict=True))
        self._ready, self._ready_bytes = [], 0


def _blocks(part: Part, values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Some columns of A, or some rows of B, at a time."""
    if part.half is Half.A:
        rows, columns = part.entry.shape
        step = max(1, _BLOCK_ELEMENTS // rows)
        matrix = values.view(rows, columns)
        return (matrix[:, at : at + step] for at in range(0, columns, step))
    matrix = values.view(-1, part.entry.shape[1])
    step = max(1, _BLOCK_ELEMENTS // matrix.shape[1])
    return (matrix[at : at + step] for at in range(0, matrix.shape[0], step))


def _stack(grams: Sequence[torch.Tensor]) -> torch.Tensor:
    """Matrices `[rank, rank]` or `[experts, rank, rank]` as one `[products, experts, rank, rank]`, float64."""
    stacked = torch.stack([gram.double() for gram in grams])
    return stacked if stacked.dim() == 4 else stacked.unsqueeze(1)
