"""A base model's profile, from its config.json and the headers of its weights; the weights are not read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lora_registry.base_profile import BaseProfile, profile_from_headers
from lora_registry.errors import Rejected
from lora_registry.names import check_base_name
from lora_registry.safetensors_header import Header, read_header

_MOST_CONFIG_BYTES = 1 << 20
_REMEDY = "Name a readable directory that holds the base model's config.json and *.safetensors files."


def read_base_profile(name: str, directory: Path, *, also_known_as: Sequence[str] = ()) -> BaseProfile:
    """Build the profile of the base model in a local directory.

    Args:
        name: name to register it under, such as `meta-llama/Llama-3.1-8B`.
        directory: holds config.json and `*.safetensors`.
        also_known_as: other names that adapters give for it.

    Raises:
        InvalidName: a name is not legal.
        Rejected: the directory holds no base model that can be read; the message says what is missing.
    """
    for each in (name, *also_known_as):
        check_base_name(each)
    try:
        with (directory / "config.json").open("rb") as file:
            config = json.loads(file.read(_MOST_CONFIG_BYTES))
        weights = sorted(directory.glob("*.safetensors"))
    except (OSError, ValueError, RecursionError) as error:
        raise Rejected(f"{directory} is no readable base model: {error}", remedy=_REMEDY) from error
    if not isinstance(config, dict) or not weights:
        raise Rejected(f"{directory} is no base model: it takes a config.json and *.safetensors files", remedy=_REMEDY)
    headers = [_read_file_header(path) for path in weights]
    return profile_from_headers(name, config, headers, source=str(directory), also_known_as=also_known_as)


def _read_file_header(path: Path) -> Header:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Rejected(f"{path} cannot be read: {error.strerror}", remedy=_REMEDY) from error
    try:
        size = os.fstat(descriptor).st_size
        return read_header(lambda offset, length: os.pread(descriptor, length, offset), file_size_bytes=size)
    finally:
        os.close(descriptor)
