import pytest

from lora_registry.errors import Configuration
from lora_registry.settings import Settings
from lora_registry.stages import Stage
from lora_workers import extras
from lora_workers.numeric_needs import count_gpus, settled
from lora_workers.worker import run_worker


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which torch is not installed."""
    monkeypatch.setitem(extras._MODULES, "numeric", ("not_torch",))


@pytest.mark.usefixtures("no_torch")
def test_a_validate_worker_without_torch_refuses_to_start() -> None:
    """It says what to install, and how to go on without it; nothing had to be switched on for that."""
    with pytest.raises(Configuration, match=r"lora-registry\[numeric\].*LORA_REGISTRY_NUMERIC=off"):
        run_worker(Settings(), [Stage.VALIDATE])


@pytest.mark.usefixtures("no_torch")
def test_up_goes_on_without_torch_unless_numbers_are_asked_for() -> None:
    """auto means off there, and on is refused."""
    assert settled(Settings(numeric="auto")).numeric == "off"
    with pytest.raises(Configuration):
        settled(Settings(numeric="on"))


def test_auto_is_on_where_torch_is_installed() -> None:
    """What is off stays off."""
    assert settled(Settings(numeric="auto")).numeric == "on"
    assert settled(Settings(numeric="off")).numeric == "off"


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,2", 2), ("GPU-1f,GPU-2a", 2)])
def test_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    """CUDA_VISIBLE_DEVICES decides without torch."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count
