"""The tour: real adapters through the real pipeline, in a temporary folder, with every outcome checked."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from lora_registry.announcements import Change
from lora_registry.client import RegistrationClient
from lora_registry.errors import RegistryError, WaitTimeout
from lora_registry.findings import Finding
from lora_registry.names import AdapterName, Reference
from lora_registry.registrations import Outcome, Registration
from lora_registry.settings import Settings, load_settings
from lora_registry.subscriber import Subscriber
from lora_workers.base_models import read_base_profile
from lora_workers.embedded import EmbeddedValkey
from lora_workers.installation import Installation, Staffing
from lora_workers.numeric_needs import settled

Say = Callable[[str], None]
BASE = "tiny-llama"
_BASES = ("tiny-llama", "wide-llama")
_HUB = "lora-registry"
"""Under this owner the demo's adapters name their bases."""
_OUTCOME_TIMEOUT_S = 60.0
_ANNOUNCEMENT_TIMEOUT_S = 10.0
_FINDINGS_SHOWN = 2
_LOG_LINES_SHOWN = 40


@dataclass(frozen=True)
class Step:
    """One registration of the tour, and how it must end.

    Attributes:
        title: what happens, for the reader.
        name: adapter to register.
        directory: which of the demo's adapters it is.
        expected: outcome that it must have.
        code: finding that a rejection must have.
    """

    title: str
    name: str
    directory: str
    expected: Outcome
    code: str = ""


STEPS = (
    Step("a good adapter", "support-bot", "support-bot", Outcome.PUBLISHED),
    Step("the same bytes again", "support-bot", "support-bot", Outcome.UNCHANGED),
    Step("the same adapter, retrained", "support-bot", "support-bot-retrained", Outcome.PUBLISHED),
    Step("another adapter, on every linear layer", "sql-writer", "sql-writer", Outcome.PUBLISHED),
    Step("one trained on another base", "wrong-base", "wrong-base", Outcome.REJECTED, "SHAPE_MISMATCH"),
    Step("one whose upload broke off", "truncated", "truncated", Outcome.REJECTED, "WEIGHTS_TRUNCATED"),
)


def run_demo(*, say: Say) -> bool:
    """Run the tour and remove everything afterwards.

    Args:
        say: takes each line of the report as it happens.

    Returns:
        Whether every outcome was the expected one.

    Raises:
        Configuration: the server does not start.
    """
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="lora-demo-"))
    try:
        is_as_expected = _tour(folder, say)
    finally:
        _remove(folder)
        say(f"removed {folder}; {time.monotonic() - started:.1f} s in all")
    return is_as_expected


def _tour(folder: Path, say: Say) -> bool:
    write_demo_files(folder / "models")
    server = EmbeddedValkey(folder / "valkey")
    settings = settled(
        load_settings(
            redis_url=server.url, broker_url="", artifact_store=folder / "artifacts", source_roots=(folder / "models",)
        )
    )
    if settings.numeric == "off":
        say("adapters are judged by structure alone: looking at the numbers of the weights takes torch")
    log = folder / "processes.log"
    installation = Installation(settings, server=server, staffing=Staffing(log=log))
    try:
        _start(installation, say)
        mistakes = _register_all(folder / "models", settings, say)
    except RegistryError:
        _show_log(log, say)
        raise
    finally:
        say("stopping the workers, the dispatcher and the server")
        installation.stop()
    if mistakes:
        _show_log(log, say)
    say("UNEXPECTED: " + "; ".join(mistakes) if mistakes else "everything ended as it should")
    return not mistakes


def write_demo_files(directory: Path) -> None:
    """Write the demo's base models and adapters to `directory`, which must not exist yet.

    Raises:
        FileExistsError: it exists.
    """
    with resources.as_file(resources.files("lora_workers") / "demo_data") as packaged:
        shutil.copytree(packaged, directory, ignore=shutil.ignore_patterns("*.py", "__pycache__"))


def _start(installation: Installation, say: Say) -> None:
    say("starting a Valkey server with persistence")
    installation.start_server()
    started = time.monotonic()
    say(f"starting {installation.size} processes: the dispatcher and a worker for each stage")
    installation.start_processes()
    if not installation.is_ready():
        raise WaitTimeout("the workers did not start in time")
    say(f"  ready after {time.monotonic() - started:.1f} s")


def _register_all(models: Path, settings: Settings, say: Say) -> list[str]:
    client = RegistrationClient.from_url(settings.redis_url, key_prefix=settings.key_prefix)
    for base in _BASES:
        # Without the model that transformers would build: these bases are plain, and importing it takes seconds.
        known = (f"{_HUB}/{base}",)
        profile = read_base_profile(base, models / "bases" / base, also_known_as=known, with_model=False)
        client.catalog.bases.add(profile)
        say(f"base model {base}: {profile.architecture}, {len(profile.modules)} modules with a shape")
    listener = _Listener(settings, say)
    results: list[Registration] = []
    mistakes = []
    for number, step in enumerate(STEPS, start=1):
        say(f"{number}. {step.title}: register {step.name} from {step.directory} for {BASE}")
        registration = _register(client, step, models)
        _report(registration, say)
        results.append(registration)
        mistakes += _mistakes(step, registration)
        if registration.outcome is Outcome.PUBLISHED and not listener.hears(registration.served_name):
            mistakes.append(f"{registration.served_name} was not announced")
    return mistakes + _mistakes_of_versions(client, results, say)


def _register(client: RegistrationClient, step: Step, models: Path) -> Registration:
    source = str(models / "adapters" / step.directory)
    registration_id = client.submit(name=step.name, base_model=BASE, source=source)
    return client.wait(registration_id, timeout_s=_OUTCOME_TIMEOUT_S)


def _report(registration: Registration, say: Say) -> None:
    took_ms = sum(registration.timings_ms.values())
    if registration.served_name:
        say(
            f"   {registration.outcome}: {registration.served_name}, lora_int_id {registration.lora_int_id}, "
            f"{registration.digest[:19]}…, in {took_ms:.0f} ms"
        )
        return
    say(f"   {registration.outcome} in {took_ms:.0f} ms; findings: {len(registration.findings)}")
    for finding in registration.findings[:_FINDINGS_SHOWN]:
        _report_finding(finding, say)
    if len(registration.findings) > _FINDINGS_SHOWN:
        say(f"     … and {len(registration.findings) - _FINDINGS_SHOWN} more")


def _report_finding(finding: Finding, say: Say) -> None:
    say(f"     {finding.code} {finding.subject}".rstrip())
    say(f"       {finding.message}")
    if finding.expected or finding.actual:
        say(f"       expected {finding.expected}, found {finding.actual}")
    say(f"       what to do: {finding.remedy}")


def _mistakes(step: Step, registration: Registration) -> list[str]:
    if registration.outcome is not step.expected:
        return [f"{step.title}: {registration.outcome} instead of {step.expected}"]
    if step.code and step.code not in {finding.code for finding in registration.findings}:
        return [f"{step.title}: no finding {step.code}"]
    return []


def _mistakes_of_versions(client: RegistrationClient, results: list[Registration], say: Say) -> list[str]:
    """What is wrong with ids and alias after the first three steps: good, again, retrained."""
    good, again, retrained = results[:3]
    mistakes = []
    if (good.served_name, good.lora_int_id) != (again.served_name, again.lora_int_id):
        mistakes.append("the same bytes got another identity")
    if good.lora_int_id == retrained.lora_int_id or good.served_name == retrained.served_name:
        mistakes.append("other bytes got the same identity")
    current = client.catalog.version(Reference(AdapterName("default", "support-bot")))
    say(f"the alias support-bot points at {current.served_name}, lora_int_id {current.lora_int_id}")
    if current.served_name != retrained.served_name:
        mistakes.append("the alias did not move to the retrained version")
    return mistakes


class _Listener:
    """A serving node's ear: a subscriber that follows the base model while the tour goes on."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self._say = say
        self._heard: set[str] = set()
        self._news = threading.Condition()
        self._subscriber = Subscriber(BASE, url=settings.redis_url, key_prefix=settings.key_prefix)
        self._subscriber.poll()  # from here on it misses nothing
        threading.Thread(target=self._follow, name="subscriber", daemon=True).start()

    def hears(self, served_name: str) -> bool:
        """Wait until the version is announced and, as in all of the tour, its adapter's alias moved to it."""
        with self._news:
            return self._news.wait_for(lambda: served_name in self._heard, timeout=_ANNOUNCEMENT_TIMEOUT_S)

    def _follow(self) -> None:
        for update in self._subscriber.follow():
            for change in update.changes:
                self._say(f"   subscriber, announcement {update.cursor.sequence}: {_in_words(change)}")
                self._remember(change)

    def _remember(self, change: Change) -> None:
        if change.target is None or change.record is None:
            return
        with self._news:
            self._heard.add(change.record.served_name)
            self._news.notify_all()


def _in_words(change: Change) -> str:
    if change.target is not None:
        return f"{change.subject} now means {change.record.served_name if change.record else change.target.version}"
    return f"{change.subject} is published" if change.record else str(change.kind)


def _show_log(log: Path, say: Say) -> None:
    if log.exists():
        for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]:
            say(f"   log: {line}")


def _remove(folder: Path) -> None:
    for artifact in (folder / "artifacts" / "sha256").glob("*"):
        artifact.chmod(0o700)  # artifacts are read-only, so that nobody changes them by mistake
    shutil.rmtree(folder)
