"""The numeric pass: fed with the chunks of a weights file as they are copied, it ends with a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

import torch

from lora_registry.adapter_config import AdapterConfig
from lora_registry.base_profile import BaseProfile
from lora_registry.compatibility import check_compatibility
from lora_registry.errors import Rejected
from lora_registry.findings import has_error
from lora_registry.numeric_report import NumericReport
from lora_registry.safetensors_header import MAX_HEADER_BYTES, Header, parse_header
from lora_workers.numeric.devices import DeviceName, compute_errors, device_label, open_device
from lora_workers.numeric.meaning import Meaning, meaning_of
from lora_workers.numeric.measures import Meter
from lora_workers.numeric.meter import CpuMeter
from lora_workers.numeric.plan import Plan, make_plan
from lora_workers.numeric.slab_meter import SlabMeter
from lora_workers.numeric.tensor_stream import Cut, TensorStream

_LENGTH_BYTES = 8


class NumericChecks:
    """Makes numeric passes on one device, which is opened with the first of them.

    Args:
        device: auto, cpu or cuda.
        index: which of the visible GPUs.
    """

    def __init__(self, device: DeviceName, *, index: int = 0) -> None:
        self._name = device
        self._index = index

    def __call__(self, config: AdapterConfig, base: BaseProfile, *, size_bytes: int) -> WeightsPass:
        """A pass over the weights of one adapter.

        Args:
            config: its configuration.
            base: the base model it is for.
            size_bytes: size of the weights file.

        Raises:
            Configuration: there is no such device.
            ProcessUnfit: it cannot be opened.
        """
        device = self._device

        def measure(plan: Plan) -> Meter:
            return CpuMeter(plan) if device.type == "cpu" else SlabMeter(plan, device)

        return WeightsPass(config, base, size_bytes=size_bytes, measure=measure, device=device_label(device))

    @cached_property
    def _device(self) -> torch.device:
        with compute_errors():
            return open_device(self._name, index=self._index)


class WeightsPass:
    """One pass. It measures nothing if the structure is wrong: shapes that fit the base bound its time and memory.

    Args:
        config: the adapter's configuration.
        base: the base model it is for.
        size_bytes: size of the weights file.
        measure: makes the meter.
        device: what the report calls the device.
    """

    def __init__(
        self,
        config: AdapterConfig,
        base: BaseProfile,
        *,
        size_bytes: int,
        measure: Callable[[Plan], Meter],
        device: str,
    ) -> None:
        self._config = config
        self._base = base
        self._size_bytes = size_bytes
        self._open_meter = measure
        self._device = device
        self._begun = time.perf_counter()
        self._start = bytearray()
        self._is_idle = False
        self._measuring: tuple[Plan, Meter, TensorStream] | None = None

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes of the file; they may be overwritten as soon as this returns.

        Raises:
            Transient: the device has no memory left, or (ProcessUnfit) failed.
        """
        if self._is_idle:
            return
        with compute_errors():
            if self._measuring is None:
                chunk = chunk[self._take_header(chunk) :]
            if self._measuring is not None:
                self._measuring[2].feed(chunk)

    def finish(self) -> NumericReport:
        """The report; one without spectra if the structure is wrong or the file is not whole.

        Raises:
            Transient: the device has no memory left, or (ProcessUnfit) failed.
        """
        meaning, bytes_read = Meaning(), 0
        if self._measuring is not None and self._measuring[2].is_complete:
            plan, meter, _ = self._measuring
            with compute_errors():
                measures = meter.finish()
            meaning, bytes_read = meaning_of(plan, measures, serving_dtype=self._base.dtype), self._size_bytes
        milliseconds = (time.perf_counter() - self._begun) * 1000
        return NumericReport(
            meaning.findings, meaning.families, meaning.overflows, bytes_read, milliseconds, self._device
        )

    def _take_header(self, chunk: memoryview) -> int:
        """Collect the header; returns how many bytes of `chunk` belong to it."""
        taken = 0
        while (missing := self._header_bytes() - len(self._start)) > 0 and taken < len(chunk):
            self._start += chunk[taken : taken + missing]
            taken = min(len(chunk), taken + missing)
        length = self._header_bytes()
        if length > min(self._size_bytes, _LENGTH_BYTES + MAX_HEADER_BYTES):
            self._is_idle = True
        elif len(self._start) == length > _LENGTH_BYTES:
            self._plan_measuring()
        return taken

    def _header_bytes(self) -> int:
        """Bytes of the header, as far as they are known: its first eight say how long it is."""
        if len(self._start) < _LENGTH_BYTES:
            return _LENGTH_BYTES
        return _LENGTH_BYTES + int.from_bytes(self._start[:_LENGTH_BYTES], "little")

    def _plan_measuring(self) -> None:
        header = self._read_header()
        self._start.clear()
        self._is_idle = header is None
        if header is None:
            return
        plan = make_plan(self._config, header, self._base)
        meter = self._open_meter(plan)

        def cut(number: int) -> Cut:
            part = plan.parts[number]
            return Cut(part.entry, meter.unit_bytes(part))

        def take(number: int, piece: memoryview, is_last: bool) -> None:
            meter.take(plan.parts[number], piece, is_last=is_last)

        self._measuring = plan, meter, TensorStream(len(plan.parts), cut, take, most_bytes=meter.most_bytes)

    def _read_header(self) -> Header | None:
        """The header, if it is legal and fits the base model; why it does not is found and said elsewhere."""
        data_bytes = self._size_bytes - len(self._start)
        try:
            header = parse_header(bytes(memoryview(self._start)[_LENGTH_BYTES:]), data_bytes=data_bytes)
        except Rejected:
            return None
        return None if has_error(check_compatibility(self._config, header, self._base)) else header
