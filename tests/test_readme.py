"""The README's code blocks run, in their order, as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_registry.settings import Settings
from lora_workers import processes
from tests.helpers.waiting import wait_until

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(kind, text) for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
PYTHON_NAMES = "adapter_directory, redis_url, inbox = {adapter!r}, {url!r}, {inbox!r}\n"


def without_numbers(line: str) -> str:
    """The line without what differs from run to run."""
    return re.sub(r"sha256:[0-9a-f]+|lora-demo-\w+|[0-9.]+", "#", line).strip()


def bin_environment() -> dict[str, str]:
    """The environment with the interpreter's own commands first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_kinds_of_blocks() -> None:
    """Every block is of a kind that a test here runs, or a picture."""
    assert {kind for kind, _ in BLOCKS} == {"text", "console", "bash", "python"}


def test_demo_prints_what_the_readme_shows() -> None:
    """`make demo` runs the demo, which prints the lines in the README, numbers and hashes apart."""
    [block] = [text for kind, text in BLOCKS if kind == "console"]
    command, *shown = block.strip().splitlines()
    # This test may itself run under make, which hands its flags down.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    plan = subprocess.run(
        ["make", "-n", command.split()[-1]], cwd=ROOT, env=outside, capture_output=True, text=True, check=True
    )
    assert plan.stdout.strip().splitlines()[-1] == ".venv/bin/lora-registry demo"
    ran = subprocess.run(
        ["lora-registry", "demo"], env=bin_environment(), capture_output=True, text=True, timeout=120, check=True
    )
    printed = {without_numbers(line) for line in ran.stdout.splitlines()}
    # The subscriber's lines come in between whenever they come, so the order is not compared.
    assert [line for line in shown if without_numbers(line) not in printed] == []


@contextmanager
def running(command: str, directory: Path, environment: dict[str, str]) -> Iterator[Path]:
    """Run a block that stays in the foreground; yields what it has printed so far as a file."""
    output = directory / "up.log"
    with output.open("wb") as log, pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        process = processes.start(["bash", "-euc", f"{command}"], environment=environment, log=log)
        try:
            yield output
        finally:
            processes.kill_group(process)
            process.wait()


def test_blocks_in_order(tmp_path: Path) -> None:
    """A reader who runs the shell and Python blocks one after the other sees none fail."""
    blocks = [(kind, text) for kind, text in BLOCKS if kind in {"bash", "python"}]
    environment = bin_environment()
    (_, first), *rest = blocks
    *before, up = first.strip().splitlines()
    run_bash("\n".join(before), tmp_path, environment)
    with running(up, tmp_path, environment) as output:
        wait_until(lambda: "export LORA_REGISTRY_REDIS_URL=" in output.read_text(), what="up is ready", timeout_s=60)
        url = re.findall(r"export LORA_REGISTRY_REDIS_URL=(\S+)", output.read_text())[0]
        assert url == f"unix://{tmp_path}/data/valkey/valkey.sock"  # what the README tells the reader to set
        environment["LORA_REGISTRY_REDIS_URL"] = url
        for kind, text in rest:
            if kind == "bash":
                run_bash(text, tmp_path, environment)
            else:
                adapter = str(tmp_path / "models/adapters/sql-writer")
                names = PYTHON_NAMES.format(adapter=adapter, url=url, inbox=str(tmp_path / "inbox"))
                run([sys.executable, "-c", names + text], tmp_path, environment)


def run_bash(text: str, directory: Path, environment: dict[str, str]) -> None:
    """Run a shell block; it fails when one of its commands fails."""
    run(["bash", "-euo", "pipefail", "-c", text], directory, environment)


def run(command: list[str], directory: Path, environment: dict[str, str]) -> None:
    """Run a block; what it printed is shown when it fails."""
    ran = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, f"{command[-1]}\n{ran.stdout}\n{ran.stderr}"


def test_configuration_lists_every_setting() -> None:
    """The table of settings names all of them, and nothing else."""
    page = (ROOT / "deploy" / "docs" / "settings.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(name.upper() for name in Settings.model_fields)


def test_links_lead_somewhere() -> None:
    """Every relative link in the README names a file or directory that exists."""
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
