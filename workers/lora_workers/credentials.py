"""Named credentials of sources: events and the ledger carry names, this file has the secrets, and only workers read it.

    {"default-hub": {"kind": "hub", "token": "hf_…"},
     "team-a": {"kind": "s3", "access_key_id": "…", "secret_access_key": "…", "endpoint_url": "https://…"},
     "team-b": {"kind": "fsspec", "options": {"account_name": "…", "account_key": "…"}}}

`default-hub`, `default-s3` and `default-SCHEME` are used where none is named; without one, access is anonymous.
`artifact-store` and `adapter-inbox` are for these two places.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, SecretStr, ValidationError

from lora_registry import source_codes
from lora_registry.errors import Configuration, Rejected
from lora_registry.strict_json import StrictJsonError, load_object

ARTIFACT_STORE: Final = "artifact-store"
ADAPTER_INBOX: Final = "adapter-inbox"


def _check_header(secret: SecretStr) -> SecretStr:
    stripped = secret.get_secret_value().strip()  # a file's last line break is no part of it, and HTTP would quote it
    if not (stripped.isascii() and stripped.isprintable()):
        raise ValueError("it has characters that no HTTP header takes; was an example copied?")
    return SecretStr(stripped)


HeaderText = Annotated[SecretStr, AfterValidator(_check_header)]
"""A token that an HTTP header takes, without the white space around it."""


class _Credential(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class HubCredential(_Credential):
    """A token of a Hub, and where that Hub is, if not where LORA_REGISTRY_HUB_ENDPOINT says."""

    kind: Literal["hub"] = "hub"
    token: HeaderText | None = None
    endpoint: str = ""


class S3Credential(_Credential):
    """Keys of an S3-compatible store; without keys the machine's own role is used, unless it is to be anonymous."""

    kind: Literal["s3"] = "s3"
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    endpoint_url: str = ""
    region: str = ""
    anonymous: bool = False


class FsspecCredential(_Credential):
    """Options of an fsspec file system, by the names that it gives them."""

    kind: Literal["fsspec"] = "fsspec"
    options: dict[str, SecretStr] = {}


class MlflowCredential(_Credential):
    """Who asks an MLflow server: a bearer token, or a user with a password."""

    kind: Literal["mlflow"] = "mlflow"
    token: HeaderText | None = None
    username: str = ""
    password: SecretStr | None = None


Credential = Annotated[HubCredential | S3Credential | FsspecCredential | MlflowCredential, Field(discriminator="kind")]
Kind = TypeVar("Kind", HubCredential, S3Credential, FsspecCredential, MlflowCredential)


class _File(RootModel[dict[str, Credential]]):
    model_config = ConfigDict(hide_input_in_errors=True)


class Credentials:
    """The credentials of one file, read again when it changes.

    Args:
        path: the file; None: there are none.

    Raises:
        Configuration: it cannot be read, everybody may read it, or it is not legal.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._named: dict[str, HubCredential | S3Credential | FsspecCredential | MlflowCredential] = {}
        self._read()

    def get(self, name: str, kind: type[Kind], *, default: str) -> Kind | None:
        """The credential of this name.

        Args:
            name: what the request says; empty: use the default.
            kind: what it must be.
            default: name of the default.

        Returns:
            None if no name is given and there is no default.

        Raises:
            Rejected: there is no credential of this name and kind.
            Configuration: the file was changed for the worse.
        """
        self._read()
        found = self._named.get(name or default)
        if isinstance(found, kind):
            return found
        if not name and found is None:
            return None
        finding = source_codes.CREDENTIAL_UNKNOWN.finding(name or default, expected=kind.__name__)
        raise Rejected(f"{name or default!r}: {finding.message}", findings=(finding,))

    def has(self, name: str) -> bool:
        """Whether there is a credential of this name, of whatever kind.

        Raises:
            Configuration: the file was changed for the worse.
        """
        self._read()
        return name in self._named

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                version = (found.st_ino, found.st_size, found.st_mtime_ns)
                if version == self._version:
                    return
                if found.st_mode & (stat.S_IROTH | stat.S_IWOTH):
                    raise Configuration(f"LORA_REGISTRY_CREDENTIALS_FILE: everybody may read {self._path}: chmod o-rwx")
                self._named = _File.model_validate(load_object(file.read())).root
        except OSError as error:
            raise Configuration(f"LORA_REGISTRY_CREDENTIALS_FILE: {self._path}: {error.strerror}") from error
        except ValidationError as error:
            raise _illegal(self._path, _describe(error)) from None
        except StrictJsonError:
            raise _illegal(self._path, "it is no JSON object") from None
        self._version = version


def _describe(error: ValidationError) -> str:
    """Where it is wrong and in which way; pydantic's own words would repeat some of what stands there."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['type'].replace('_', ' ')}"


def _illegal(path: Path, reason: str) -> Configuration:
    return Configuration(f"LORA_REGISTRY_CREDENTIALS_FILE: {path}: {reason}")
