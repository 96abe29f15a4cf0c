"""What lies in deploy/: it starts everything, with commands, settings and users that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lora_registry.settings import Settings
from lora_registry.stages import ALWAYS
from lora_workers.cli.app import app
from lora_workers.cli.running import _parse_stages
from lora_workers.node.options import NodeOptions

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes"
USERS = (DEPLOY / "redis" / "users.acl").read_text()
TEXTS = sorted(path for path in DEPLOY.rglob("*") if path.is_file())


def services() -> dict[str, dict[str, Any]]:
    """The services of the compose file, anchors resolved."""
    parsed: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return parsed


def our_services() -> dict[str, dict[str, Any]]:
    """Those that run our own image."""
    return {name: each for name, each in services().items() if each["image"] == "lora-registry"}


def parse_command(line: str) -> tuple[str, dict[str, Any]]:
    """The command that a command line would run, and its parameters; nothing is run."""
    rest = shlex.split(line)
    command: Any = typer.main.get_command(app)
    name = ""
    while commands := getattr(command, "commands", None):
        name = rest.pop(0)
        command = commands[name]
    return name, command.make_context(name, rest).params


@pytest.mark.parametrize("name", our_services())
def test_command_of_each_service_is_one_of_ours(name: str) -> None:
    """A container that the file starts does not end with a usage error."""
    command, _ = parse_command(our_services()[name]["command"])
    assert command in {"dispatcher", "worker", "gateway", "node", "resync", "gc"}


def test_a_command_that_is_wrong_would_be_noticed() -> None:
    """The check above can fail: an option that does not exist does."""
    with pytest.raises(Exception, match="No such option: --queue"):
        parse_command("worker --queue allocate")


def test_there_is_a_dispatcher_and_a_worker_for_every_stage() -> None:
    """Without either, registrations would stop somewhere."""
    parsed = [parse_command(each["command"]) for each in our_services().values()]
    assert [command for command, _ in parsed].count("dispatcher") >= 1
    worked_on = [stage for command, given in parsed if command == "worker" for stage in _parse_stages(given["queues"])]
    assert sorted(worked_on) == sorted(ALWAYS)


@pytest.mark.parametrize("name", our_services())
def test_services_connect_as_a_user_that_exists(name: str) -> None:
    """User and password of each service are in users.acl, and dispatchers and workers have their own."""
    service = our_services()[name]
    url = service["environment"]["LORA_REGISTRY_REDIS_URL"]
    user, password = re.fullmatch(r"redis://(\w+):([\w-]+)@valkey:6379/0", url).groups()  # type: ignore[union-attr]
    command, _ = parse_command(service["command"])
    assert user == {"resync": "gateway", "gc": "operator"}.get(command, command)
    assert f"user {user} on >{password} " in USERS


def test_workers_see_the_sources_and_share_the_artifacts() -> None:
    """Every worker mounts the artifact store and, read-only, what it takes adapters from."""
    for name in ALWAYS:
        service = our_services()[name]
        targets = {volume.split("}")[-1].split(":", 1)[1] for volume in service["volumes"]}
        environment = service["environment"]
        assert f"{environment['LORA_REGISTRY_SOURCE_ROOTS']}:ro" in targets
        assert environment["LORA_REGISTRY_ARTIFACT_STORE"] in targets


def test_the_image_holds_what_the_workers_need() -> None:
    """A validate worker refuses to start without torch, so the image installs it (or the setting would be off)."""
    installed = re.search(r"'\.\[([a-z,]+)\]'", (DEPLOY / "compose" / "Dockerfile").read_text())
    assert installed is not None
    assert {"cli", "workers", "numeric", "patterns"} <= set(installed[1].split(","))
    assert Settings.model_fields["numeric"].default == "auto"
    assert "LORA_REGISTRY_NUMERIC" not in our_services()["validate"]["environment"]


def test_server_keeps_what_it_acknowledged_and_evicts_nothing() -> None:
    """The file starts the server with persistence, without eviction, and with our users."""
    command = services()["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    mounted = [volume for volume in services()["valkey"]["volumes"] if f":{options['--aclfile']}" in volume]
    assert (COMPOSE.parent / mounted[0].split(":")[0]).resolve() == DEPLOY / "redis" / "users.acl"


def manifests(*names: str) -> list[dict[str, Any]]:
    """The Kubernetes objects of these files; of those that kustomization.yaml names, if none is given."""
    files = names or yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return [each for name in files for each in yaml.safe_load_all((KUBERNETES / name).read_text())]


def pod_of(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The pod that an object makes; None if it makes none."""
    spec = manifest.get("spec", {})
    template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
    return template["spec"] if template else None


PODS = {
    each["metadata"]["name"]: pod
    for each in [*manifests(), *manifests("vllm-node.yaml")]
    if (pod := pod_of(each)) is not None
}
OURS = {
    name: container
    for name, pod in PODS.items()
    for container in pod["containers"]
    if container["image"] == "lora-registry"
}


def secret_of(container: dict[str, Any], variable: str) -> str:
    """The key of the secret that a variable of the container comes from."""
    found = next(each for each in container["env"] if each["name"] == variable)
    key: str = found["valueFrom"]["secretKeyRef"]["key"]
    return key


@pytest.mark.parametrize("name", OURS)
def test_containers_on_kubernetes_run_a_command_of_ours_as_its_own_user(name: str) -> None:
    """No container ends with a usage error or a refused user, and none has the operator's rights but the collector."""
    command, _ = parse_command(shlex.join(OURS[name]["args"]))
    user = secret_of(OURS[name], "LORA_REGISTRY_REDIS_URL")
    assert user == {"gc": "operator"}.get(command, command)
    assert f"user {user} on " in USERS


def test_kubernetes_runs_a_worker_for_every_stage_and_dispatchers() -> None:
    """Without either, registrations would stop somewhere."""
    parsed = [parse_command(shlex.join(each["args"])) for each in OURS.values()]
    assert [command for command, _ in parsed].count("dispatcher") == 1
    worked_on = [stage for command, given in parsed if command == "worker" for stage in _parse_stages(given["queues"])]
    assert sorted(worked_on) == sorted(ALWAYS)


@pytest.mark.parametrize("name", PODS)
def test_pods_mount_what_they_name_and_are_not_told_of_services(name: str) -> None:
    """A container mounts only volumes of its pod, and Kubernetes does not add LORA_REGISTRY_… of its own."""
    pod = PODS[name]
    volumes = {each["name"] for each in pod.get("volumes", ())} | {"data"}  # Valkey's own claim
    mounted = {mount["name"] for each in pod["containers"] for mount in each.get("volumeMounts", ())}
    assert mounted <= volumes
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False


def test_our_containers_on_kubernetes_have_no_more_rights_than_they_need() -> None:
    """Everything of ours runs without root, without capabilities and on a file system that it cannot change."""
    for name, container in OURS.items():
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {**PODS[name]["securityContext"], **container["securityContext"]}["runAsNonRoot"] is True


def test_settings_on_kubernetes_are_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration that all of them share is taken as it is."""
    (shared,) = [each["data"] for each in manifests("settings.yaml")]
    for variable, value in shared.items():
        monkeypatch.setenv(variable, value)
    assert Settings().artifact_store == "s3://lora-artifacts/v1"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    """A variable that nobody reads would be a setting that silently does nothing."""
    named = set(re.findall(r"LORA_REGISTRY_([A-Z_]+[A-Z])", path.read_text()))
    of_nodes = {f"NODE_{field.upper()}" for field in NodeOptions.model_fields}
    assert named <= {field.upper() for field in Settings.model_fields} | of_nodes


def test_every_option_of_a_node_is_in_its_page() -> None:
    """The table of deploy/docs/nodes.md names each variable, and each flag where there is one."""
    page = (DEPLOY / "docs" / "nodes.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `LORA_REGISTRY_NODE_")]
    named = [row.split("`")[1].removeprefix("LORA_REGISTRY_NODE_") for row in rows]
    assert sorted(named) == sorted(field.upper() for field in NodeOptions.model_fields)
    flags = {flag for row in rows for flag in re.findall(r"--[a-z-]+", row.split("|")[2])}
    known = {option for param in node_command().params for option in (*param.opts, *param.secondary_opts)}
    assert flags <= known
    assert known - flags <= {"--log-level", "--help", "-h"}


def node_command() -> Any:
    """`lora-registry node` as typer knows it."""
    commands: Any = typer.main.get_command(app)
    return commands.commands["node"]


@pytest.mark.parametrize("path", sorted((DEPLOY / "env").glob("*.example")), ids=lambda path: path.name)
def test_environment_examples_are_legal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operator copies is taken as it is, under a user that exists."""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            monkeypatch.setenv(*line.split("=", 1))
    settings = Settings()
    user, password = re.fullmatch(r"redis://(\w+):([\w-]+)@.*", settings.redis_url).groups()  # type: ignore[union-attr]
    assert path.name == f"{user}.env.example"
    assert f"user {user} on >{password} " in USERS


def test_every_user_is_documented() -> None:
    """The table of deploy/redis/README.md has a line for each user of the file, and for no other."""
    users = re.findall(r"^user (\w+) on ", USERS, flags=re.MULTILINE)
    table = re.findall(r"^\| (\w+) \|", (DEPLOY / "redis" / "README.md").read_text(), flags=re.MULTILINE)
    assert table == ["user", *users]


def test_links_in_deploy_lead_somewhere() -> None:
    """A relative link in a document of deploy/ names a file that is there."""
    for path in DEPLOY.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert "://" in target or (path.parent / target).exists(), f"{path.name}: {target}"
