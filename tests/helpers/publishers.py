"""A publisher process: `python -m tests.helpers.publishers JOBS RESULTS` submits events as fast as it can.

JOBS holds one JSON event a line. RESULTS gets, for each, the registration id and when the call began and ended, by a
clock that all processes of the machine share.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from lora_registry.client import RegistrationClient


def main() -> None:
    """Submit all jobs."""
    jobs, results = Path(sys.argv[1]), Path(sys.argv[2])
    client = RegistrationClient.from_url()
    lines = []
    for line in jobs.read_text().splitlines():
        event = json.loads(line)
        began = time.monotonic_ns()
        registration_id = client.submit(**event)
        lines.append(json.dumps({"id": registration_id, "began": began, "ended": time.monotonic_ns(), **event}))
    results.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
