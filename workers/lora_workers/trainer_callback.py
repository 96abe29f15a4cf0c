"""A callback for transformers' Trainer, and so for TRL, Axolotl and LLaMA-Factory: each saved checkpoint is registered.

It acts on `on_save`, when the checkpoint is whole, and not on `on_train_end`, which comes before the last save. Source:
transformers 5.23, Trainer._maybe_log_save_evaluate (save, then rotation, then on_save) and _finalize_training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lora_registry.artifacts import CONFIG_FILE
from lora_registry.registrations import Registration
from lora_workers.training import OnError, forget_published, register_adapter, require_inbox

logger = logging.getLogger(__name__)


class RegisterAdapterCallback(TrainerCallback):  # type: ignore[misc] # transformers ships no types
    """Registers each checkpoint as it is saved, from one process of however many train.

    The checkpoint is copied to the inbox before training goes on, because `save_total_limit` removes it later; nothing
    is waited for. Only the adapter in the checkpoint itself is registered, not those in folders below it.

    Args:
        name: the adapter's name; each checkpoint that differs is a new version of it.
        base_model: registered name of the base model.
        inbox: directory or URL that every worker can read; None: LORA_REGISTRY_ADAPTER_INBOX.
        labels: labels of every version; the step is kept as metadata.
        on_error: `warn` logs whatever goes wrong as one warning; `raise` ends the training with it.
        options: further arguments of `register_adapter`.
    """

    def __init__(
        self,
        name: str,
        base_model: str,
        *,
        inbox: str | Path | None = None,
        labels: Mapping[str, str] | None = None,
        on_error: OnError = "warn",
        **options: Any,
    ) -> None:
        self._name = name
        self._base_model = base_model
        self._inbox = inbox
        self._on_error = on_error
        self._options = {"labels": dict(labels or {})} | options
        self.registrations: list[Registration] = []
        self._copied: list[Registration] = []

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        """Copy and submit the checkpoint that was just saved."""
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        try:
            if (checkpoint / CONFIG_FILE).is_file():
                self._register(checkpoint, step=state.global_step)
            else:
                logger.warning("%s is not registered: it holds no %s of PEFT", checkpoint, CONFIG_FILE)
        except Exception as error:  # as in register_adapter: a training run goes on
            if self._on_error == "raise":
                raise
            logger.warning("%s: %s", checkpoint, error)

    def _register(self, checkpoint: Path, *, step: int) -> None:
        metadata = {"step": str(step)} | dict(self._options.get("metadata") or {})
        given = self._options | {
            "inbox": require_inbox(self._inbox),
            "metadata": metadata,
            "on_error": self._on_error,
        }
        registration = register_adapter(self._name, checkpoint, self._base_model, **given)
        if registration is not None:
            self.registrations.append(registration)
            self._copied = [*forget_published(self._copied, redis_url=self._options.get("redis_url")), registration]
