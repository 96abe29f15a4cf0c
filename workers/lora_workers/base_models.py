"""A base model's profile, from its config.json and the headers of its weights; the weights are not read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from lora_registry.base_headers import profile_from_headers
from lora_registry.base_profile import BaseProfile
from lora_registry.errors import Rejected
from lora_registry.names import check_base_name
from lora_registry.quantized_bases import MAX_READ_BYTES
from lora_registry.safetensors_header import Header, read_header
from lora_registry.strict_json import StrictJsonError, load_object
from lora_registry.tokenizer_maps import TOKENIZER_FILES, TokenizerMap, read_tokenizer
from lora_workers.base_files import REMEDY, BaseFiles, LocalBaseFiles
from lora_workers.meta_model import build_running_model

_WHOLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_MOST_CONFIG_BYTES = 1 << 20
_MOST_INDEX_BYTES = 1 << 26
_MOST_TOKENIZER_BYTES = 1 << 26
_HEADERS_AT_ONCE = 8


def read_base_profile(
    name: str, directory: Path | BaseFiles, *, also_known_as: Sequence[str] = (), with_model: bool = True
) -> BaseProfile:
    """Build the profile of a base model.

    Args:
        name: name to register it under, such as `meta-llama/Llama-3.1-8B`.
        directory: holds config.json and `*.safetensors`; a local directory, or files elsewhere.
        also_known_as: other names that adapters give for it.
        with_model: build the model that config.json describes too, where transformers is installed.

    Raises:
        InvalidName: a name is not legal.
        Rejected: there is no base model that can be read; the message says what is missing.
        Transient: the place is out of reach.
    """
    for each in (name, *also_known_as):
        check_base_name(each)
    files = LocalBaseFiles(directory) if isinstance(directory, Path) else directory
    config, weights = _read_config(files), _names_of_weights(files)
    with ThreadPoolExecutor(_HEADERS_AT_ONCE, thread_name_prefix="headers") as threads:
        headers = dict(zip(weights, threads.map(partial(_read_file_header, files), weights), strict=True))
    return profile_from_headers(
        name,
        config,
        list(headers.values()),
        source=files.source,
        also_known_as=also_known_as,
        running=build_running_model(config) if with_model else None,
        read_tensor=lambda tensor: _read_tensor(files, headers, tensor),
        tokenizer=read_base_tokenizer(files),
    )


def read_base_tokenizer(directory: Path | BaseFiles) -> TokenizerMap | None:
    """The map from token to id of the tokenizer beside a base model; None if there is none that can be read."""
    files = LocalBaseFiles(directory) if isinstance(directory, Path) else directory
    there = files.names()
    sizes = {name: files.size_bytes(name) for name in TOKENIZER_FILES if name in there}
    return read_tokenizer(
        {name: files.read(name, 0, size) for name, size in sizes.items() if size <= _MOST_TOKENIZER_BYTES}
    )


def _read_config(files: BaseFiles) -> dict[str, Any]:
    try:
        return load_object(_read_small(files, "config.json", limit_bytes=_MOST_CONFIG_BYTES))
    except StrictJsonError as error:
        raise Rejected(f"{files.source} is no readable base model: {error}", remedy=REMEDY) from error


def _names_of_weights(files: BaseFiles) -> list[str]:
    """The files that the index names; without an index model.safetensors, or else all that look like weights.

    Source: `_get_resolved_checkpoint_files` in transformers/modeling_utils.py (transformers 5.23.0), which takes
        model.safetensors alone; what lies beside it may be the same weights in another form.
    """
    names = files.names()
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if not found:
        wanted = "it takes a config.json and *.safetensors files"
        raise Rejected(f"{files.source} is no base model: {wanted}", remedy=REMEDY)
    if _INDEX_FILE not in names:
        return [_WHOLE_FILE] if _WHOLE_FILE in names else found
    try:
        index = json.loads(_read_small(files, _INDEX_FILE, limit_bytes=_MOST_INDEX_BYTES))
        indexed = sorted({str(shard) for shard in index["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Rejected(f"{files.source}: {_INDEX_FILE} is not legal", remedy=REMEDY) from error
    if missing := [shard for shard in indexed if shard not in names]:
        raise Rejected(f"{files.source}: {missing[0][:200]!r}, which the index names, is missing", remedy=REMEDY)
    return indexed or found


def _read_small(files: BaseFiles, name: str, *, limit_bytes: int) -> bytes:
    size_bytes = files.size_bytes(name)
    if size_bytes > limit_bytes:
        raise Rejected(f"{files.source}: {name} has more than {limit_bytes} bytes", remedy=REMEDY)
    return files.read(name, 0, size_bytes)


def _read_file_header(files: BaseFiles, name: str) -> Header:
    return read_header(partial(files.read, name), file_size_bytes=files.size_bytes(name))


def _read_tensor(files: BaseFiles, headers: dict[str, Header], name: str) -> bytes:
    """The bytes of one small tensor."""
    file, header = next((file, header) for file, header in headers.items() if name in header.tensors)
    entry = header.tensors[name]
    if entry.end - entry.begin > MAX_READ_BYTES:
        raise Rejected(f"{name} has more than {MAX_READ_BYTES} bytes, which is too much for what it is")
    return files.read(file, header.header_bytes + entry.begin, entry.end - entry.begin)
