"""Judging an adapter where it lies in a bucket: what moves over the wire, counted by a proxy in front of the server.

The adapter has the shapes of a Llama-3-8B with a LoRA on every projection, at rank 16 (84 MB); the server is a real
SeaweedFS with a versioned bucket. Resolving it, its config and its header are all that a structural verdict takes.
"""

from __future__ import annotations

import time

from lora_registry.artifacts import WEIGHTS_FILE
from lora_registry.engine_profiles import BUILT_IN, find_profiles
from lora_registry.settings import Settings
from lora_workers.dry_run import DryRun
from lora_workers.sources import open_sources
from tests.benchmarks.figures import Figure
from tests.benchmarks.large_adapters import base_profile, write_large_adapter
from tests.benchmarks.stand import Stand
from tests.helpers.counting_proxy import CountingProxy
from tests.helpers.s3_server import VERSIONED, S3Server
from tests.helpers.sources import write_credentials

_RANK = 16


def run(stand: Stand) -> list[Figure]:
    """Bytes and requests of a verdict, and of one with every engine's."""
    adapter = write_large_adapter(stand.directory / "remote", rank=_RANK)
    directory = stand.directory / "seaweed"
    directory.mkdir()
    server = S3Server(directory)
    try:
        server.start()
    except FileNotFoundError as missing:
        print(f"    {missing}: no figures of it")
        return []
    try:
        server.put_directory(adapter, f"{VERSIONED}/adapter")
        return _measure(server, stand, size=(adapter / WEIGHTS_FILE).stat().st_size)
    finally:
        server.stop()


def _measure(server: S3Server, stand: Stand, *, size: int) -> list[Figure]:
    proxy = CountingProxy(int(server.endpoint_url.rpartition(":")[2]))
    credential = {**server.credential(), "endpoint_url": f"http://127.0.0.1:{proxy.port}"}
    path = write_credentials(stand.directory, {"default-s3": credential})
    sources, base = open_sources(Settings(credentials_file=path)), base_profile()
    figures = []
    for what, profiles in (("verdict", ()), ("verdict with 4 engines", find_profiles(BUILT_IN))):
        dry_run = DryRun(base, profiles=profiles, max_lora_rank=512, sources=sources)
        proxy.reset()
        begun = time.perf_counter()
        report = dry_run.check(f"s3://{VERSIONED}/adapter")
        took_ms = 1000 * (time.perf_counter() - begun)
        assert report.verdict == "valid", report.findings
        share = 100 * proxy.received_bytes / size
        figures += [
            Figure(f"S3, {what}: bytes moved of the file", "%", share, at_most=0.5),
            Figure(f"S3, {what}: requests", "", proxy.requests, at_most=6),
            Figure(f"S3, {what}: time", "ms", took_ms),
        ]
    proxy.close()
    return figures
