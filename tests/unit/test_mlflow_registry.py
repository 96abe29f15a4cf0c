from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.helpers.sources import rejection, write_credentials

from lora_registry.errors import Rejected, Transient
from lora_workers.credentials import Credentials
from lora_workers.mlflow_registry import MlflowRegistry

ALIAS = "mlflow://support-bot@champion"


class Mlflow:
    """An MLflow server, as far as it is asked what a name means."""

    def __init__(self, status: int = 200, answer: Any = None, *, raw: bytes | None = None) -> None:
        self.status = status
        self.raw = json.dumps(answer).encode() if raw is None else raw
        self.asked: list[httpx.Request] = []

    def registry(self, credentials: Path | None = None) -> MlflowRegistry:
        """What asks it."""
        transport = httpx.MockTransport(self._answer)
        return MlflowRegistry("http://mlflow/", Credentials(credentials), transport=transport)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return httpx.Response(self.status, content=self.raw)


def version(source: str, **tags: str) -> dict[str, Any]:
    """The answer about a version."""
    listed = [{"key": key.replace("_", "."), "value": value} for key, value in tags.items()]
    return {"model_version": {"name": "support-bot", "version": "3", "source": source, "tags": listed}}


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        (version("s3://adapters/v3"), "s3://adapters/v3"),
        (version("/mnt/adapters/v3"), "/mnt/adapters/v3"),
        (version("models:/m-1", lora_path="hf://acme/x@main"), "hf://acme/x@main"),
        (version("s3://adapters/v3", lora_path="s3://adapters/peft"), "s3://adapters/peft"),
    ],
)
def test_an_alias_means_the_place_of_its_version(answer: Any, place: str) -> None:
    """The tag `lora.path` comes first, then a source that others can read."""
    mlflow = Mlflow(answer=answer)
    assert mlflow.registry().locate(ALIAS) == place
    assert str(mlflow.asked[0].url) == (
        "http://mlflow/api/2.0/mlflow/registered-models/alias?name=support-bot&alias=champion"
    )


def test_names_are_unescaped_and_versions_are_asked_for() -> None:
    """What a webhook escaped is asked for as it was."""
    mlflow = Mlflow(answer=version("s3://adapters/v3"))
    mlflow.registry().locate("mlflow://team%2Fa%40b/3")
    assert dict(mlflow.asked[0].url.params) == {"name": "team/a@b", "version": "3"}


def test_other_sources_are_there_already() -> None:
    """No question is asked about them."""
    mlflow = Mlflow()
    for source in ("/adapters/x", "s3://adapters/x", "acme/x", "mlflow:x"):
        assert mlflow.registry().locate(source) == source
    assert mlflow.asked == []


@pytest.mark.parametrize(
    ("status", "answer", "code"),
    [
        (404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}, "MLFLOW_VERSION_MISSING"),
        (400, {"error_code": "INVALID_PARAMETER_VALUE"}, "MLFLOW_VERSION_MISSING"),
        (200, version("models:/m-1"), "MLFLOW_SOURCE_UNREADABLE"),
        (200, version("runs:/1/x"), "MLFLOW_SOURCE_UNREADABLE"),
        (200, version("mlflow-artifacts:/1"), "MLFLOW_SOURCE_UNREADABLE"),
        (200, version("x", lora_path=ALIAS), "MLFLOW_SOURCE_UNREADABLE"),
        (200, {"model_version": {}}, "MLFLOW_SOURCE_UNREADABLE"),
    ],
)
def test_what_means_nothing_is_rejected(status: int, answer: Any, code: str) -> None:
    """No alias, or a version that only MLflow can read."""
    assert rejection(lambda: Mlflow(status, answer).registry().locate(ALIAS)).code == code


@pytest.mark.parametrize("source", ["mlflow://", "mlflow://a", "mlflow://a@", "mlflow://a@b/c", "mlflow://a/x"])
def test_what_is_no_name_is_rejected(source: str) -> None:
    """And nobody is asked."""
    mlflow = Mlflow()
    assert rejection(lambda: mlflow.registry().locate(source)).code == "SOURCE_URL_INVALID"
    assert mlflow.asked == []


def test_without_a_registry_names_mean_nothing() -> None:
    """The setting is named."""
    registry = MlflowRegistry("", Credentials(None))
    with pytest.raises(Rejected) as rejected:
        registry.locate(ALIAS)
    assert rejected.value.findings[0].code == "MLFLOW_UNCONFIGURED"


@pytest.mark.parametrize(
    "mlflow",
    [
        Mlflow(500, {}),
        Mlflow(401, {}),
        Mlflow(404, {"error_code": "ENDPOINT_NOT_FOUND"}),
        Mlflow(200, []),
        Mlflow(200, {"model_version": 1}),
        Mlflow(200, raw=b"<html>"),
        Mlflow(200, raw=b"[" * 2_000_000),
    ],
    ids=["error", "unauthorized", "no such path", "list", "no version", "html", "long"],
)
def test_a_registry_that_is_not_well_is_asked_again_later(mlflow: Mlflow) -> None:
    """A proxy's page or a fault is no answer about the alias."""
    with pytest.raises(Transient):
        mlflow.registry().locate(ALIAS)


@pytest.mark.parametrize(
    ("credential", "header"),
    [
        ({"kind": "mlflow", "token": "t-o-k"}, "Bearer t-o-k"),
        ({"kind": "mlflow", "username": "u", "password": "p"}, "Basic dTpw"),
    ],
)
def test_the_registry_is_told_who_asks(tmp_path: Path, credential: dict[str, str], header: str) -> None:
    """With the credential `default-mlflow`, if there is one."""
    mlflow = Mlflow(answer=version("s3://adapters/v3"))
    mlflow.registry(write_credentials(tmp_path, {"default-mlflow": credential})).locate(ALIAS)
    assert mlflow.asked[0].headers["authorization"] == header
