"""Named credentials: found by name and kind, read again when they change, and never shown."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from tests.helpers.sources import rejection, write_credentials

from lora_registry.errors import Configuration
from lora_workers.credentials import Credentials, FsspecCredential, HubCredential, S3Credential

SECRET = "a-secret-that-nobody-may-see"
NAMED = {
    "default-hub": {"kind": "hub", "token": SECRET},
    "team-a": {"kind": "s3", "access_key_id": "key", "secret_access_key": SECRET, "region": "eu-west-1"},
    "team-b": {"kind": "fsspec", "options": {"account_key": SECRET}},
}


def test_credential_is_found_by_name_and_kind(tmp_path: Path) -> None:
    """The default is used where none is named; nothing is found where there is neither."""
    credentials = Credentials(write_credentials(tmp_path, NAMED))
    hub = credentials.get("", HubCredential, default="default-hub")
    assert hub is not None
    assert hub.token is not None
    assert hub.token.get_secret_value() == SECRET
    named = credentials.get("team-a", S3Credential, default="default-s3")
    assert named is not None
    assert named.region == "eu-west-1"
    assert credentials.get("", S3Credential, default="default-s3") is None
    assert Credentials(None).get("", S3Credential, default="default-s3") is None


@pytest.mark.parametrize("name", ["team-c", "team-b", "default-hub"])
def test_unknown_name_and_other_kind_are_refused(tmp_path: Path, name: str) -> None:
    """A name that is not there, and one of another kind of source, are the same to whoever asks."""
    credentials = Credentials(write_credentials(tmp_path, NAMED))
    finding = rejection(lambda: credentials.get(name, S3Credential, default="default-s3"))
    assert (finding.code, finding.subject) == ("CREDENTIAL_UNKNOWN", name)


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602])
def test_file_that_everybody_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Before anything of it is used."""
    with pytest.raises(Configuration, match="chmod o-rwx"):
        Credentials(write_credentials(tmp_path, NAMED, mode=mode))


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    """Keys are rotated without a restart."""
    credentials = Credentials(write_credentials(tmp_path, NAMED))
    write_credentials(tmp_path, {"team-c": {"kind": "hub", "token": "new-token-of-the-team"}})
    assert credentials.get("team-c", HubCredential, default="") is not None


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f'["{SECRET}"]',
        f'{{"a": "{SECRET}"}}',
        f'{{"a": {{"kind": "{SECRET}"}}}}',
        f'{{"a": {{"kind": "hub", "token": ["{SECRET}"]}}}}',
        f'{{"a": {{"kind": "hub", "secret": "{SECRET}"}}}}',
        f'{{"a": {{"kind": "hub", "token": "{SECRET}…"}}}}',
        f'{{"a": {{"kind": "mlflow", "token": "{SECRET}…"}}}}',
        f'{{"a": {{"kind": "hub", "token": "{SECRET}\\n{SECRET}"}}}}',
        f'{{"a": {{"kind": "s3", "anonymous": "{SECRET}"}}}}',
        f'{{"a": {{"kind": "fsspec", "options": {{"x": {{"y": "{SECRET}"}}}}}}}}',
    ],
)
def test_illegal_file_is_refused_without_a_word_of_it(tmp_path: Path, text: str) -> None:
    """The message names the field; whatever was written there may be a secret."""
    path = tmp_path / "credentials.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Configuration) as refused:
        Credentials(path)
    assert "CREDENTIALS_FILE" in str(refused.value)
    chain: BaseException | None = refused.value
    while chain is not None:
        assert SECRET not in f"{chain}{chain!r}"
        chain = chain.__cause__


def test_token_is_what_a_header_takes(tmp_path: Path) -> None:
    """HTTP would quote what it refuses; the line break at the end of what was pasted is no part of it."""
    credentials = Credentials(write_credentials(tmp_path, {"default-hub": {"kind": "hub", "token": f" {SECRET}\n"}}))
    found = credentials.get("", HubCredential, default="default-hub")
    assert found is not None
    assert found.token is not None
    assert found.token.get_secret_value() == SECRET


def test_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    """A worker without the file that it was told of does not start."""
    with pytest.raises(Configuration, match="No such file"):
        Credentials(tmp_path / "none.json")


def test_secrets_are_not_in_the_text_of_a_credential(tmp_path: Path) -> None:
    """Neither printed nor dumped as JSON."""
    credentials = Credentials(write_credentials(tmp_path, NAMED))
    for name, kind in (("default-hub", HubCredential), ("team-a", S3Credential), ("team-b", FsspecCredential)):
        found = credentials.get(name, kind, default="")
        assert found is not None
        assert SECRET not in f"{found} {found!r} {found.model_dump_json()} {vars(credentials)}"
    refused = rejection(lambda: credentials.get("x", S3Credential, default=""))
    assert SECRET.encode() not in pickle.dumps(refused)
