"""Stage 4, canary: a designated engine loads the candidate and answers prompts; what it gets wrong is not published.

Only registrations whose base model has a canary engine come here. The engine is one candidate's at a time, because one
adapter that computes NaN spoils the next answers of others (seen on vLLM 0.32); so each check begins with the base
model's own answers, which must be numbers and the same twice, and a NaN counts only if the base is well afterwards.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from lora_registry import canary_codes as codes
from lora_registry.errors import CanaryEngineUnfit, RegistryError, Rejected
from lora_registry.findings import Finding
from lora_registry.ledger import Lease, Ledger

CANDIDATE_PREFIX: Final = "canary~"
"""Begins a candidate's name on the engine. No name of the registry holds a '~': it can never be a version's served
name, nothing resolves to it, it means no other bytes later, and what a killed worker left loaded is known by it."""
DEFAULT_PROMPTS: Final = (
    "Write one sentence about the sea.",
    "Question: What is 12 times 12?\nAnswer:",
    "SELECT name FROM",
    "Translate to French: good morning",
)
MAX_TOKENS: Final = 8
"""Tokens of each answer."""
_SAME: Final = 1e-4
"""Log-probabilities (natural logarithms) that differ by no more are the same: rounding, not training, is so small."""
_STEADY: Final = 0.05
"""The base model's own answers may differ by so much from one time to the next, as kernels and batches vary."""
_PASSES: Final = 5
"""Times that the base model is asked at most, until it gives the same answers twice."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A greedy completion.

    Attributes:
        tokens: the chosen tokens.
        logprobs: natural logarithm of the probability of each; NaN where the engine gave no number.
    """

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def is_finite(self) -> bool:
        """Whether there is a log-probability, and all of them are finite numbers."""
        return bool(self.logprobs) and all(map(math.isfinite, self.logprobs))

    def distance(self, other: Answer) -> float:
        """Largest difference of a log-probability; infinite if the tokens differ or one is not finite."""
        if self.tokens != other.tokens or not (self.is_finite and other.is_finite):
            return math.inf
        return max(abs(mine - theirs) for mine, theirs in zip(self.logprobs, other.logprobs, strict=True))


class CanaryEngine(Protocol):
    """An engine set apart for candidates. All raise Transient when the engine is at fault, and not the candidate."""

    @property
    def id(self) -> str:
        """What its holder is remembered under: the same for all workers, different for each engine."""

    def candidates(self) -> Sequence[str]:
        """Names that it lists and that begin with CANDIDATE_PREFIX."""

    def load(self, name: str, digest: str) -> str | None:
        """Load an artifact as `name`; returns the engine's words if it is well and refuses, else None."""

    def unload(self, name: str) -> None:
        """Unload it. One that is not loaded counts as unloaded."""

    def ask(self, name: str | None, prompt: str) -> Answer:
        """The answer of the adapter `name`, or of the base model: greedy, at most MAX_TOKENS tokens."""


def canary(
    lease: Lease, *, ledger: Ledger, engines: Mapping[str, CanaryEngine], prompts: Sequence[str]
) -> dict[str, str | int]:
    """Try the validated artifact on the engine of its base model.

    Args:
        lease: the registration.
        ledger: knows who has the engine.
        engines: base model → its engine.
        prompts: what is asked; at least one.

    Returns:
        Nothing to add.

    Raises:
        Rejected: the engine cannot load it, it gives no finite log-probabilities, or it changes no answer.
        LeaseLost: another worker owns the registration, or the engine is busy and the registration was given back.
        Transient: the engine is out of reach or unwell, or this worker has none for the base model.
    """
    registration = lease.registration
    engine = engines.get(registration.base_model)
    if engine is None:
        raise CanaryEngineUnfit(f"this worker has no canary engine for {registration.base_model}")
    ledger.hold_engine(lease, engine.id)
    for left_over in engine.candidates():
        engine.unload(left_over)
    finding = _try_out(engine, f"{CANDIDATE_PREFIX}{registration.id}~{lease.epoch}", registration.digest, prompts)
    if finding:
        finding = finding.model_copy(update={"subject": str(registration.adapter)})
        raise Rejected(finding.message, findings=(finding, *registration.findings))
    return {}


def _try_out(engine: CanaryEngine, name: str, digest: str, prompts: Sequence[str]) -> Finding | None:
    base, unsteadiness = _steady_answers(engine, prompts)
    with _unloaded_afterwards(engine, name):
        refusal = engine.load(name, digest)
        if refusal is not None:
            return codes.CANARY_NOT_LOADED.finding(actual=refusal)
        tried = []
        for prompt in prompts:
            tried.append(engine.ask(name, prompt))
            if not tried[-1].is_finite:
                break
    if not tried[-1].is_finite:
        _check_recovered(engine, prompts, base)
        return codes.CANARY_NOT_FINITE.finding(expected="finite log-probabilities", actual=_shown(prompts, tried))
    if all(mine.distance(bare) <= max(_SAME, unsteadiness) for mine, bare in zip(tried, base, strict=True)):
        return codes.CANARY_NO_EFFECT.finding(expected="another answer than the base model's to one prompt at least")
    return None


def _steady_answers(engine: CanaryEngine, prompts: Sequence[str]) -> tuple[list[Answer], float]:
    """The base model's answers once they are the same twice, and by how much they differ even so.

    Raises:
        Transient: they do not become so; the answers of an adapter would say nothing.
    """
    for before, after in itertools.pairwise(_answers_of_the_base(engine, prompts)):
        apart = _apart(before, after)
        if apart <= _STEADY:
            return after, apart
    raise CanaryEngineUnfit("its base model does not give the same finite log-probabilities twice")


def _check_recovered(engine: CanaryEngine, prompts: Sequence[str], base: Sequence[Answer]) -> None:
    """After a NaN: make sure that the base model answers as before, which also takes the wrong answers off others.

    Raises:
        Transient: it does not, so the NaN may be the engine's.
    """
    if not any(_apart(base, again) <= _STEADY for again in _answers_of_the_base(engine, prompts)):
        raise CanaryEngineUnfit("after a candidate gave NaN its base model does not answer as before; restart it")


def _answers_of_the_base(engine: CanaryEngine, prompts: Sequence[str]) -> Iterator[list[Answer]]:
    for _ in range(_PASSES):
        yield [engine.ask(None, prompt) for prompt in prompts]


def _apart(some: Sequence[Answer], others: Sequence[Answer]) -> float:
    return max(one.distance(other) for one, other in zip(some, others, strict=True))


@contextmanager
def _unloaded_afterwards(engine: CanaryEngine, name: str) -> Iterator[None]:
    """Unload the candidate whatever happens; if that fails the next check on this engine does it first."""
    try:
        yield
    finally:
        try:
            engine.unload(name)
        except RegistryError as error:
            logger.warning("%s stays loaded until the next check: %s", name, error)


def _shown(prompts: Sequence[str], tried: Sequence[Answer]) -> str:
    numbers = ", ".join(f"{each:g}" for each in tried[-1].logprobs) or "none"
    return f"{numbers} for {prompts[len(tried) - 1][:60]!r}"
