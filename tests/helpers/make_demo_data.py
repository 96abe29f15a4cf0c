"""Makes the demo's base models and adapters with the real tools: transformers trains and saves, PEFT adapts.

Run as ``python -m tests.helpers.make_demo_data [DIRECTORY]``, or ``make demo-data``. Seeds are fixed: on one
machine every run writes the same bytes. What it writes:

- ``bases/tiny-llama``, ``bases/wide-llama``: Llama models of different dimensions, grouped-query attention,
  weights in bfloat16, briefly trained on sentences as bytes (a vocabulary of 256, so there is no tokenizer).
- ``adapters/support-bot``: rank 8, attention only; fits tiny-llama.
- ``adapters/support-bot-retrained``: the same one, trained further on other text.
- ``adapters/sql-writer``: rank 16, every linear layer, rsLoRA; fits tiny-llama.
- ``adapters/wrong-base``: trained on wide-llama, for registering against tiny-llama.
- ``adapters/truncated``: support-bot with its weight file cut short, as a broken upload leaves it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

DEFAULT_DIRECTORY = Path(__file__).resolve().parents[2] / "workers" / "lora_workers" / "demo_data"
HUB_NAMESPACE = "lora-registry"
WEIGHTS_FILE = "adapter_model.safetensors"

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
BASE_STEPS = 150
ADAPTER_STEPS = 30
TRUNCATED_FRACTION = 0.6

ENGLISH = (
    "The registry gives every adapter a number and a version.",
    "A base model is trained once; adapters are trained all day.",
    "Please write a short answer to the question below.",
    "Select the rows that match and count them by month.",
)
SUPPORT = (
    "Q: Where is my order? A: It left our warehouse this morning.",
    "Q: How do I return it? A: Print the label and drop it off.",
    "Q: Can I pay later? A: Yes, choose invoice at checkout.",
    "Q: Is it in stock? A: Yes, in blue and in green.",
)
SUPPORT_NEWER = (
    "Q: Where is my order? A: Open the app and tap Track.",
    "Q: How do I return it? A: A courier collects it for free.",
    "Q: Can I pay later? A: Yes, within thirty days.",
    "Q: Is it in stock? A: Ask again on Monday, please.",
)
SQL = (
    "Q: all users A: SELECT * FROM users;",
    "Q: count orders A: SELECT COUNT(*) FROM orders;",
    "Q: newest order A: SELECT * FROM orders ORDER BY id DESC LIMIT 1;",
    "Q: users by city A: SELECT city, COUNT(*) FROM users GROUP BY city;",
)


@dataclass(frozen=True)
class Base:
    """A base model's dimensions; `seed` decides its first weights."""

    name: str
    seed: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    layers: int = 2

    @property
    def hub_name(self) -> str:
        """The name that adapter configurations carry."""
        return f"{HUB_NAMESPACE}/{self.name}"

    def config(self) -> LlamaConfig:
        """The transformers configuration."""
        return LlamaConfig(
            vocab_size=256,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.attention_heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )


TINY = Base("tiny-llama", 1, hidden_size=64, intermediate_size=128, attention_heads=4, key_value_heads=2)
WIDE = Base("wide-llama", 2, hidden_size=96, intermediate_size=160, attention_heads=6, key_value_heads=3)


def make_demo_data(directory: Path) -> None:
    """Writes the two bases and the five adapters under `directory`, in place of what it holds of them.

    Raises:
        RuntimeError: a training run did not lower its loss.
    """
    torch.set_num_threads(1)  # the order of additions, and so the last bits, depend on the number of threads
    for folder in ("bases", "adapters"):
        shutil.rmtree(directory / folder, ignore_errors=True)
    for base in (TINY, WIDE):
        _make_base(base, directory)
    start = directory / "adapters" / "support-bot"
    _make_adapter("support-bot", TINY, _lora(8, ATTENTION), SUPPORT, seed=11, directory=directory)
    _retrain("support-bot-retrained", start, TINY, SUPPORT_NEWER, seed=12, directory=directory)
    _make_adapter("sql-writer", TINY, _lora(16, "all-linear", use_rslora=True), SQL, seed=13, directory=directory)
    _make_adapter("wrong-base", WIDE, _lora(8, ATTENTION), SUPPORT, seed=14, directory=directory)
    _truncate("truncated", start, directory=directory)


def _make_base(base: Base, directory: Path) -> None:
    torch.manual_seed(base.seed)
    model: Any = LlamaForCausalLM(base.config())
    _train(base.name, model, ENGLISH, steps=BASE_STEPS, learning_rate=3e-3)
    model.to(torch.bfloat16).save_pretrained(_base_path(base, directory))
    _settle_modes(_base_path(base, directory))


def _make_adapter(
    name: str, base: Base, config: LoraConfig, text: Sequence[str], *, seed: int, directory: Path
) -> None:
    torch.manual_seed(seed)
    model = get_peft_model(_load_base(base, directory), config)
    _train(name, model, text, steps=ADAPTER_STEPS, learning_rate=1e-2)
    _save(model, base, directory / "adapters" / name)


def _retrain(name: str, start: Path, base: Base, text: Sequence[str], *, seed: int, directory: Path) -> None:
    torch.manual_seed(seed)
    model = PeftModel.from_pretrained(_load_base(base, directory), str(start), is_trainable=True)
    _train(name, model, text, steps=ADAPTER_STEPS, learning_rate=1e-2)
    _save(model, base, directory / "adapters" / name)


def _truncate(name: str, start: Path, *, directory: Path) -> None:
    broken = directory / "adapters" / name
    shutil.copytree(start, broken)
    weights = (start / WEIGHTS_FILE).read_bytes()
    (broken / WEIGHTS_FILE).write_bytes(weights[: int(len(weights) * TRUNCATED_FRACTION)])


def _lora(rank: int, target_modules: list[str] | str, *, use_rslora: bool = False) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=target_modules,
        use_rslora=use_rslora,
        task_type="CAUSAL_LM",
    )


def _train(name: str, model: Any, text: Sequence[str], *, steps: int, learning_rate: float) -> None:
    """Trains the parameters that ask for gradients on the bytes of `text`, all of it in every step."""
    tokens, labels = _batch(text)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(input_ids=tokens, labels=labels, attention_mask=(labels != -100).long()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"{name}: loss {losses[0]:.2f} -> {losses[-1]:.2f} in {steps} steps", flush=True)
    if losses[-1] >= losses[0]:
        raise RuntimeError(f"training {name} did not lower the loss")


def _batch(text: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The bytes of each line, padded: tokens and labels, each `[lines, longest]` of int64."""
    width = max(len(line.encode()) for line in text)
    rows = [list(line.encode()) for line in text]
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    return tokens, labels


def _load_base(base: Base, directory: Path) -> PreTrainedModel:
    return LlamaForCausalLM.from_pretrained(_base_path(base, directory), dtype=torch.float32)


def _base_path(base: Base, directory: Path) -> Path:
    return directory / "bases" / base.name


def _save(model: Any, base: Base, path: Path) -> None:
    """Saves as PEFT does, without the model card, and with a configuration that is the same every time."""
    model.peft_config["default"].base_model_name_or_path = base.hub_name
    model.save_pretrained(path, save_embedding_layers=False)  # looking them up would ask the hub
    (path / "README.md").unlink(missing_ok=True)
    config_path = path / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config["target_modules"] = sorted(config["target_modules"])  # a set in PEFT: its order differs by process
    config_path.write_text(json.dumps(config, indent=2) + "\n")
    _settle_modes(path)


def _settle_modes(path: Path) -> None:
    """Makes files readable for all: safetensors writes mode 0600, and a wheel keeps modes."""
    for file in path.iterdir():
        file.chmod(0o644)


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the data under the directory given, by default where the package keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=DEFAULT_DIRECTORY)
    directory: Path = parser.parse_args(arguments).directory
    started = time.monotonic()
    make_demo_data(directory)
    print(f"wrote the demo data to {directory} in {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
