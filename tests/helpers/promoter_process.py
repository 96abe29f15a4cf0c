"""A promoter in a process of its own: `python -m tests.helpers.promoter_process VERSION ALIAS CANARY [die|die-before]`.

It promotes the adapter `support-bot`; with `die` it is killed by SIGKILL right after it moved the alias, with
`die-before` right before that, and then what it directed lasts a few seconds in all.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from lora_registry import promotion
from lora_registry.client import RegistrationClient
from lora_registry.names import AdapterName
from lora_registry.promotion import Promotions


def main() -> None:
    """Promote."""
    version, alias, canary, *death = sys.argv[1:]
    timeout_s, move = 60.0, Promotions._move

    def die(promotions: Promotions, *args: Any) -> None:
        if death == ["die"]:
            move(promotions, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    if death:
        Promotions._move = die  # type: ignore[method-assign]
    if death == ["die-before"]:
        timeout_s, promotion._SPARE_S = 5.0, 0.0
    promotions = RegistrationClient.from_url().promotions()
    adapter = AdapterName("default", "support-bot")
    promotions.promote(adapter, int(version), alias, canaries=[canary], timeout_s=timeout_s, by="me")


if __name__ == "__main__":
    main()
