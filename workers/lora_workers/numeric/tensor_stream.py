"""Cuts the chunks of a safetensors file into pieces of tensors, copying only what a chunk's end cuts apart."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof, c_char
from dataclasses import dataclass

from lora_registry.safetensors_header import DTYPE_BYTES, TensorEntry


@dataclass(frozen=True, slots=True)
class Cut:
    """How one tensor is cut.

    Attributes:
        entry: the tensor.
        unit_bytes: a piece is a multiple of this: a row, or the whole tensor. It divides the tensor's length.
    """

    entry: TensorEntry
    unit_bytes: int


class TensorStream:
    """Fed with the bytes behind the header, in any chunks; passes on pieces of tensors in the order of the file.

    Args:
        count: number of tensors.
        cut: how each is cut, by its number in the order of their bytes; together they are all the bytes.
        take: gets the tensor's number, a piece of it (writable, aligned to its dtype, and valid only until `take`
            returns), and whether it is the tensor's last.
        most_bytes: longest piece, unless a unit is longer.
    """

    def __init__(
        self,
        count: int,
        cut: Callable[[int], Cut],
        take: Callable[[int, memoryview, bool], None],
        *,
        most_bytes: int,
    ) -> None:
        self._count = count
        self._cut_of = cut
        self._take = take
        self._most_bytes = most_bytes
        # As long as the longest unit from the start: a second buffer would not fit where the first one was.
        self._held = memoryview(bytearray(max((cut(number).unit_bytes for number in range(count)), default=0)))
        self._held_bytes = 0
        self._begin(0)

    @property
    def is_complete(self) -> bool:
        """Whether every tensor was passed on, whole."""
        return self._cut is None

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes. Bytes beyond the last tensor are ignored."""
        at = 0
        address = 0 if chunk.readonly or not chunk else addressof(c_char.from_buffer(chunk))
        while at < len(chunk) and (cut := self._cut) is not None:
            rest = chunk[at:]
            is_usable = not chunk.readonly and (address + at) % DTYPE_BYTES[cut.entry.dtype] == 0
            at += self._hold(cut, rest) if self._held_bytes else self._pass_on(cut, rest, is_usable=is_usable)

    def _pass_on(self, cut: Cut, rest: memoryview, *, is_usable: bool) -> int:
        """Pass on whole units that lie in the chunk, copied unless the chunk is writable and aligned."""
        there = min(len(rest), self._left_bytes)
        length = min(there - there % cut.unit_bytes, max(self._most_bytes, cut.unit_bytes))
        length -= length % cut.unit_bytes
        if not length:
            return self._hold(cut, rest)
        piece = rest[:length]
        self._emit(piece if is_usable else memoryview(bytearray(piece)))
        return length

    def _hold(self, cut: Cut, rest: memoryview) -> int:
        """Add to the unit that a chunk's end cut apart."""
        taken = min(cut.unit_bytes - self._held_bytes, len(rest))
        self._held[self._held_bytes : self._held_bytes + taken] = rest[:taken]
        self._held_bytes += taken
        if self._held_bytes == cut.unit_bytes:
            self._held_bytes = 0
            self._emit(self._held[: cut.unit_bytes])
        return taken

    def _emit(self, piece: memoryview) -> None:
        self._left_bytes -= len(piece)
        self._take(self._number, piece, not self._left_bytes)
        if not self._left_bytes:
            self._begin(self._number + 1)

    def _begin(self, number: int) -> None:
        self._number = number
        self._cut = self._cut_of(number) if number < self._count else None
        self._left_bytes = self._cut.entry.end - self._cut.entry.begin if self._cut is not None else 0
