"""A real MLflow server sets an alias, fires its own signed webhook, and a version is published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_registry.hook_deliveries import Delivery, DeliveryVerdict, HookDeliveries
from lora_registry.registrations import Outcome
from tests.helpers import mlflow_server
from tests.helpers.hook_gateway import HookGateway
from tests.helpers.hooks import SECRET, write_hooks
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.registry import BASE
from tests.helpers.servers import start_server
from tests.helpers.stack import Stack, make_settings

HOOKS = {
    "mlflow": {
        "kind": "mlflow",
        "secrets": ["env:HOOK_SECRET"],
        "rules": [{"model": "*", "aliases": ["champion"], "base": BASE, "labels": {"mlflow_version": "{version}"}}],
    }
}


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[MlflowServer]:
    """A real server."""
    mlflow_server.install()
    server = MlflowServer(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        print(server.log())


@pytest.mark.timeout(500)  # it may have to be installed first
def test_an_alias_that_is_set_in_mlflow_is_published(mlflow: MlflowServer, tmp_path: Path) -> None:
    """The server's own webhook, signed by it, leads to the version that the alias means; its test is ignored.

    The alias is moved to a second version and back; what it means is looked up in the registry.
    """
    server = start_server(tmp_path / "valkey")
    settings = make_settings(
        server.url,
        tmp_path,
        hooks_file=write_hooks(tmp_path / "hooks.json", HOOKS),
        hook_quiet_s=0.2,
        mlflow_url=mlflow.url,
        lease_s=10.0,
        stall_timeout_s=60.0,
    )
    stack = Stack(settings, tmp_path)
    gateway = HookGateway(settings, tmp_path / "gateway.log")
    deliveries = HookDeliveries(stack.registry.client, settings)

    def heard(count: int) -> list[Delivery]:
        """The deliveries, oldest first, once there are so many and all that ask for something have an answer."""

        def look() -> list[Delivery] | None:
            found = deliveries.history("mlflow")[::-1]
            is_done = all(each.registrations or each.verdict is DeliveryVerdict.IGNORED for each in found)
            return found if len(found) >= count and is_done else None

        return list(stack.wait_until(look, what=f"{count} deliveries of MLflow", timeout_s=60) or ())

    try:
        stack.dispatchers()
        stack.worker()
        url = str(gateway.client.base_url.join("/v1/webhooks/mlflow"))
        webhook = mlflow.add_webhook(url, SECRET, ("MODEL_VERSION_ALIAS", "CREATED"), ("MODEL_VERSION", "CREATED"))
        first = mlflow.add_version("Support Bot", "s3://nobodys/v1", lora_path=str(stack.adapter()))
        second = mlflow.add_version("Support Bot", "s3://nobodys/v2", lora_path=str(stack.adapter()))
        mlflow.set_alias("Support Bot", "champion", first)
        asked = [each for each in heard(3) if each.registrations]
        assert len(asked) == 1
        [published] = stack.wait_for(asked[0].registrations).values()
        assert (published.outcome, published.served_name) == (Outcome.PUBLISHED, "support-bot.v1")
        assert published.source == "mlflow://Support%20Bot@champion"
        assert stack.registry.version("support-bot").requested_source == published.source
        assert published.labels == {"mlflow_version": first}

        digests = [published.digest]
        for count, version in ((4, second), (5, first)):
            mlflow.set_alias("Support Bot", "champion", version)
            [moved] = stack.wait_for(heard(count)[-1].registrations).values()
            assert moved.outcome is Outcome.PUBLISHED
            digests.append(moved.digest)
        assert digests[0] == digests[2] != digests[1]
        assert stack.registry.version("support-bot").digest == digests[0]

        mlflow.ask("POST", f"webhooks/{webhook}/test", event={"entity": "MODEL_VERSION", "action": "CREATED"})
        [ignored] = heard(6)[5:]
        assert (ignored.verdict, ignored.reason) == (DeliveryVerdict.IGNORED, "This is MLflow's test of the webhook.")
        assert deliveries.refusals("mlflow") == []
    finally:
        stack.close()
        gateway.close()
        server.stop()
