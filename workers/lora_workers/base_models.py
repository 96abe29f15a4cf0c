"""A base model's profile, from its config.json and the headers of its weights; the weights are not read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from lora_workers.meta_model import build_running_model

_MOST_CONFIG_BYTES = 1 << 20
_MOST_TOKENIZER_BYTES = 1 << 26
_REMEDY = "Name a readable directory that holds the base model's config.json and *.safetensors files."


def read_base_profile(
    name: str, directory: Path, *, also_known_as: Sequence[str] = (), with_model: bool = True
) -> BaseProfile:
    """Build the profile of the base model in a local directory.

    Args:
        name: name to register it under, such as `meta-llama/Llama-3.1-8B`.
        directory: holds config.json and `*.safetensors`.
        also_known_as: other names that adapters give for it.
        with_model: build the model that config.json describes too, where transformers is installed.

    Raises:
        InvalidName: a name is not legal.
        Rejected: the directory holds no base model that can be read; the message says what is missing.
    """
    for each in (name, *also_known_as):
        check_base_name(each)
    config, weights = _read_config(directory), sorted(directory.glob("*.safetensors"))
    if not weights:
        raise Rejected(f"{directory} is no base model: it takes a config.json and *.safetensors files", remedy=_REMEDY)
    headers = {path: _read_file_header(path) for path in weights}
    return profile_from_headers(
        name,
        config,
        list(headers.values()),
        source=str(directory),
        also_known_as=also_known_as,
        running=build_running_model(config) if with_model else None,
        read_tensor=lambda tensor: _read_tensor(headers, tensor),
        tokenizer=read_base_tokenizer(directory),
    )


def read_base_tokenizer(directory: Path) -> TokenizerMap | None:
    """The map from token to id of the tokenizer beside a base model; None if there is none that can be read."""
    files = {}
    for name in TOKENIZER_FILES:
        path = directory / name
        if path.is_file() and path.stat().st_size <= _MOST_TOKENIZER_BYTES:
            files[name] = path.read_bytes()
    return read_tokenizer(files)


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        with (directory / "config.json").open("rb") as file:
            return load_object(file.read(_MOST_CONFIG_BYTES))
    except (OSError, StrictJsonError) as error:
        raise Rejected(f"{directory} is no readable base model: {error}", remedy=_REMEDY) from error


def _read_file_header(path: Path) -> Header:
    with _opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        return read_header(lambda offset, length: os.pread(descriptor, length, offset), file_size_bytes=size)


def _read_tensor(headers: dict[Path, Header], name: str) -> bytes:
    """The bytes of one small tensor."""
    path, header = next((path, header) for path, header in headers.items() if name in header.tensors)
    entry = header.tensors[name]
    if entry.end - entry.begin > MAX_READ_BYTES:
        raise Rejected(f"{name} has more than {MAX_READ_BYTES} bytes, which is too much for what it is")
    with _opened(path) as descriptor:
        return os.pread(descriptor, entry.end - entry.begin, header.header_bytes + entry.begin)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Rejected(f"{path} cannot be read: {error.strerror}", remedy=_REMEDY) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
