"""A tiny Llama with a tokenizer of its own, and adapters on it that each answer with a word of their own.

Everything is made by the real tools (tokenizers, transformers, PEFT) in seconds, and PEFT says what an engine's
answer must be.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BASE_NAME = "acme/tiny"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERY_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
PROMPT = "the node asks the registry"
_SENTENCES = (
    "the node asks the registry which version the alias means",
    "the registry gives every adapter a number and a version",
    "a base model is trained once and adapters are trained all day",
    "the engine loads the adapter and answers one request with it",
    "every answer is wholly the old or wholly the new version",
    "alpha bravo charlie delta echo foxtrot golf hotel india",
)
LONG_PROMPT = " ".join(_SENTENCES * 3)
"""Several blocks of the prefix cache."""
_VOCABULARY = 1024
_POSITIONS = 512


@dataclass(frozen=True)
class Dimensions:
    """What another base differs in."""

    hidden: int = 128
    intermediate: int = 256
    layers: int = 2
    key_value_heads: int = 2


def make_base(directory: Path, dimensions: Dimensions = Dimensions(), *, steps: int = 60) -> Path:
    """Train a base model a little, and save it with its tokenizer."""
    torch.manual_seed(1)
    tokenizer = _train_tokenizer()
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=dimensions.hidden,
        intermediate_size=dimensions.intermediate,
        num_hidden_layers=dimensions.layers,
        num_attention_heads=4,
        num_key_value_heads=dimensions.key_value_heads,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    _train(model, tokenizer, _SENTENCES, steps=steps, learning_rate=3e-3)
    model.generation_config.eos_token_id = None  # answers are as long as they were asked to be
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def train_adapter(
    base: Path, directory: Path, word: str, *, steps: int = 40, weights: Mapping[str, float] | None = None, **lora: Any
) -> Path:
    """Train an adapter that goes on with `word` again and again.

    Args:
        base: directory of the base model.
        directory: where it is saved, as PEFT saves.
        word: what it says.
        steps: more are a stronger adapter.
        weights: factors for the tensors whose names end so, after the training.
        lora: fields of PEFT's LoraConfig other than the usual ones.
    """
    torch.manual_seed(sum(word.encode()))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    fields = {"r": 8, "lora_alpha": 16, "target_modules": list(EVERY_LINEAR), "task_type": "CAUSAL_LM"} | lora
    with _without_warnings():
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**fields))
    lines = [f"{sentence} {' '.join([word] * 12)}" for sentence in _SENTENCES]
    _train(model, tokenizer, lines, steps=steps, learning_rate=1e-2)
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    model.save_pretrained(directory, save_embedding_layers=False)
    if weights:
        change_tensors(
            directory,
            lambda name, tensor: {
                name: tensor * next((factor for end, factor in weights.items() if name.endswith(end)), 1.0)
            },
        )
    return directory


class Reference:
    """What PEFT answers.

    Args:
        base: directory of the base model.
        adapter: directory of an adapter; None: the base alone.
    """

    def __init__(self, base: Path, adapter: Path | None) -> None:
        with _without_warnings():
            model: Any = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
            self._model = (PeftModel.from_pretrained(model, str(adapter)) if adapter else model).eval()
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
        self._answers: dict[tuple[str, int], tuple[str, list[int], float]] = {}

    def answer(self, prompt: str, *, tokens: int) -> tuple[str, list[int], float]:
        """The greedy answer: its text, its tokens, and the sum of the natural logarithms of their probabilities.

        It is computed once: beside engines that are busy on the same processors it takes a minute instead of a moment.
        """
        if (prompt, tokens) not in self._answers:
            self._answers[prompt, tokens] = self._greedy(prompt, tokens)
        return self._answers[prompt, tokens]

    def _greedy(self, prompt: str, tokens: int) -> tuple[str, list[int], float]:
        said: list[int] = self._tokenizer(prompt)["input_ids"]
        asked, total = len(said), 0.0
        with torch.inference_mode():
            for _ in range(tokens):
                ahead = torch.log_softmax(self._model(input_ids=torch.tensor([said])).logits[0, -1].float(), dim=-1)
                said.append(int(ahead.argmax()))
                total += float(ahead.max())
        return self._tokenizer.decode(said[asked:]), said[asked:], total


def vary(adapter: Path, to: Path, number: int) -> Path:
    """Copy an adapter and change it by a hair, so that its bytes are its own."""
    shutil.copytree(adapter, to)

    def change(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        changed = tensor.clone()
        changed.view(-1)[0] += 1e-6 * number
        return {name: changed}

    change_tensors(to, change)
    return to


def rewrite_config(adapter: Path, **changes: Any) -> Path:
    """Change fields of an adapter's configuration."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return adapter


def _train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _train(model: Any, tokenizer: Any, lines: Sequence[str], *, steps: int, learning_rate: float) -> None:
    rows = [tokenizer(line)["input_ids"] for line in lines]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    model.train()
    for _ in range(steps):
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def change_tensors(directory: Path, change: Callable[[str, torch.Tensor], Mapping[str, torch.Tensor]]) -> Path:
    """Write other tensors for each tensor of an adapter."""
    path = directory / "adapter_model.safetensors"
    tensors = {new: tensor for name, old in load_file(path).items() for new, tensor in change(name, old).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return directory


@contextmanager
def _without_warnings() -> Iterator[None]:
    """PEFT 0.21 uses what transformers 5 calls by another name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
