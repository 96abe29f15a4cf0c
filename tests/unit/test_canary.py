"""The canary stage on an engine in memory: what rejects, what is nobody's fault, and what is left behind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from lora_registry.errors import EngineBusy, Rejected, Transient
from lora_registry.ledger import Lease
from lora_registry.names import AdapterName, parse_reference
from lora_registry.registrations import Registration
from lora_registry.source_codes import SOURCE_CHANGED
from lora_registry.stages import Stage
from lora_registry.stages.canary import CANDIDATE_PREFIX, DEFAULT_PROMPTS, Answer, canary

PROMPTS = ("one", "two", "three")
TOKENS = (" a", " b")
DIGEST = f"sha256:{'0' * 64}"
EARLIER = SOURCE_CHANGED.finding("source")


@dataclass
class MemoryEngine:
    """An engine whose adapters change each log-probability by `shift`.

    Attributes:
        shift: for each prompt; NaN: no numbers, and the next `spoils` answers of the base are wrong.
        tokens: what the adapter chooses.
        refusal: its words if it does not load anything.
        spoils: how many answers a NaN spoils.
        wrong: log-probabilities of the base's next answers, instead of the right ones.
        noise: by how much the base's answers differ each time.
        down_at: the calls that fail.
    """

    shift: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PROMPTS, 0.5))
    tokens: tuple[str, ...] = TOKENS
    refusal: str | None = None
    spoils: int = 2
    wrong: list[float] = field(default_factory=list)
    noise: float = 0.0
    down_at: set[str] = field(default_factory=set)
    loaded: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, str | None]] = field(default_factory=list)
    id: str = "engine"

    def candidates(self) -> list[str]:
        """What it lists of ours."""
        self._called("candidates")
        return [name for name in self.loaded if name.startswith(CANDIDATE_PREFIX)]

    def load(self, name: str, digest: str) -> str | None:
        """Load it, or say why not."""
        self._called("load", name)
        if self.refusal is None:
            self.loaded[name] = digest
        return self.refusal

    def unload(self, name: str) -> None:
        """Unload it."""
        self._called("unload", name)
        self.loaded.pop(name, None)

    def ask(self, name: str | None, prompt: str) -> Answer:
        """An answer of two tokens."""
        self._called("ask" if name else "ask base", name)
        if name is None:
            return Answer(TOKENS, (self.wrong.pop(0) if self.wrong else -1.0 - self._noise(), -2.0))
        assert self.loaded[name] == DIGEST
        shift = self.shift[prompt]
        if math.isnan(shift):
            self.wrong = [-9.0 - number for number in range(self.spoils)]
        return Answer(self.tokens, (-1.0 - shift, -2.0))

    def asked(self) -> list[str]:
        """What was called, without names."""
        return [call for call, _ in self.calls]

    def _noise(self) -> float:
        return self.noise * (len(self.calls) // len(PROMPTS) % 2)

    def _called(self, call: str, name: str | None = None) -> None:
        self.calls.append((call, name))
        if call in self.down_at:
            raise Transient(f"{call} failed")


class MemoryLedger:
    """Who has the engine."""

    def __init__(self, *, is_busy: bool = False) -> None:
        self._is_busy = is_busy

    def hold_engine(self, lease: Lease, engine_id: str) -> None:
        """Hold it, unless it is busy."""
        assert (lease.stage, engine_id) == (Stage.CANARY, "engine")
        if self._is_busy:
            raise EngineBusy


def run(engine: MemoryEngine, *, base_model: str = "tiny-llama", is_busy: bool = False) -> dict[str, str | int]:
    """Run the stage on one registration."""
    adapter = AdapterName("default", "support-bot")
    registration = Registration("reg_1", adapter, base_model, digest=DIGEST, findings=(EARLIER,))
    ledger: Any = MemoryLedger(is_busy=is_busy)
    lease = Lease(registration, Stage.CANARY, 7, "worker")
    return canary(lease, ledger=ledger, engines={"tiny-llama": engine}, prompts=PROMPTS)


def rejection(engine: MemoryEngine) -> tuple[str, str]:
    """Code of the finding and what was found; nothing may stay loaded."""
    with pytest.raises(Rejected) as rejected:
        run(engine)
    finding, earlier = rejected.value.findings
    assert (finding.subject, earlier) == ("support-bot", EARLIER)
    assert engine.loaded == {}
    return finding.code, finding.actual


def test_candidate_that_changes_an_answer_passes_and_is_unloaded() -> None:
    """Base and candidate are asked every prompt; afterwards the engine is as before."""
    engine = MemoryEngine()
    assert run(engine) == {}
    assert engine.loaded == {}
    assert engine.asked() == ["candidates", *["ask base"] * 6, "load", *["ask"] * 3, "unload"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_one_prompt_that_is_answered_otherwise_is_enough(prompt: str) -> None:
    """An adapter may have nothing to say to the others."""
    assert run(MemoryEngine(shift=dict.fromkeys(PROMPTS, 0.0) | {prompt: 0.001})) == {}


def test_other_tokens_are_another_answer() -> None:
    """Even with the same log-probabilities."""
    assert run(MemoryEngine(shift=dict.fromkeys(PROMPTS, 0.0), tokens=(" a", " c"))) == {}


@pytest.mark.parametrize("shift", [0.0, 0.00005])
def test_candidate_that_changes_nothing_is_rejected(shift: float) -> None:
    """Loaded but not applied, or never trained; rounding is no change."""
    assert rejection(MemoryEngine(shift=dict.fromkeys(PROMPTS, shift)))[0] == "CANARY_NO_EFFECT"


def test_a_change_must_be_larger_than_the_engines_own_unsteadiness() -> None:
    """Where the base's answers differ by 0.01 from time to time, so may those of an adapter that is not applied."""
    assert rejection(MemoryEngine(shift=dict.fromkeys(PROMPTS, 0.009), noise=0.01))[0] == "CANARY_NO_EFFECT"
    assert run(MemoryEngine(shift=dict.fromkeys(PROMPTS, 0.03), noise=0.01)) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_candidate_without_finite_numbers_is_rejected(bad: float) -> None:
    """One prompt is enough, and no other is asked; the finding names it."""
    engine = MemoryEngine(shift=dict.fromkeys(PROMPTS, 0.5) | {"two": bad})
    code, actual = rejection(engine)
    assert code == "CANARY_NOT_FINITE"
    assert "'two'" in actual
    assert engine.asked().count("ask") == 2


def test_answer_without_a_token_has_no_finite_numbers() -> None:
    """An engine that gives no log-probability at all gives no finite one."""
    assert not Answer((), ()).is_finite
    assert Answer((), ()).distance(Answer((), ())) == math.inf


def test_wrong_answers_after_a_nan_are_taken_off_the_next_candidate() -> None:
    """The base is asked until it answers as before; whoever comes next finds the engine well."""
    engine = MemoryEngine(shift=dict.fromkeys(PROMPTS, math.nan), spoils=4)
    assert rejection(engine)[0] == "CANARY_NOT_FINITE"
    assert engine.wrong == []
    unloaded = engine.asked().index("unload")
    assert engine.asked()[unloaded + 1 :] == ["ask base"] * 9


def test_nan_of_an_engine_that_does_not_recover_is_no_verdict() -> None:
    """It may be the engine's own: tried again, elsewhere or after a restart."""
    engine = MemoryEngine(shift=dict.fromkeys(PROMPTS, math.nan), spoils=1000)
    with pytest.raises(Transient, match="restart it"):
        run(engine)
    assert engine.loaded == {}


def test_engine_spoiled_by_others_is_asked_until_it_is_steady() -> None:
    """What an earlier NaN spoiled would look like an effect of the candidate."""
    engine = MemoryEngine(shift=dict.fromkeys(PROMPTS, 0.0), wrong=[math.nan, -9.0, -1.0, -8.0])
    assert rejection(engine)[0] == "CANARY_NO_EFFECT"
    assert engine.asked()[: engine.asked().index("load")].count("ask base") == 12


@pytest.mark.parametrize("wrong", [[math.nan] * 1000, [float(-number) for number in range(1000)]], ids=["nan", "noise"])
def test_unsteady_engine_gets_no_candidate(wrong: list[float]) -> None:
    """Nothing is loaded where the base model itself gives no numbers, or others each time."""
    engine = MemoryEngine(wrong=wrong)
    with pytest.raises(Transient, match="same finite log-probabilities twice"):
        run(engine)
    assert "load" not in engine.asked()


def test_refusal_of_a_healthy_engine_rejects_in_its_words() -> None:
    """The finding carries what the engine said."""
    assert rejection(MemoryEngine(refusal="rank 64 is too large")) == ("CANARY_NOT_LOADED", "rank 64 is too large")


@pytest.mark.parametrize("call", ["candidates", "load", "ask", "ask base"])
def test_engine_that_fails_is_no_verdict_and_the_candidate_is_unloaded(call: str) -> None:
    """Out of reach at any moment: tried again later."""
    engine = MemoryEngine(down_at={call})
    with pytest.raises(Transient, match=call):
        run(engine)
    assert engine.loaded == {}


def test_failed_unload_changes_no_verdict_and_the_next_check_does_it() -> None:
    """The candidate stays until then; served names on the engine are left alone."""
    engine = MemoryEngine(down_at={"unload"}, loaded={"support-bot.v1": DIGEST})
    assert run(engine) == {}
    (left,) = set(engine.loaded) - {"support-bot.v1"}
    engine.down_at.clear()
    engine.calls.clear()
    assert run(engine) == {}
    assert engine.calls[:2] == [("candidates", None), ("unload", left)]
    assert set(engine.loaded) == {"support-bot.v1"}


def test_busy_engine_is_not_touched() -> None:
    """Another candidate is on it."""
    engine = MemoryEngine()
    with pytest.raises(EngineBusy):
        run(engine, is_busy=True)
    assert engine.calls == []


def test_worker_without_an_engine_publishes_nothing_unasked() -> None:
    """The dispatcher wanted a check that this worker cannot make: said, and tried again."""
    with pytest.raises(Transient, match="no canary engine for other-base"):
        run(MemoryEngine(), base_model="other-base")


def test_name_on_the_engine_is_of_this_attempt_and_none_that_a_client_can_ask_for() -> None:
    """It holds registration and epoch, and is no reference of the registry."""
    engine = MemoryEngine()
    run(engine)
    name = dict(engine.calls)["load"]
    assert name == "canary~reg_1~7"
    with pytest.raises(Rejected):
        parse_reference(name)


def test_built_in_prompts_are_different_and_not_empty() -> None:
    """Each tells something."""
    assert len({prompt.strip() for prompt in DEFAULT_PROMPTS} - {""}) == len(DEFAULT_PROMPTS)
