"""Codes of the place where the bytes are."""

from __future__ import annotations

from lora_registry.code import error

# Where the bytes are
SOURCE_UNSUPPORTED = error(
    "SOURCE_UNSUPPORTED",
    "No source of this scheme is configured.",
    "Use an absolute path of a local directory.",
)
SOURCE_OUTSIDE_ROOTS = error(
    "SOURCE_OUTSIDE_ROOTS",
    "The path is not inside a directory that the operator allows.",
    "Put the adapter under one of LORA_REGISTRY_SOURCE_ROOTS, or have the operator add its directory.",
)
SOURCE_NOT_FOUND = error("SOURCE_NOT_FOUND", "There is no such directory.", "Check the path and that workers see it.")
SOURCE_NOT_A_DIRECTORY = error(
    "SOURCE_NOT_A_DIRECTORY",
    "The source is not a directory.",
    "Name the directory that PEFT's save_pretrained wrote.",
)
SOURCE_PERMISSION = error(
    "SOURCE_PERMISSION",
    "The worker may not read it.",
    "Make it readable for the workers' user (safetensors writes files with mode 0600: chmod a+r).",
)
SOURCE_CHANGED = error(
    "SOURCE_CHANGED",
    "The file changed after it was resolved.",
    "Register again once writing is finished; write a new directory instead of changing an old one.",
)
