"""A promoter in a process of its own: `python -m tests.helpers.promoter_process VERSION ALIAS CANARY [die]`.

It promotes the adapter `support-bot`; with `die` it is killed by SIGKILL right after it moved the alias.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from lora_registry.client import RegistrationClient
from lora_registry.names import AdapterName
from lora_registry.promotion import Promotions


def main() -> None:
    """Promote."""
    version, alias, canary, *die = sys.argv[1:]
    if die:
        move = Promotions._move

        def move_and_die(promotions: Promotions, *args: Any) -> None:
            move(promotions, *args)
            os.kill(os.getpid(), signal.SIGKILL)

        Promotions._move = move_and_die  # type: ignore[method-assign]
    promotions = RegistrationClient.from_url().promotions()
    adapter = AdapterName("default", "support-bot")
    promotions.promote(adapter, int(version), alias, canaries=[canary], timeout_s=60, by="me")


if __name__ == "__main__":
    main()
