"""What an alias or a version of an MLflow model registry means now: the place where its adapter is.

    mlflow://MODEL@ALIAS      mlflow://MODEL/VERSION

Only the place is taken from MLflow; the files are then read where it says, by what the namespace may read there. Both
parts are escaped as in a URL. Source: mlflow 3.17.2, REST API (registered-models/alias, model-versions/get).
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote

import httpx

from lora_registry import source_codes
from lora_registry.code import Code
from lora_registry.errors import Rejected, Transient
from lora_registry.events import may_hold_secret
from lora_workers.credentials import Credentials, MlflowCredential

SCHEME: Final = "mlflow"
PATH_TAG: Final = "lora.path"
PLACES: Final = ("s3", "hf", "gs", "az", "https", "file")
"""Schemes of a version's `source` that others than MLflow can read; `models:` and `runs:` are none."""
_URL = re.compile(r"mlflow://(?P<model>[^/@]{1,600})(?:@(?P<alias>[^/@]{1,600})|/(?P<version>[0-9]{1,18}))")
_TIMEOUT_S: Final = 15.0
_LONGEST_BYTES: Final = 1 << 20


def place_of(source: str, tags: dict[str, str], *, schemes: tuple[str, ...] = PLACES) -> str | None:
    """Where the bytes of a version are: what its tag `lora.path` says, else its source, if others can read it."""
    if tags.get(PATH_TAG):
        return tags[PATH_TAG]
    scheme = "file" if re.match(r"/[^/]", source) else source.partition("://")[0] if "://" in source else ""
    return source if scheme in schemes else None


class MlflowRegistry:
    """A model registry that is asked what its aliases mean.

    Args:
        url: the MLflow server's; empty if there is none.
        credentials: has `default-mlflow`, if the server wants to know who asks.
        transport: how it is reached; None: over the network.
    """

    def __init__(self, url: str, credentials: Credentials, *, transport: httpx.BaseTransport | None = None) -> None:
        self._url = url.rstrip("/")
        self._credentials = credentials
        self._transport = transport

    def locate(self, source: str) -> str:
        """Where `source` really is; what does not begin with `mlflow://` is there already.

        Raises:
            Rejected: no registry is configured, it has no such alias or version, or only MLflow can read its source.
            Transient: the registry is out of reach.
        """
        if not source.startswith(f"{SCHEME}://"):
            return source
        found = _URL.fullmatch(source)
        if not self._url or found is None:
            code = source_codes.MLFLOW_UNCONFIGURED if not self._url else source_codes.SOURCE_URL_INVALID
            raise _rejected(code, source)
        model = unquote(found["model"])
        if found["alias"]:
            version = self._ask("registered-models/alias", {"name": model, "alias": unquote(found["alias"])}, source)
        else:
            version = self._ask("model-versions/get", {"name": model, "version": found["version"]}, source)
        place = place_of(str(version.get("source", "")), _tags(version))
        if place is None or place.startswith(f"{SCHEME}://"):
            raise _rejected(source_codes.MLFLOW_SOURCE_UNREADABLE, source, actual=_shown(version))
        if may_hold_secret(place):
            message = "What MLflow names has a password or a query in it, and is kept and shown nowhere."
            raise Rejected(message, findings=(source_codes.SOURCE_URL_INVALID.finding(source[:200], message),))
        return place

    def _ask(self, what: str, query: dict[str, str], source: str) -> dict[str, Any]:
        auth, headers = self._access()
        try:
            with httpx.Client(transport=self._transport, timeout=_TIMEOUT_S, auth=auth, trust_env=False) as client:
                answer = client.get(f"{self._url}/api/2.0/mlflow/{what}", params=query, headers=headers)
            told = answer.json() if len(answer.content) <= _LONGEST_BYTES else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise Transient(f"the MLflow registry is out of reach ({type(error).__name__})") from error
        if not isinstance(told, dict):
            raise Transient(f"the MLflow registry answers {answer.status_code} with something else than a version")
        if answer.status_code in (400, 404) and told.get("error_code") in _MISSING:
            raise _rejected(source_codes.MLFLOW_VERSION_MISSING, source)
        version = told.get("model_version")
        if answer.status_code != 200 or not isinstance(version, dict):
            raise Transient(f"the MLflow registry answers {answer.status_code}")
        return version

    def _access(self) -> tuple[httpx.Auth | None, dict[str, str]]:
        found = self._credentials.get("", MlflowCredential, default="default-mlflow")
        if found is None:
            return None, {}
        if found.token is not None:
            return None, {"Authorization": f"Bearer {found.token.get_secret_value()}"}
        password = found.password.get_secret_value() if found.password else ""
        return httpx.BasicAuth(found.username, password), {}


_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def _shown(version: dict[str, Any]) -> str:
    told = str(version.get("source", ""))
    return "" if may_hold_secret(told) else told[:200]


def _tags(version: dict[str, Any]) -> dict[str, str]:
    tags = version.get("tags")
    pairs = [each for each in tags if isinstance(each, dict)] if isinstance(tags, list) else []
    return {str(each.get("key")): str(each.get("value")) for each in pairs}


def _rejected(code: Code, source: str, *, actual: str = "") -> Rejected:
    finding = code.finding(source[:200], actual=actual)
    return Rejected(finding.message, findings=(finding,))
