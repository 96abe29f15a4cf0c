"""Every code a finding can carry: severity, cause and remedy in one place."""

from __future__ import annotations

from dataclasses import dataclass

from lora_registry.findings import Finding, Severity


@dataclass(frozen=True)
class Code:
    """What a finding's code stands for.

    Attributes:
        code: the stable identifier.
        severity: weight of every finding with this code.
        cause: one sentence; the message of a finding that brings no closer one.
        remedy: one sentence: what the publisher does about it.
    """

    code: str
    severity: Severity
    cause: str
    remedy: str

    def finding(self, subject: str = "", message: str = "", *, expected: object = "", actual: object = "") -> Finding:
        """A finding of this code about `subject`; `message` replaces the general cause."""
        return Finding(
            code=self.code,
            severity=self.severity,
            subject=subject,
            message=message or self.cause,
            expected=str(expected),
            actual=str(actual),
            remedy=self.remedy,
        )


CODES: dict[str, Code] = {}


def _code(code: str, severity: Severity, cause: str, remedy: str) -> Code:
    CODES[code] = Code(code, severity, cause, remedy)
    return CODES[code]


def _error(code: str, cause: str, remedy: str) -> Code:
    return _code(code, Severity.ERROR, cause, remedy)


def _warning(code: str, cause: str, remedy: str) -> Code:
    return _code(code, Severity.WARNING, cause, remedy)


# Names and the request
BASE_UNKNOWN = _error(
    "BASE_UNKNOWN", "No base model of that name is registered.", "Register it with `lora-registry base add NAME SOURCE`."
)
NAME_CONFLICT = _error(
    "NAME_CONFLICT",
    "The adapter's name is also the name of a base model, and engines serve both under one namespace.",
    "Choose another adapter name.",
)
ADAPTER_BASE_CONFLICT = _error(
    "ADAPTER_BASE_CONFLICT",
    "The adapter of this name belongs to another base model, and an adapter keeps its base for ever.",
    "Choose another adapter name, or register for the base model it belongs to.",
)
EVENT_MALFORMED = _error(
    "EVENT_MALFORMED", "The queued event cannot be read.", "Publish events with RegistrationClient or the HTTP gateway."
)
VERSION_TAKEN = _error(
    "VERSION_TAKEN",
    "The version number of this registration is taken by another one.",
    "Submit the event again; it gets a new number.",
)

# Where the bytes are
SOURCE_UNSUPPORTED = _error(
    "SOURCE_UNSUPPORTED", "No source of this scheme is configured.", "Use an absolute path of a local directory."
)
SOURCE_OUTSIDE_ROOTS = _error(
    "SOURCE_OUTSIDE_ROOTS",
    "The path is not inside a directory that the operator allows.",
    "Put the adapter under one of LORA_REGISTRY_SOURCE_ROOTS, or have the operator add its directory.",
)
SOURCE_NOT_FOUND = _error("SOURCE_NOT_FOUND", "There is no such directory.", "Check the path and that workers see it.")
SOURCE_NOT_A_DIRECTORY = _error(
    "SOURCE_NOT_A_DIRECTORY", "The source is not a directory.", "Name the directory that PEFT's save_pretrained wrote."
)
SOURCE_PERMISSION = _error(
    "SOURCE_PERMISSION",
    "The worker may not read it.",
    "Make it readable for the workers' user (safetensors writes files with mode 0600: chmod a+r).",
)
SOURCE_CHANGED = _error(
    "SOURCE_CHANGED",
    "The file changed after it was resolved.",
    "Register again once writing is finished; write a new directory instead of changing an old one.",
)
FILE_MISSING = _error(
    "FILE_MISSING",
    "A file that every PEFT adapter has is missing.",
    "Save the adapter with save_pretrained: adapter_config.json and adapter_model.safetensors.",
)
FILE_NOT_REGULAR = _error(
    "FILE_NOT_REGULAR", "It is not a regular file.", "Put a plain file in its place; no pipe, device or directory."
)
