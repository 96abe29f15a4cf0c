import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = ("pipeline", "workers")

MAY_IMPORT = {"pydantic", "pydantic_settings", "redis"}
HEAVY = {
    "celery",
    "fastapi",
    "fsspec",
    "httpx",
    "huggingface_hub",
    "kombu",
    "numpy",
    "rich",
    "s3fs",
    "safetensors",
    "torch",
    "typer",
}


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts of `tree`, whose packages come before the installed ones."""
    search_path = os.pathsep.join(str(tree / root) for root in SOURCE_ROOTS)
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": search_path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources and their contracts, to plant violations in."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for root in SOURCE_ROOTS:
        shutil.copytree(ROOT / root, tmp_path / root, ignore=shutil.ignore_patterns("demo_data", "__pycache__"))
    return tmp_path


def plant(file: Path, line: str) -> None:
    """Adds `line` to `file`, which is made if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = file.read_text() if file.exists() else '"""Planted by a test."""\n'
    file.write_text(f"{text}\n{line}\n")


def test_the_sources_keep_every_contract() -> None:
    """The layers that pyproject.toml declares are those of the code."""
    result = lint_imports(ROOT)

    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        (
            "pipeline/lora_registry/names.py",
            "import torch",
            "lora_registry imports neither lora_workers nor anything heavy",
        ),
        (
            "pipeline/lora_registry/names.py",
            "import lora_workers",
            "lora_registry imports neither lora_workers nor anything heavy",
        ),
        ("pipeline/lora_registry/errors.py", "import lora_registry.names", "layers of lora_registry"),
        ("pipeline/lora_registry/names.py", "import lora_registry.connection", "layers of lora_registry"),
        ("pipeline/lora_registry/ledger.py", "import lora_registry.client", "layers of lora_registry"),
        ("pipeline/lora_registry/client.py", "import lora_registry.subscriber", "layers of lora_registry"),
        (
            "pipeline/lora_registry/stages/resolve.py",
            "import lora_registry.stages.allocate",
            "layers of lora_registry",
        ),
        (
            "pipeline/lora_registry/stages/__init__.py",
            "import lora_registry.connection",
            "the order of the stages is a plain value",
        ),
        ("workers/lora_workers/planted.py", "import torch", "torch and numpy only in lora_workers.numeric"),
        (
            "workers/lora_workers/planted.py",
            "import huggingface_hub",
            "each source scheme's library only in its own file",
        ),
        ("workers/lora_workers/sources/planted.py", "import s3fs", "each source scheme's library"),
        ("workers/lora_workers/planted.py", "import celery", "Celery only in the application"),
        ("workers/lora_workers/planted.py", "import fastapi", "FastAPI and uvicorn only in the gateway"),
    ],
)
def test_a_planted_violation_is_caught(tree: Path, file: str, line: str, contract: str) -> None:
    """An import across the layers breaks the contract that is about it."""
    for stage in ("allocate", "resolve"):
        plant(tree / f"pipeline/lora_registry/stages/{stage}.py", "")
    for module in ("sources/__init__", "planted"):
        plant(tree / f"workers/lora_workers/{module}.py", "")
    plant(tree / file, line)

    result = lint_imports(tree)

    assert result.returncode == 1, result.stdout + result.stderr
    broken = [verdict for verdict in result.stdout.splitlines() if " BROKEN" in verdict]
    assert any(verdict.startswith(contract) for verdict in broken), result.stdout


def test_torch_is_allowed_where_numbers_are_checked(tree: Path) -> None:
    """The contract on torch leaves out the one folder that it is for."""
    plant(tree / "workers/lora_workers/numeric/__init__.py", "")
    plant(tree / "workers/lora_workers/numeric/planted.py", "import torch")

    result = lint_imports(tree)

    assert "training libraries nowhere KEPT" in result.stdout, result.stdout + result.stderr


MAPS = [
    "pipeline/lora_registry",
    "workers/lora_workers",
    "workers/lora_workers/cli",
    "workers/lora_workers/gateway",
    "workers/lora_workers/node",
    "workers/lora_workers/numeric",
]


@pytest.mark.parametrize("package", MAPS)
def test_the_map_of_a_package_names_everything_in_it(package: str) -> None:
    """Whoever follows the docstring of a package finds each of its files there."""
    directory = ROOT / package
    text = ast.get_docstring(ast.parse((directory / "__init__.py").read_text())) or ""
    named = set(re.findall(r"[a-z_0-9]+", text))
    files = {path.stem for path in directory.glob("*.py") if not path.stem.startswith("__")}
    packages = {path.parent.name for path in directory.glob("*/__init__.py")}
    assert files | packages <= named


def test_lora_registry_imports_the_standard_library_pydantic_and_redis_only() -> None:
    """The list of what the path may import is closed: a new dependency fails here, light or heavy."""
    graph = grimp.build_graph("lora_registry", include_external_packages=True, cache_dir=None)

    external = {name.partition(".")[0] for name in graph.modules} - {"lora_registry"}

    assert external - sys.stdlib_module_names - MAY_IMPORT == set()


@pytest.mark.parametrize("module", ["lora_registry.client", "lora_registry.subscriber", "lora_workers.training"])
def test_client_and_subscriber_stay_light(module: str) -> None:
    """A training job or a serving node that imports its side loads no heavy library, not even indirectly."""
    code = f"import json, sys; import {module}; print(json.dumps(sorted(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stdout))
    assert module in loaded
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()
