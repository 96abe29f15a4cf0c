"""Sources for tests: their settings with a credentials file, and what they refuse."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lora_registry.errors import Deferred, Rejected
from lora_registry.findings import Finding
from lora_registry.registrations import dump_findings
from lora_registry.settings import Settings
from lora_workers.sources import SourceRouter, open_sources
from tests.helpers.adapters_on_disk import DEMO_DATA

ADAPTER = DEMO_DATA / "adapters" / "support-bot"
CONFIG = (ADAPTER / "adapter_config.json").read_bytes()
WEIGHTS = (ADAPTER / "adapter_model.safetensors").read_bytes()


def unique(prefix: str = "test") -> str:
    """A name that no other test uses."""
    return f"{prefix}-{secrets.token_hex(6)}"


def write_credentials(directory: Path, named: Mapping[str, Mapping[str, Any]], *, mode: int = 0o600) -> Path:
    """A credentials file."""
    path = directory / "credentials.json"
    path.write_text(json.dumps(named))
    path.chmod(mode)
    return path


def make_sources(
    directory: Path, named: Mapping[str, Mapping[str, Any]] | None = None, **settings: Any
) -> SourceRouter:
    """Sources that know these credentials."""
    path = write_credentials(directory, named) if named else None
    return open_sources(Settings(credentials_file=path, **settings))


def rejection(action: Callable[[], Any]) -> Finding:
    """The one finding that an action is rejected with."""
    with pytest.raises(Rejected) as rejected:
        action()
    dump_findings(rejected.value.findings).encode()  # the ledger can keep it
    (finding,) = rejected.value.findings
    return finding


def deferral(action: Callable[[], Any]) -> Deferred:
    """The deferral that an action ends in."""
    with pytest.raises(Deferred) as deferred:
        action()
    return deferred.value
