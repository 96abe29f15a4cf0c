import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.adapters import (
    PREFIX,
    Adapter,
    codes_of,
    errors_of,
    llama_shapes,
    make_adapter,
    make_base,
    make_mixture,
)
from tests.helpers.adapters_on_disk import DEMO_DATA
from tests.helpers.weights import Array, cast, measure, random_values, weights_bytes

from lora_registry.adapter_config import parse_adapter_config
from lora_registry.base_profile import ModuleKind
from lora_registry.errors import Configuration, ProcessUnfit, Transient
from lora_registry.findings import Severity
from lora_registry.numeric_report import ModuleSpectrum, NumericReport
from lora_workers.base_models import read_base_profile
from lora_workers.numeric import meter
from lora_workers.numeric.devices import open_device
from lora_workers.numeric.numeric_pass import NumericChecks

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BOTH = pytest.mark.parametrize("batched", [False, True], ids=["one by one", "batched"])
Q0 = "model.layers.0.self_attn.q_proj"
A0, B0 = f"{PREFIX}{Q0}.lora_A.weight", f"{PREFIX}{Q0}.lora_B.weight"


def spectra_of(report: NumericReport) -> dict[str, ModuleSpectrum]:
    """Every spectrum that the report shows, by module."""
    return {each.module: each for family in report.families for each in family.largest}


def delta(values: dict[str, Array], module: str, scale: float) -> Array:
    """s·B·A itself."""
    first, second = ("lora_A.weight", "lora_B.weight")
    if f"{PREFIX}{module}.lora_embedding_A" in values:
        first, second = ("lora_embedding_A", "lora_embedding_B")
    return scale * values[f"{PREFIX}{module}.{second}"] @ values[f"{PREFIX}{module}.{first}"]


def check_spectra(report: NumericReport, values: dict[str, Array], scale: float | dict[str, float]) -> None:
    """Norm, largest singular value, stable rank and rms are those of the product itself."""
    for module, spectrum in spectra_of(report).items():
        wanted = delta(values, module, scale if isinstance(scale, float) else scale[module])
        norm, sigma = np.linalg.norm(wanted), np.linalg.svd(wanted, compute_uv=False)[0]
        assert spectrum.frobenius == pytest.approx(norm, rel=1e-4)
        assert spectrum.sigma_1 == pytest.approx(sigma, rel=1e-4)
        assert spectrum.stable_rank == pytest.approx((norm / sigma) ** 2, rel=1e-3)
        assert spectrum.rms == pytest.approx(norm / math.sqrt(wanted.size), rel=1e-4)


@BOTH
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_spectra_are_those_of_the_product(dtype: str, batched: bool) -> None:
    """Norms and singular values from r x r matrices equal those of s·B·A by svd, in every dtype."""
    adapter = make_adapter(targets=LINEAR, rank=4, lora_alpha=12)
    values = random_values(adapter)
    report = measure(adapter, values, dtype=dtype, batched=batched)
    assert not report.findings
    assert [family.family for family in report.families] == sorted(LINEAR)
    assert all(family.count == 2 for family in report.families)
    check_spectra(report, cast(values, dtype), 3.0)


@BOTH
def test_scales_follow_the_patterns(batched: bool) -> None:
    """rank_pattern, alpha_pattern and rank-stabilised scaling decide each module's scale."""
    plain = make_adapter(targets=("q_proj", "v_proj"), rank=4)
    v1 = "model.layers.1.self_attn.v_proj"
    shapes = plain.shapes | {f"{PREFIX}{v1}.lora_A.weight": (2, 32), f"{PREFIX}{v1}.lora_B.weight": (16, 2)}
    patterns = {"rank_pattern": {"layers.1.self_attn.v_proj": 2}, "alpha_pattern": {"q_proj": 6.0}}
    adapter = replace(plain.with_config(lora_alpha=8, use_rslora=True, **patterns), shapes=shapes)
    values = random_values(adapter)
    report = measure(adapter, values, batched=batched)
    scales = {f"model.layers.{layer}.self_attn.q_proj": 3.0 for layer in (0, 1)}
    scales |= {"model.layers.0.self_attn.v_proj": 4.0, v1: 8 / math.sqrt(2)}
    assert {name: each.scale for name, each in spectra_of(report).items()} == pytest.approx(scales)
    check_spectra(report, values, scales)


@BOTH
def test_embeddings_are_measured(batched: bool) -> None:
    """The halves of an embedding have other names and the same meaning."""
    base = make_base()
    adapter = make_adapter(targets=("embed_tokens", "q_proj"), base=base)
    assert any(base.modules[name].kind is ModuleKind.EMBEDDING for name in base.modules)
    values = random_values(adapter)
    report = measure(adapter, values, batched=batched)
    assert "model.embed_tokens" in spectra_of(report)
    check_spectra(report, values, 2.0)


@BOTH
def test_dependent_rows_have_a_spectrum(batched: bool) -> None:
    """A rank that is not used makes a singular matrix, and the sizes are right all the same."""
    adapter = make_adapter()
    values = random_values(adapter)
    for name in values:
        if "lora_A" in name:
            values[name][3:] = 0
            values[name][2] = values[name][1]
    report = measure(adapter, values, batched=batched)
    assert not report.findings
    check_spectra(report, values, 2.0)


@BOTH
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_ends_of_the_range_are_measured(size: float, batched: bool) -> None:
    """Numbers whose squares float32 cannot hold are measured in full."""
    adapter = make_adapter()
    values = random_values(adapter)
    scaled = {name: each * (size if "lora_A" in name else 1) for name, each in values.items()}
    report = measure(adapter, scaled, batched=batched)
    check_spectra(report, scaled, 2.0)


@given(
    chunks=st.lists(st.integers(1, 3000), min_size=1, max_size=6).map(tuple),
    padding=st.integers(0, 9),
    dtype=st.sampled_from(["F32", "F16", "BF16"]),
    batched=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_chunks_may_end_anywhere(chunks: tuple[int, ...], padding: int, dtype: str, batched: bool) -> None:
    """Whatever the chunks and wherever the data begin, the numbers are the same."""
    adapter = make_adapter(targets=("q_proj", "down_proj"), rank=3)
    values = random_values(adapter)
    whole = measure(adapter, values, dtype=dtype)
    parts = measure(adapter, values, dtype=dtype, chunks=chunks, padding=padding, batched=batched)
    assert parts.findings == whole.findings == ()
    for family, other in zip(parts.families, whole.families, strict=True):
        assert family.frobenius_median == pytest.approx(other.frobenius_median, rel=1e-5)
        assert family.sigma_1_max == pytest.approx(other.sigma_1_max, rel=1e-5)


@given(data=st.data(), batched=st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_number_that_is_not_finite_is_found_anywhere(data: st.DataObject, batched: bool) -> None:
    """One NaN or infinity, in any tensor at any place, is an error that names the tensor and nothing else."""
    saved = f"{PREFIX}lm_head.weight"
    adapter = make_adapter(use_dora=True, modules_to_save=["lm_head"]).with_tensors({saved: (64, 32)})
    magnitudes = {
        name.replace("lora_B.weight", "lora_magnitude_vector"): shape[:1]
        for name, shape in adapter.shapes.items()
        if name.endswith("lora_B.weight")
    }
    adapter = adapter.with_tensors(magnitudes)
    values = random_values(adapter)
    name = data.draw(st.sampled_from(sorted(values)))
    place = data.draw(st.integers(0, values[name].size - 1))
    bad = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    values[name].flat[place] = bad
    dtype = data.draw(st.sampled_from(["F32", "F16", "BF16"]))
    report = measure(adapter, values, dtype=dtype, batched=batched)
    assert errors_of(report.findings) == ["NUMBERS_NOT_FINITE"]
    assert report.findings[0].subject == name
    assert report.findings[0].actual == ("NaN" if math.isnan(bad) else "an infinity")


@BOTH
def test_overflow_in_the_serving_dtype_is_an_error(batched: bool) -> None:
    """A value that float16 cannot hold rejects for a base in float16 and is only noted for others."""
    adapter = make_adapter(lora_alpha=8)
    values = random_values(adapter)
    values[A0][0, 0] = 70000.0
    served = measure(adapter, values, base=make_base().model_copy(update={"dtype": "F16"}), batched=batched)
    assert errors_of(served.findings) == ["DTYPE_OVERFLOW"]
    assert served.findings[0].subject == A0
    assert Q0 in served.findings[0].message
    other = measure(adapter, values, batched=batched)
    assert not errors_of(other.findings)
    assert other.overflows == ("F16",)


def test_the_scale_counts_for_overflow() -> None:
    """Engines fold the scale into B, so s·B must fit, too."""
    adapter = make_adapter(lora_alpha=8 * 40)
    values = random_values(adapter)
    values[B0][0, 0] = 2000.0
    report = measure(adapter, values, base=make_base().model_copy(update={"dtype": "F16"}))
    assert errors_of(report.findings) == ["DTYPE_OVERFLOW"]
    assert (report.findings[0].subject, report.findings[0].actual) == (B0, "80000")


@BOTH
def test_an_untrained_module_is_a_warning(batched: bool) -> None:
    """B starts at zero; a module where it stayed so changes nothing."""
    adapter = make_adapter()
    values = random_values(adapter)
    values[B0][:] = 0
    report = measure(adapter, values, batched=batched)
    assert [(each.code, each.subject) for each in report.findings] == [("ZERO_DELTA", Q0)]
    assert report.findings[0].severity is Severity.WARNING


def test_an_untrained_adapter_is_one_warning() -> None:
    """When every module changes nothing, one finding says so."""
    adapter = make_adapter(targets=LINEAR)
    report = measure(adapter, {name: np.zeros(shape) for name, shape in adapter.shapes.items()})
    assert [(each.code, each.actual) for each in report.findings] == [("ZERO_DELTA", "all 14 modules")]


@BOTH
def test_what_vanishes_in_the_serving_dtype_is_a_warning(batched: bool) -> None:
    """Values below the smallest of float16 become zero there, and the module answers as the base does."""
    adapter = make_adapter()
    values = random_values(adapter)
    values[B0] *= 1e-8
    report = measure(adapter, values, base=make_base().model_copy(update={"dtype": "F16"}), batched=batched)
    assert [(each.code, each.subject) for each in report.findings] == [("DTYPE_UNDERFLOW", Q0)]
    assert not measure(adapter, values, batched=batched).findings[1:]


def test_a_scale_beyond_all_recipes_is_a_warning() -> None:
    """One finding for each scale above 64."""
    report = measure(adapter := make_adapter(lora_alpha=8 * 65), random_values(adapter, size=0.01))
    assert codes_of(report.findings) == ["SCALE_OUTLIER"]
    assert report.findings[0].actual == "65 (4 modules)"


@BOTH
def test_a_module_far_above_its_family_is_a_warning(batched: bool) -> None:
    """A hundred times the median of its family, even in a small family."""
    adapter = make_adapter(base=(base := make_base(llama_shapes(layers=4), num_hidden_layers=4)))
    values = random_values(adapter)
    values[B0] *= 200
    report = measure(adapter, values, base=base, batched=batched)
    assert [(each.code, each.subject) for each in report.findings] == [("NORM_OUTLIER", Q0)]


def test_in_a_large_family_the_spread_counts() -> None:
    """Among sixteen that agree closely, twenty times the median is far off; the usual spread is not."""
    base = make_base(llama_shapes(layers=20), num_hidden_layers=20)
    adapter = make_adapter(base=base)
    values = random_values(adapter)
    assert not measure(adapter, values, base=base).findings
    values[B0] *= 20
    assert codes_of(measure(adapter, values, base=base).findings) == ["NORM_OUTLIER"]


@BOTH
def test_magnitudes_that_are_not_positive_are_a_warning(batched: bool) -> None:
    """DoRA's magnitudes are norms."""
    adapter = make_adapter(use_dora=True)
    vectors = {
        name.replace("lora_B.weight", "lora_magnitude_vector"): shape[:1]
        for name, shape in adapter.shapes.items()
        if name.endswith("lora_B.weight")
    }
    adapter = adapter.with_tensors(vectors)
    values = random_values(adapter)
    assert not measure(adapter, values, batched=batched).findings
    first = next(iter(vectors))
    values[first][1] = -0.5
    report = measure(adapter, values, batched=batched)
    assert [(each.code, each.subject, each.actual) for each in report.findings] == [
        ("MAGNITUDE_INVALID", first, "-0.5")
    ]


@BOTH
def test_a_wrong_structure_is_left_to_the_structural_checks(batched: bool) -> None:
    """Weights that do not fit the base are not measured: their shapes bound neither time nor memory."""
    adapter = make_adapter(base=make_base(llama_shapes(hidden=64)))
    report = measure(adapter, random_values(adapter), batched=batched)
    assert (report.findings, report.families, report.bytes_read) == ((), (), 0)


@pytest.mark.parametrize("raw", [b"", b"\0" * 8, b"\xff" * 64, b"version https://git-lfs.github.com/spec/v1"])
def test_what_is_no_safetensors_file_is_left_to_the_structural_checks(raw: bytes) -> None:
    """No header, no measures, no exception."""
    config = parse_adapter_config(make_adapter().config_bytes)
    started = NumericChecks("cpu")(config, make_base(), size_bytes=len(raw))
    started.feed(memoryview(raw))
    assert started.finish().bytes_read == 0


def test_a_file_that_ends_early_is_left_to_the_structural_checks() -> None:
    """Half of the numbers are no measure."""
    adapter = make_adapter()
    raw = weights_bytes(random_values(adapter))
    started = NumericChecks("cpu")(parse_adapter_config(adapter.config_bytes), make_base(), size_bytes=len(raw))
    started.feed(memoryview(raw[:-1]))
    assert started.finish().families == ()


def test_read_only_chunks_are_copied() -> None:
    """A source may hand over bytes, which must not be seen as writable memory."""
    adapter = make_adapter()
    values = random_values(adapter)
    raw = weights_bytes(values)
    started = NumericChecks("cpu")(parse_adapter_config(adapter.config_bytes), make_base(), size_bytes=len(raw))
    started.feed(memoryview(raw))
    check_spectra(started.finish(), values, 2.0)


def test_halves_far_apart_are_measured_or_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All A before all B is legal; beyond the memory for what waits, the modules are named and not measured."""
    adapter = make_adapter(targets=LINEAR)
    values = random_values(adapter)
    apart = {name: values[name] for name in sorted(values, key=lambda name: "lora_B" in name)}
    check_spectra(measure(adapter, apart), values, 2.0)
    monkeypatch.setattr(meter, "_WAITING_BYTES", 3 * 8 * 8 * 4)
    report = measure(adapter, apart)
    assert [(each.code, each.actual) for each in report.findings] == [("SPECTRUM_NOT_MEASURED", "11 modules")]
    assert sum(family.count for family in report.families) == 3


@BOTH
def test_stacked_experts_are_measured_each(batched: bool) -> None:
    """The halves of all experts lie side by side: the norm is that of all, the singular value the largest of any."""
    at = f"{PREFIX}model.layers.0.mlp.experts"
    both = ["experts.gate_up_proj", "experts.down_proj"]
    adapter = Adapter(
        make_adapter(target_parameters=both, target_modules=[], rank_pattern={"gate_up_proj": 4}).config,
        {
            f"{at}.base_layer.lora_A.weight": (12, 32),
            f"{at}.base_layer.lora_B.weight": (96, 12),
            f"{at}.lora_A.weight": (24, 48),
            f"{at}.lora_B.weight": (32, 24),
        },
    )
    values = random_values(adapter)
    report = measure(adapter, values, base=make_mixture(), batched=batched)
    assert [family.family for family in report.families] == ["down_proj", "gate_up_proj"]
    for name, tensors, rank in (("down_proj", at, 8), ("gate_up_proj", f"{at}.base_layer", 4)):
        a = values[f"{tensors}.lora_A.weight"].reshape(3, rank, -1)
        b = values[f"{tensors}.lora_B.weight"].reshape(-1, rank, 3)
        deltas = 16 / rank * np.einsum("ore,eri->eoi", b, a)  # source: ParamWrapper.get_delta_weight of PEFT
        spectrum = spectra_of(report)[f"model.layers.0.mlp.experts.{name}"]
        assert spectrum.frobenius == pytest.approx(np.linalg.norm(deltas), rel=1e-4)
        assert spectrum.sigma_1 == pytest.approx(np.linalg.svd(deltas, compute_uv=False)[:, 0].max(), rel=1e-4)


def test_findings_have_an_end() -> None:
    """A thousand are listed, and one says that there are more."""
    base = make_base(llama_shapes(hidden=2, kv=2, intermediate=2, vocab=4, layers=300), num_hidden_layers=300)
    adapter = make_adapter(rank=1, targets=("q_proj", "k_proj"), base=base)
    report = measure(adapter, {name: np.full(shape, math.nan) for name, shape in adapter.shapes.items()}, base=base)
    assert len(report.findings) == 1001
    assert report.findings[-1].code == "TOO_MANY_FINDINGS"


@pytest.mark.parametrize("name", ["support-bot", "support-bot-retrained", "sql-writer"])
def test_the_packaged_adapters_are_without_a_fault(name: str) -> None:
    """Adapters that were really trained give no finding."""
    base = read_base_profile(
        "tiny-llama", DEMO_DATA / "bases" / "tiny-llama", also_known_as=("lora-registry/tiny-llama",)
    )
    directory = DEMO_DATA / "adapters" / name
    raw = (directory / "adapter_model.safetensors").read_bytes()
    config = parse_adapter_config((directory / "adapter_config.json").read_bytes())
    started = NumericChecks("cpu")(config, base, size_bytes=len(raw))
    started.feed(memoryview(raw))
    report = started.finish()
    assert report.findings == ()
    assert report.families
    assert report.bytes_read == len(raw)


def test_the_memory_is_bounded() -> None:
    """Of 84 MB that pass by, no more is held than twice the largest pair of halves, whatever else is kept included."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.numeric_process", "memory", "--rank", "64", "--layers", "8"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = re.fullmatch(r"(\d+) of (\d+) bytes", result.stdout.strip())
    assert found is not None
    assert int(found[1]) < 2 * int(found[2]), result.stdout


def test_torch_is_not_imported_before_there_are_weights() -> None:
    """A parent that forks, and a worker of another stage, never have torch in memory."""
    code = "import sys; import lora_workers.tasks, lora_workers.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_device_that_computes_has_one_thread() -> None:
    """Worker processes share the cores among themselves; two threads of one wait for each other."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert open_device("cpu") == torch.device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda asks for one; auto takes the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(Configuration, match="LORA_REGISTRY_DEVICE=cuda"):
        open_device("cuda")
    assert open_device("auto").type == "cpu"


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of one worker are numbered, and so are the GPUs that it sees."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [open_device("auto", index=index).index for index in range(3)] == [0, 1, 0]
    assert open_device("cpu", index=1).type == "cpu"


@pytest.mark.parametrize(
    ("raised", "mapped", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), Transient, "Tried to allocate 2 GiB"),
        (MemoryError(), Transient, "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), Transient, "can't allocate"),
        (torch.AcceleratorError("an illegal memory access was encountered"), ProcessUnfit, "illegal memory access"),
        (RuntimeError("CUDA error: device-side assert triggered\nCompile with …"), ProcessUnfit, "assert triggered"),
        (RuntimeError("cuBLAS: CUDA is gone"), ProcessUnfit, "gone"),
        (RuntimeError("a mistake of ours"), RuntimeError, "a mistake of ours"),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["feed", "finish"])
def test_failures_of_the_device_say_nothing_about_the_adapter(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, mapped: type[Exception], says: str, where: str
) -> None:
    """No memory: later. A CUDA error that stays: later, in another process. What we did wrong stays what it is."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise raised

    monkeypatch.setattr(meter.CpuMeter, "take" if where == "feed" else "finish", fail)
    with pytest.raises(mapped, match=says) as caught:
        measure(make_adapter(), random_values(make_adapter()))
    assert type(caught.value) is mapped
    assert "\n" not in str(caught.value)
