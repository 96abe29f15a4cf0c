"""The gateway under requests that schemathesis makes up from its own OpenAPI: it keeps to what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lora_registry.names import AdapterName
from tests.helpers import hooks
from tests.helpers.adapters import make_base
from tests.helpers.gateway import running_gateway
from tests.helpers.registry import BASE, Registry

EXAMPLES = 40
"""Requests made up for each operation and kind; all together take some seconds."""
SENDER = {"X-Webhook-Secret": hooks.SECRET}
"""What lets a made-up body into the hook."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OPERATIONS = [
    ("POST", "/v1/registrations"),
    ("GET", "/v1/registrations/{registration_id}"),
    ("POST", "/v1/webhooks/{hook}"),
    ("GET", "/v1/adapters"),
    ("GET", "/v1/adapters/{namespace}/{name}"),
    ("GET", "/v1/adapters/{namespace}/{name}/versions/{version}"),
    ("GET", "/v1/adapters/{namespace}/{name}/aliases/{alias}"),
    ("PUT", "/v1/adapters/{namespace}/{name}/aliases/{alias}"),
    ("DELETE", "/v1/adapters/{namespace}/{name}/aliases/{alias}"),
    ("GET", "/v1/bases"),
    ("GET", "/v1/bases/{name}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
]


KINDS = [
    (*operation, mode)
    for operation in OPERATIONS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or operation[1].startswith("/v1/")  # nothing can be wrong about the others
]


@dataclass
class Target:
    """A running gateway, its description, and path parameters for which there is something."""

    schema: schemathesis.BaseSchema
    known: dict[str, dict[str, str]]


@pytest.fixture
def target(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    """A gateway with an adapter, a base model and hooks."""
    for name, value in hooks.SECRETS.items():
        monkeypatch.setenv(name, value)
    with_hooks = registry.settings.model_copy(update={"hooks_file": hooks.write_hooks(tmp_path / "hooks.json")})
    registry.catalog.bases.add(make_base(name=BASE))
    registered = registry.register("support-bot", labels={"team": "a"})
    registry.catalog.move_alias(AdapterName("default", "support-bot"), "stable", 1)
    adapter = {"namespace": "default", "name": "support-bot", "version": "1", "alias": "support-bot"}
    with running_gateway(with_hooks) as client:
        schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
        known = {"registrations": {"registration_id": registered.id}, "adapters": adapter, "bases": {"name": BASE}}
        known["webhooks"] = {"hook": "hub"}
        yield Target(schema, known)


def test_the_description_has_the_routes_that_are_fuzzed(target: Target) -> None:
    """A route that is added is fuzzed as well, or this fails."""
    described = {(each.ok().method.upper(), each.ok().path) for each in target.schema.get_all_operations()}
    assert described == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path", "mode"), KINDS, ids=[" ".join(kind) for kind in KINDS])
def test_every_answer_is_one_that_is_described(target: Target, method: str, path: str, mode: GenerationMode) -> None:
    """Whatever is sent, legal or not: no server error; a described status, media type, headers and body."""
    operation = target.schema[path][method]
    known = target.known.get(path.split("/")[2] if path.count("/") > 1 else "", {})
    if method == "DELETE":  # the adapter's own alias cannot be removed
        known = known | {"alias": "stable"}
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), is_known=st.booleans())
    def send(case: schemathesis.Case, is_known: bool) -> None:
        if is_known:
            case.path_parameters.update({name: known[name] for name in case.path_parameters if name in known})
            case.headers.update(SENDER if "hook" in known else {})
            if method == "PUT" and mode is GenerationMode.POSITIVE:  # else nearly all would be conflicts
                case.body = case.body | {"expect": None}
        statuses.add(case.call_and_validate(checks=CHECKS, timeout=10).status_code)

    send()
    assert mode is GenerationMode.NEGATIVE or statuses & {200, 202}, f"nothing succeeded: {statuses}"
