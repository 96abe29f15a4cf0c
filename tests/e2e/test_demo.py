import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(180)
def test_the_demo_shows_every_outcome_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Real processes on a real server: published, unchanged, retrained, two rejections, each announced or explained."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORA_REGISTRY_")}
    result = subprocess.run(
        [sys.executable, "-m", "lora_workers", "demo"],
        cwd=tmp_path,
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    printed = result.stdout
    assert result.returncode == 0, printed + result.stderr
    assert "published: support-bot.v1, lora_int_id " in printed
    assert "unchanged: support-bot.v1, lora_int_id " in printed
    assert "published: support-bot.v3, lora_int_id " in printed
    assert "published: sql-writer.v1, lora_int_id " in printed
    assert "default.support-bot@support-bot now means support-bot.v3" in printed
    assert "SHAPE_MISMATCH base_model.model.model.layers.0.self_attn." in printed
    assert "expected [8, 64], found [8, 96]" in printed
    assert "WEIGHTS_TRUNCATED" in printed
    assert "everything ended as it should" in printed
    assert list(tmp_path.iterdir()) == []
