"""A gateway to put load on: the real application, with one route more that does nothing.

Prints the port once it listens.
"""

from __future__ import annotations

import sys

from fastapi import Request, Response

from lora_registry.settings import load_settings
from lora_workers.gateway.app import create_app
from lora_workers.gateway.serving import listen, run

EMPTY = "/empty"


def main() -> None:
    """Serve on a free port until killed."""
    app = create_app(load_settings(), on_loopback=True)

    @app.post(EMPTY)
    async def empty(_request: Request) -> Response:
        return Response(status_code=202)

    listening = listen("127.0.0.1", 0)
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    run(app, listening)


if __name__ == "__main__":
    main()
