from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import hooks
from tests.helpers.hooks import RULES, SECRET, Sent, certificate

from lora_registry.names import AdapterName
from lora_workers.hooks.configuration import HooksFile
from lora_workers.hooks.hook import Hook, Reading
from lora_workers.hooks.proofs import Proof
from lora_workers.hooks.refusals import Ignored, Refused
from lora_workers.hooks.request import HookRequest

HOOKS: dict[str, Hook] = dict(HooksFile.model_validate({"hooks": RULES}).hooks)
PROOF = Proof((SECRET.encode(),), hooks.NOW_S, lambda url: certificate(), tokens=(SECRET.encode(),))
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
GENUINE: dict[str, Any] = {
    "hub": hooks.hub_push("acme/support-bot", sha="1" * 40),
    "mlflow": json.loads(hooks.payload("mlflow/model_version.created.body.json")),
    "wandb": {"name": "a", "source": "/x", "base_model": "b", "labels": {}},
    "s3": hooks.minio("support-bot"),
    "cloudevents": {"specversion": "1.0", "id": "1", "source": "a", "type": "b", "data": {"name": "a", "path": "/x"}},
    "standard": {"type": "a", "data": {"name": "a", "source": "/x", "base_model": "b"}},
}


def outcome(hook: str, request: HookRequest) -> Reading | None:
    """What a hook makes of a request that nobody made on purpose: one of our errors, or a reading."""
    with contextlib.suppress(Refused, Ignored):
        HOOKS[hook].prove(request, PROOF)
    try:
        return HOOKS[hook].read(request, quiet_s=0)
    except (Refused, Ignored):
        return None


@st.composite
def changed(draw: st.DrawFn, told: Any) -> Any:
    """A genuine body in which a few values are replaced by anything, or left out."""
    if isinstance(told, dict):
        made = {}
        for key, value in told.items():
            what = draw(st.integers(0, 9))
            if what == 0:
                continue
            made[key] = draw(JSON) if what == 1 else draw(changed(value))
        return made
    if isinstance(told, list):
        return [draw(changed(each)) for each in told]
    return told


@pytest.mark.parametrize("hook", HOOKS)
@given(body=st.binary(max_size=200), headers=st.dictionaries(TEXT, TEXT, max_size=3))
@settings(max_examples=60, deadline=None)
def test_random_bytes_raise_nothing_but_our_errors(hook: str, body: bytes, headers: dict[str, str]) -> None:
    """Whatever comes, the gateway has an answer for it."""
    outcome(hook, HookRequest(headers, body))


@pytest.mark.parametrize("hook", HOOKS)
@given(body=JSON)
@settings(max_examples=60, deadline=None)
def test_random_json_raises_nothing_but_our_errors(hook: str, body: Any) -> None:
    """Likewise with JSON of any shape, and nothing is asked for by accident."""
    headers = {"content-type": "application/cloudevents+json"} if hook == "cloudevents" else {}
    reading = outcome(hook, HookRequest(headers, json.dumps(body).encode()))
    assert reading is None or reading.events == ()


@pytest.mark.parametrize("hook", HOOKS)
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_bodies_that_are_nearly_right_raise_nothing_but_our_errors(hook: str, data: st.DataObject) -> None:
    """Whatever is read out of a nearly genuine body is a legal event."""
    headers = {"content-type": "application/cloudevents+json"} if hook == "cloudevents" else {}
    body = data.draw(changed(GENUINE[hook]))
    reading = outcome(hook, HookRequest(headers, json.dumps(body).encode()))
    for each in reading.events if reading else ():
        assert each.event.source
        AdapterName(each.event.namespace, each.event.name)


@given(
    headers=st.dictionaries(
        st.sampled_from(
            sorted(
                {
                    name
                    for each in (
                        hooks.mlflow(b"{}"),
                        hooks.standard(b"{}"),
                        hooks.wandb({}),
                        hooks.cloud_event({}),
                        hooks.hub(b"{}"),
                    )
                    for name in Sent("", b"", each.headers).request.headers
                }
            )
        ),
        TEXT,
    )
)
@settings(max_examples=200, deadline=None)
def test_random_headers_raise_nothing_but_our_errors(headers: dict[str, str]) -> None:
    """Headers that look like proofs, and are none."""
    for hook in HOOKS:
        outcome(hook, HookRequest(headers, b"{}"))
