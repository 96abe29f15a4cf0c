"""The real shapes of weights that lie packed in the files of a quantised base model.

Each method names and packs its tensors in its own way; config.json says which one it is, because two of them use one
name for opposite layouts. Where the files hold a second trace of a size, both must agree.

Source: qweight in vLLM's gptq and awq loaders (vllm/model_executor/layers/quantization); `dynamic` of GPTQModel's
    QuantizeConfig; compressed-tensors' pack-quantized format; QuantState.as_dict in bitsandbytes/functional.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from lora_registry import fit_codes
from lora_registry.base_profile import BaseProfileError
from lora_registry.safetensors_header import TensorEntry

Shape = tuple[int, ...]
ReadTensor = Callable[[str], bytes]
"""Reads the bytes of one small tensor by its name."""

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
MAX_READ_BYTES = 4096
"""The largest tensor that is read whole: a quantisation state is a JSON text of about 80 bytes."""

_FP8 = {"F8_E4M3", "F8_E5M2"}
_WORD_BITS = 32
_MOST_BITS = 8
_SIDE_TENSORS = (
    ".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_scale_inv", ".weight_zero_point", ".weight_g_idx",
    ".weight_global_scale", ".input_scale", ".input_zero_point", ".input_global_scale", ".weight_shape", ".SCB",
    ".weight_format", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
    ".k_scale", ".v_scale", ".output_scale", ".activation_scale",
)  # fmt: skip
_QUANT_STATE = ".weight.quant_state.bitsandbytes__"
_METHODS = ("gptq", "awq", "fp8", "compressed-tensors", "bitsandbytes")


def quantization_method(config: dict[str, Any]) -> str | None:
    """The way in which a base model is quantised, None if it is not.

    Raises:
        BaseProfileError: config.json does not name it.
    """
    declared = config.get("quantization_config") or config.get("compression_config")
    if not declared:
        return None
    method = declared.get("quant_method") if isinstance(declared, dict) else None
    if not isinstance(method, str) or not method:
        raise BaseProfileError.of(
            fit_codes.BASE_QUANTIZED_UNSUPPORTED, "quantization_config", "It names no quant_method."
        )
    return method.lower().replace("_", "-")


def is_supported(method: str | None) -> bool:
    """Whether the shapes of a method's packed weights can be told from the headers."""
    return method is None or method in _METHODS


def unpacked_shapes(
    entries: dict[str, TensorEntry], config: dict[str, Any], read_tensor: ReadTensor | None = None
) -> dict[str, Shape]:
    """The parameters of the model before it was quantised, by name; what only helps to unpack is left out.

    Args:
        entries: all tensors of the files.
        config: config.json; it names the method.
        read_tensor: reads a small tensor; without it, 4-bit weights of bitsandbytes cannot be told.

    Raises:
        BaseProfileError: a weight's shape cannot be told, or two traces of it disagree.
    """
    method = quantization_method(config)
    if not is_supported(method):
        raise BaseProfileError.of(fit_codes.BASE_QUANTIZED_UNSUPPORTED, "quantization_config", actual=method or "")
    reader = _Unpacker(
        entries, config.get("quantization_config") or config.get("compression_config") or {}, read_tensor
    )
    return dict(reader.shapes(method))


class _Unpacker:
    def __init__(self, entries: dict[str, TensorEntry], declared: dict[str, Any], read: ReadTensor | None) -> None:
        self._entries = entries
        self._declared = declared
        self._read = read

    def shapes(self, method: str | None) -> Iterator[tuple[str, Shape]]:
        for name, entry in self._entries.items():
            if method is not None and (name.endswith(_SIDE_TENSORS) or _QUANT_STATE in name):
                continue
            if method in ("gptq", "awq") and name.endswith(".qweight"):
                yield f"{name[:-8]}.weight", self._qweight(method, name[:-8], entry)
            elif method == "compressed-tensors" and name.endswith(".weight_packed"):
                yield f"{name[:-14]}.weight", self._packed(name[:-14], entry)
            elif method == "bitsandbytes" and entry.dtype == "U8" and name.endswith(".weight"):
                yield name, self._four_bits(name[:-7])
            elif self._is_plain(method, entry):
                yield name, entry.shape
            else:
                raise BaseProfileError.of(fit_codes.BASE_QUANTIZED_UNSUPPORTED, name, actual=entry.dtype)

    def _is_plain(self, method: str | None, entry: TensorEntry) -> bool:
        if entry.dtype in FLOATS:
            return True
        if method in ("fp8", "compressed-tensors") and entry.dtype in _FP8:
            return True
        return method in ("bitsandbytes", "compressed-tensors") and entry.dtype == "I8"

    def _qweight(self, method: str, module: str, entry: TensorEntry) -> Shape:
        bits = self._bits(self._declared.get("bits", self._declared.get("w_bit")), module)
        if len(entry.shape) != 2:
            raise _contradiction(module)
        if self._declared.get("dynamic"):
            bits = self._own_bits(module, usual=bits)
        first, second = entry.shape
        if method == "awq":
            return self._agreed(module, out=self._exact(second * _WORD_BITS, bits, module), in_=first)
        return self._agreed(module, out=second, in_=self._exact(first * _WORD_BITS, bits, module))

    def _own_bits(self, module: str, *, usual: int) -> int:
        """Bits of one module's weights where `dynamic` gives some modules, by patterns of names, others than the usual.

        The zero points, packed as the weights are, tell them beside the scales, of which there are as many.
        """
        zeros, scales = self._entries.get(f"{module}.qzeros"), self._entries.get(f"{module}.scales")
        if zeros is None or scales is None or not zeros.shape or not scales.shape:
            return usual
        bits = self._exact(zeros.shape[-1] * _WORD_BITS, scales.shape[-1], module)
        if not 2 <= bits <= _MOST_BITS:
            raise _contradiction(module)
        return bits

    def _agreed(self, module: str, *, out: int, in_: int) -> Shape:
        """The shape, if the scales and the order of groups, where they are there, say the same."""
        scales, order = self._entries.get(f"{module}.scales"), self._entries.get(f"{module}.g_idx")
        if scales is not None and scales.shape[-1:] != (out,):
            raise _contradiction(module)
        if order is not None and order.shape != (in_,):
            raise _contradiction(module)
        return (out, in_)

    def _packed(self, module: str, entry: TensorEntry) -> Shape:
        if len(entry.shape) != 2:
            raise _contradiction(module)
        out, columns = entry.shape
        written = self._written_shape(module)
        if written is not None:
            if written[0] != out:
                raise _contradiction(module)
            return written
        bits, group = self._weights_scheme(module)
        scale = self._entries.get(f"{module}.weight_scale")
        if group and scale is not None and len(scale.shape) == 2 and scale.shape[0] == out:
            return (out, scale.shape[1] * group)
        return (out, self._exact(columns * (8 if entry.dtype == "U8" else _WORD_BITS), bits, module))

    def _written_shape(self, module: str) -> Shape | None:
        name = f"{module}.weight_shape"
        entry = self._entries.get(name)
        if entry is None or self._read is None or entry.dtype not in ("I64", "I32"):
            return None
        raw = self._read(name)
        size = 8 if entry.dtype == "I64" else 4
        numbers = tuple(int.from_bytes(raw[at : at + size], "little", signed=True) for at in range(0, len(raw), size))
        if len(numbers) != 2 or min(numbers) < 1:
            raise _contradiction(module)
        return numbers

    def _weights_scheme(self, module: str) -> tuple[int, int]:
        """Bits of a weight, and the length of the groups that share a scale (0 if there are none)."""
        schemes = []
        groups = self._declared.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict):
                schemes.append((weights.get("num_bits"), weights.get("group_size") or 0))
        if len(set(schemes)) != 1 or type(schemes[0][1]) is not int:
            message = "The weight's shape is not written beside it, and config.json has no single scheme."
            raise BaseProfileError.of(fit_codes.BASE_QUANTIZED_UNSUPPORTED, module, message)
        return self._bits(schemes[0][0], module), max(schemes[0][1], 0)

    def _four_bits(self, module: str) -> Shape:
        state = next((name for name in self._entries if name.startswith(module + _QUANT_STATE)), None)
        if state is None or self._read is None:
            message = "The weight is packed to four bits, and the state that holds its shape could not be read."
            raise BaseProfileError.of(fit_codes.BASE_QUANTIZED_UNSUPPORTED, module, message)
        try:
            shape = json.loads(self._read(state))["shape"]
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise _contradiction(state) from exc
        packed = self._entries[f"{module}.weight"]
        if not isinstance(shape, list) or len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
            raise _contradiction(state)
        if (shape[0] * shape[1] + 1) // 2 != packed.end - packed.begin:
            raise _contradiction(module)
        return (shape[0], shape[1])

    def _bits(self, bits: object, module: str) -> int:
        if type(bits) is not int or not 2 <= bits <= _MOST_BITS:
            message = "config.json does not say how many bits a weight has."
            raise BaseProfileError.of(fit_codes.BASE_QUANTIZED_UNSUPPORTED, module, message, actual=repr(bits)[:40])
        return bits

    def _exact(self, bits_in_all: int, bits: int, module: str) -> int:
        if bits_in_all % bits:
            raise _contradiction(module)
        return bits_in_all // bits


def _contradiction(subject: str) -> BaseProfileError:
    message = "The sizes that the files and config.json give for the packed weight disagree."
    return BaseProfileError.of(fit_codes.BASE_PROFILE_INVALID, subject, message)
