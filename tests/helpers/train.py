"""A short real training with transformers' Trainer and the callback: `python -m tests.helpers.train …`.

Under `torchrun` each process is a rank. What each rank's callback registered is written to NOTES/<rank>.json.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from lora_workers.trainer_callback import RegisterAdapterCallback

SENTENCES = (b"Where is my order?", b"Can I pay later?", b"Is it in stock now?", b"How do I return it?") * 4


def main() -> None:
    """Train, saving at every other step, and note what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--inbox", default=None)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--plain", action="store_true", help="train the base model itself: no adapter is saved")
    given = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(given.base)
    if not given.plain:
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, config)
    callback = RegisterAdapterCallback("support-bot", "tiny-llama", inbox=given.inbox, labels={"run": "test"})
    arguments = TrainingArguments(
        output_dir=str(given.output),
        max_steps=given.steps,
        save_steps=2,
        save_total_limit=1,
        per_device_train_batch_size=1,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    rows = [{"input_ids": list(text[:16]), "labels": list(text[:16])} for text in SENTENCES]
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback]).train()
    rank = os.environ.get("RANK", "0")
    (given.notes / f"{rank}.json").write_text(json.dumps([each.id for each in callback.registrations]))


if __name__ == "__main__":
    main()
