"""GET /v1/adapters: what is published."""

from __future__ import annotations

import base64
import binascii
import bisect
import threading
import time
from collections.abc import Mapping
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field

from lora_registry.catalog import Catalog
from lora_registry.catalog_records import AliasMode, VersionRecord
from lora_registry.errors import NotFound
from lora_registry.names import AdapterName, Reference
from lora_registry.tokens import Scope
from lora_workers.gateway.authentication import Caller
from lora_workers.gateway.documentation import problems
from lora_workers.gateway.problems import HttpProblem, invalid
from lora_workers.gateway.services import Services, caller_of, services_of

_CHUNK: Final = 100
_MOST_LOOKED_AT: Final = 2_000
"""Adapters that one request looks at, at most; the cursor leads on from there."""
_INDEX_FRESH_S: Final = 5.0
router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
Namespace = Annotated[str, Path(max_length=96, examples=["default"])]
Name = Annotated[str, Path(max_length=96, examples=["support-bot"])]


class AdapterView(BaseModel):
    """An adapter, and the version that its own alias points at."""

    namespace: str
    name: str
    base_model: str
    current: VersionRecord | None


class AdapterPage(BaseModel):
    """Some adapters in the order of their names."""

    adapters: list[AdapterView]
    next_cursor: Annotated[str | None, Field(description="Give it as `cursor` for what follows; null: that is all.")]


class AliasView(BaseModel):
    """What an alias points at, and who moves it."""

    version: int
    mode: AliasMode


class AdapterDetail(AdapterView):
    """An adapter with its aliases and the numbers of its versions."""

    aliases: dict[str, AliasView]
    versions: Annotated[list[int], Field(description="Published version numbers, oldest first.")]


class AdapterIndex:
    """All adapters in the order of their names, read again when their number has changed or after five seconds."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._reading = threading.Lock()
        self._read_at = float("-inf")
        self._names: list[str] = []
        self._bases: dict[str, str] = {}

    def after(self, last: str) -> tuple[list[str], Mapping[str, str]]:
        """Qualified names after `last`, and the base model of each name there is.

        Raises:
            RedisUnavailable: the server is out of reach.
        """
        with self._reading:
            is_fresh = time.monotonic() - self._read_at < _INDEX_FRESH_S
            if not is_fresh or self._catalog.adapter_count() != len(self._names):
                self._bases = {adapter.qualified: base for adapter, base in self._catalog.adapters().items()}
                self._names = sorted(self._bases)
                self._read_at = time.monotonic()
            return self._names[bisect.bisect_right(self._names, last) :], self._bases


def _find_page(
    services: Services, index: AdapterIndex, *, caller: Caller, base: str | None, namespace: str | None,
    labels: Mapping[str, str], last: str, limit: int,
) -> AdapterPage:  # fmt: skip
    names, bases = index.after(last)
    found: list[AdapterView] = []
    looked_at = 0
    while looked_at < min(len(names), _MOST_LOOKED_AT):
        chunk = [_parse(name) for name in names[looked_at : looked_at + _CHUNK]]
        wanted = {
            adapter: bases[adapter.qualified]
            for adapter in chunk
            if caller.reaches(adapter.namespace)
            and namespace in (None, adapter.namespace)
            and base in (None, bases[adapter.qualified])
        }
        current = services.catalog.current(wanted) if wanted else {}
        for adapter in chunk:
            looked_at += 1
            record = current.get(adapter)
            if adapter in wanted and labels.items() <= (record.labels.items() if record else {}.items()):
                found.append(_view(adapter, wanted[adapter], record))
            if len(found) == limit:
                break
        if len(found) == limit:
            break
    is_last = looked_at >= len(names)
    return AdapterPage(adapters=found, next_cursor=None if is_last else _cursor_of(names[looked_at - 1]))


@router.get("", response_model=AdapterPage, summary="List adapters", responses=problems(401, 403, 422, 503))
def list_adapters(
    request: Request,
    caller: Annotated[Caller, Depends(caller_of)],
    base: Annotated[str | None, Query(max_length=200, description="Of this base model only.")] = None,
    namespace: Annotated[str | None, Query(max_length=96, description="Of this namespace only.")] = None,
    label: Annotated[
        list[str] | None, Query(max_length=32, description="`KEY=VALUE` that the current version has; repeatable.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Annotated[str | None, Query(max_length=300, description="`next_cursor` of the page before.")] = None,
) -> AdapterPage:
    """Adapters with a published version, in pages. A page may hold fewer than `limit`, even none, and have a next."""
    caller.require(Scope.READ, namespace=namespace)
    return _find_page(
        services_of(request),
        request.app.state.adapter_index,
        caller=caller,
        base=base,
        namespace=namespace,
        labels=_labels(label or []),
        last=_last_of(cursor) if cursor else "",
        limit=limit,
    )


@router.get(
    "/{namespace}/{name}",
    response_model=AdapterDetail,
    summary="Show an adapter",
    responses=problems(401, 403, 404, 422, 503),
)
def show_adapter(
    request: Request, caller: Annotated[Caller, Depends(caller_of)], namespace: Namespace, name: Name
) -> AdapterDetail:
    """An adapter: its base model, aliases and versions."""
    caller.require(Scope.READ, namespace=namespace)
    catalog, adapter = services_of(request).catalog, AdapterName(namespace, name)
    base = catalog.base_of(adapter)
    if base is None:
        raise NotFound(f"no adapter {str(adapter)!r} is published")
    aliases = catalog.aliases(adapter)
    return AdapterDetail(
        **dict(_view(adapter, base, catalog.current({adapter: base})[adapter])),
        aliases={alias: AliasView(version=to.version, mode=to.mode) for alias, to in sorted(aliases.items())},
        versions=catalog.version_numbers(adapter),
    )


@router.get(
    "/{namespace}/{name}/versions/{version}",
    response_model=VersionRecord,
    summary="Show a version",
    responses=problems(401, 403, 404, 422, 503),
)
def show_version(
    request: Request,
    caller: Annotated[Caller, Depends(caller_of)],
    namespace: Namespace,
    name: Name,
    version: Annotated[int, Path(ge=1, le=2**53, examples=[1])],
) -> VersionRecord:
    """One published version: it never means other bytes."""
    caller.require(Scope.READ, namespace=namespace)
    return services_of(request).catalog.version(Reference(AdapterName(namespace, name), version=version))


def _view(adapter: AdapterName, base: str, current: VersionRecord | None) -> AdapterView:
    return AdapterView(namespace=adapter.namespace, name=adapter.name, base_model=base, current=current)


def _parse(qualified: str) -> AdapterName:
    return AdapterName(*qualified.split("."))


def _labels(pairs: list[str]) -> dict[str, str]:
    if not all("=" in pair for pair in pairs):
        raise invalid([{"loc": ("query", "label"), "msg": "Give KEY=VALUE."}], what="request")
    return dict(pair.split("=", 1) for pair in pairs)


def _cursor_of(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode().rstrip("=")


def _last_of(cursor: str) -> str:
    """The name that a cursor stands for.

    Raises:
        HttpProblem: it is none of ours (422).
    """
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        problem: HttpProblem = invalid([{"loc": ("query", "cursor"), "msg": "It is no cursor."}], what="request")
        raise problem from None
