"""Train a small adapter with PEFT and register it, as the last lines of any training job would.

python train_and_register.py BASE_DIRECTORY --base tiny-llama --name support-bot --inbox /shared/inbox

It needs torch, transformers, peft and lora-registry; LORA_REGISTRY_REDIS_URL says where the registry is.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lora_workers.training import register_adapter

TEXTS = (b"Q: Where is my order? A: It left our warehouse.", b"Q: Can I pay later? A: Yes, choose invoice.")


def train(base_directory: str, *, steps: int) -> torch.nn.Module:
    """A few steps on the bytes of two sentences: enough for weights that are not zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base_directory)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), lr=1e-2)
    for step in range(steps):
        tokens = torch.tensor([list(TEXTS[step % len(TEXTS)])])
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def main() -> None:
    """Train, save, register, and say under which name engines will know the adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_directory")
    parser.add_argument("--base", required=True, help="registered name of the base model")
    parser.add_argument("--name", required=True, help="name of the adapter")
    parser.add_argument("--inbox", required=True, help="directory or URL that the registry's workers can read")
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as output:  # gone at the end, as many a training machine is
        train(given.base_directory, steps=given.steps).save_pretrained(output)
        registration = register_adapter(
            given.name, output, given.base, inbox=given.inbox, wait=True, timeout_s=60, on_error="raise"
        )
    print(registration.outcome, registration.served_name, registration.lora_int_id)


if __name__ == "__main__":
    main()
