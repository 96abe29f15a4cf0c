"""Which files make an adapter, and what a directory without them holds instead.

Source: WEIGHTS_NAME, SAFETENSORS_WEIGHTS_NAME and CONFIG_NAME in peft/utils/constants.py (PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Iterable

from lora_registry import file_codes
from lora_registry.artifacts import CONFIG_FILE, WEIGHTS_FILE
from lora_registry.findings import Finding

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "adapter_model.ckpt")
_WHOLE_MODEL_PREFIXES = ("model-0", "pytorch_model-0")
_WHOLE_MODEL = {
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
}
_TRAINING_STATE = (
    ".distcp",
    "zero_to_fp32.py",
    "_model_states.pt",
    "_optim_states.pt",
    "pytorch_model_fsdp.bin",
)
_DIFFUSERS = {"pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "model_index.json"}
_MLX = {"adapters.safetensors", "adapters.npz"}


def check_files(names: Iterable[str]) -> list[Finding]:
    """Judge the listing of a directory.

    Args:
        names: paths of its files relative to it, with "/" between folders.

    Returns:
        Nothing if both files are there; else one finding for each that is missing, which says what lies there
        instead.
    """
    listed = set(names)
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in listed]
    if not missing:
        return []
    if len(missing) == 2:
        below = _folders_with_adapters(listed)
        if below:
            return [file_codes.FILES_IN_SUBFOLDER.finding(below[0], actual=", ".join(below[:5]))]
    instead = _other_format(listed)
    findings = [file_codes.FILE_MISSING.finding(name) for name in missing if name == CONFIG_FILE or instead is None]
    return [instead, *findings] if instead is not None else findings


def _folders_with_adapters(listed: set[str]) -> list[str]:
    folders = (name.removesuffix(CONFIG_FILE).rstrip("/") for name in listed if name.endswith("/" + CONFIG_FILE))
    return sorted(folder for folder in folders if f"{folder}/{WEIGHTS_FILE}" in listed)


def _other_format(listed: set[str]) -> Finding | None:
    """What the weights are instead of adapter_model.safetensors; None if they are there or unrecognised."""
    if WEIGHTS_FILE in listed:
        return None
    here = sorted(name for name in listed if "/" not in name)
    for name in here:
        if name in _PICKLES:
            return file_codes.FORMAT_PICKLE.finding(name)
        if name.startswith("adapter_model") and (name.endswith(".index.json") or "-of-" in name):
            return file_codes.FORMAT_SHARDED.finding(name)
        if name in _MLX:
            return file_codes.FORMAT_MLX.finding(name)
        if name in _DIFFUSERS:
            return file_codes.FORMAT_DIFFUSERS.finding(name)
    state = next((name for name in sorted(listed) if name.endswith(_TRAINING_STATE)), None)
    if state is not None:
        return file_codes.FORMAT_TRAINING_STATE.finding(state)
    for name in here:
        if name in _WHOLE_MODEL or name.startswith(_WHOLE_MODEL_PREFIXES):
            return file_codes.FORMAT_FULL_MODEL.finding(name)
        if name.endswith(".gguf"):
            return file_codes.FORMAT_GGUF.finding(name)
    return _single_file(here)


def _single_file(here: list[str]) -> Finding | None:
    for name in here:
        if name.endswith((".bin", ".pt", ".pth", ".ckpt")) and not name.startswith(
            ("training_args", "optimizer", "rng")
        ):
            return file_codes.FORMAT_PICKLE.finding(name)
        if name.endswith(".safetensors") and CONFIG_FILE not in here:
            return file_codes.FORMAT_KOHYA.finding(name)
    return None
