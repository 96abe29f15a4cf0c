"""How fsspec is told about the artifact store and the inbox: by credentials of those names in the credentials file."""

from __future__ import annotations

from typing import Any, Final

from lora_registry.errors import Configuration, Rejected
from lora_registry.settings import Settings
from lora_workers.credentials import Credentials, FsspecCredential, S3Credential

ARTIFACT_STORE: Final = "artifact-store"
ADAPTER_INBOX: Final = "adapter-inbox"
_S3 = ("s3", "s3a")


def options_for(url: str, settings: Settings, *, name: str) -> dict[str, Any]:
    """Options of the file system that opens `url`; none if no credential is called `name`.

    What is not said here, fsspec takes from its own configuration and the cloud's library from its environment.

    Raises:
        Configuration: the credentials file is not legal, or the credential is for another scheme.
    """
    credentials = Credentials(settings.credentials_file)
    try:
        if url.partition("://")[0] in _S3:
            keys = credentials.get("", S3Credential, default=name)
            return _s3_options(keys) if keys else {}
        found = credentials.get("", FsspecCredential, default=name)
    except Rejected as error:
        raise Configuration(f"LORA_REGISTRY_CREDENTIALS_FILE: {name!r} is of another kind than {url!r}") from error
    return {option: value.get_secret_value() for option, value in found.options.items()} if found else {}


def _s3_options(credential: S3Credential) -> dict[str, Any]:
    options: dict[str, Any] = {"anon": credential.anonymous}
    for name, secret in (
        ("key", credential.access_key_id),
        ("secret", credential.secret_access_key),
        ("token", credential.session_token),
    ):
        if secret is not None:
            options[name] = secret.get_secret_value()
    client = {"endpoint_url": credential.endpoint_url, "region_name": credential.region}
    options["client_kwargs"] = {name: value for name, value in client.items() if value}
    return options
