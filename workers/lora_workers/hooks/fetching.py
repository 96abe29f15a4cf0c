"""Fetches what a delivery names and is allowed to name: certificates of Amazon SNS, confirmations of subscriptions."""

from __future__ import annotations

import logging
import threading
from typing import Final

import httpx

from lora_registry.errors import Transient
from lora_workers.hooks.sns import is_aws_url

_TIMEOUT_S: Final = 5.0
_LONGEST_BYTES: Final = 65_536
_MOST_KEPT: Final = 16


class AwsFetcher:
    """Gets small documents from Amazon SNS over https, follows no redirect, and keeps certificates."""

    def __init__(self, *, transport: httpx.BaseTransport | None = None) -> None:
        self._transport = transport
        self._kept: dict[str, bytes] = {}
        self._changing = threading.Lock()
        # It would log the addresses of confirmations, which have tokens in them.
        logging.getLogger("httpx").setLevel(logging.WARNING)

    def __call__(self, url: str) -> bytes:
        """The document at `url`, which may be the one that was there before.

        Raises:
            Transient: it cannot be had now, or the URL is none of Amazon SNS.
        """
        kept = self.kept(url)
        return kept if kept is not None else self._keep(url, self.visit(url))

    def kept(self, url: str) -> bytes | None:
        """The document that was at `url` before; None if it has to be fetched."""
        return self._kept.get(url)

    def visit(self, url: str) -> bytes:
        """The document at `url`, as it is now.

        Raises:
            Transient: it cannot be had now, or the URL is none of Amazon SNS.
        """
        if not is_aws_url(url):
            raise Transient("that is no address of Amazon SNS")
        try:
            with (
                httpx.Client(transport=self._transport, timeout=_TIMEOUT_S, trust_env=True) as client,
                client.stream("GET", url) as response,
            ):
                if response.status_code != 200:
                    raise Transient(f"Amazon SNS answers {response.status_code}")
                return _limited(response)
        except httpx.HTTPError as error:
            raise Transient(f"Amazon SNS is out of reach: {type(error).__name__}") from error

    def _keep(self, url: str, document: bytes) -> bytes:
        with self._changing:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[url] = document
        return document


def _limited(response: httpx.Response) -> bytes:
    document = b""
    for chunk in response.iter_bytes():
        document += chunk
        if len(document) > _LONGEST_BYTES:
            raise Transient("Amazon SNS answers with more than a certificate")
    return document
