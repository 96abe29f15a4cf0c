"""Settings: from the environment, flags on top, and an error that names the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_registry.errors import Configuration
from lora_registry.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have settings of their own."""
    for field in Settings.model_fields:
        monkeypatch.delenv(f"LORA_REGISTRY_{field.upper()}", raising=False)


def test_everything_has_a_default() -> None:
    """A registry on this machine needs no settings; local sources are allowed nowhere until roots are named."""
    settings = load_settings()
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.source_roots == ()


def test_deadlines_of_uploads_are_by_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not named keeps its default: local directories none, all others a quarter of an hour."""
    assert [Settings().incomplete_deadline_s(scheme) for scheme in ("file", "s3", "gs")] == [0, 900, 900]
    monkeypatch.setenv("LORA_REGISTRY_INCOMPLETE_DEADLINES_S", "s3=60, *=5")
    assert [load_settings().incomplete_deadline_s(scheme) for scheme in ("file", "s3", "gs")] == [0, 60, 5]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INCOMPLETE_DEADLINES_S", "60"),
        ("INCOMPLETE_DEADLINES_S", "s3=-1"),
        ("INCOMPLETE_DEADLINES_S", "s3=soon"),
        ("INCOMPLETE_DEADLINES_S", "s3=inf"),
        ("ALLOWED_NETWORKS", "10.0.0.1/8"),
        ("ALLOWED_SCHEMES", "file,local"),
    ],
)
def test_settings_of_sources_are_checked(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A typing error does not widen what is allowed."""
    monkeypatch.setenv(f"LORA_REGISTRY_{variable}", value)
    with pytest.raises(Configuration, match=f"^LORA_REGISTRY_{variable}"):
        load_settings()


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting is the variable of its name, with LORA_REGISTRY_ before it."""
    monkeypatch.setenv("LORA_REGISTRY_LEASE_S", "12.5")
    monkeypatch.setenv("LORA_REGISTRY_KEY_PREFIX", "{other}")
    monkeypatch.setenv("LORA_REGISTRY_ARTIFACT_STORE", "/artifacts")
    settings = load_settings()
    assert (settings.lease_s, settings.key_prefix, settings.artifact_directory) == (12.5, "{other}", Path("/artifacts"))


def test_overrides_win_and_none_is_no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that was given beats the environment; one that was not leaves it."""
    monkeypatch.setenv("LORA_REGISTRY_REDIS_URL", "redis://environment:6379/0")
    monkeypatch.setenv("LORA_REGISTRY_MAX_ATTEMPTS", "7")
    settings = load_settings(redis_url="redis://flag:6379/0", max_attempts=None)
    assert (settings.redis_url, settings.max_attempts) == ("redis://flag:6379/0", 7)


def test_unknown_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of a later version stops nothing."""
    monkeypatch.setenv("LORA_REGISTRY_NOT_YET", "1")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("text", "roots"),
    [
        ("/a", (Path("/a"),)),
        ("/a:/b c", (Path("/a"), Path("/b c"))),
        ("/a::/b:", (Path("/a"), Path("/b"))),
        ("", ()),
        (":", ()),
    ],
)
def test_source_roots_are_separated_by_colons(
    monkeypatch: pytest.MonkeyPatch, text: str, roots: tuple[Path, ...]
) -> None:
    """As in PATH; an empty part is no root, least of all the working directory."""
    monkeypatch.setenv("LORA_REGISTRY_SOURCE_ROOTS", text)
    assert load_settings().source_roots == roots
    assert load_settings(source_roots=roots).source_roots == roots


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_s", "0"),
        ("lease_s", "-1"),
        ("lease_s", "soon"),
        ("lease_s", "nan"),
        ("stall_timeout_s", "inf"),
        ("backoff_max_s", ""),
        ("max_attempts", "0"),
        ("max_attempts", "101"),
        ("max_attempts", "1.5"),
        ("log_length", "0"),
        ("id_gap", "0"),
        ("key_prefix", "lora"),
        ("key_prefix", "{}"),
        ("key_prefix", "{a b}"),
        ("key_prefix", "{a}\n"),
        ("key_prefix", "{" + "a" * 33 + "}"),
        ("source_roots", "relative"),
        ("source_roots", "/absolute:./relative"),
    ],
)
def test_illegal_value_is_a_configuration_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """The process fails at its start, and says what to correct; as a flag the value is just as wrong."""
    variable = f"LORA_REGISTRY_{name.upper()}"
    with pytest.raises(Configuration) as wrong:
        load_settings(**{name: value})
    assert wrong.value.message.startswith(f"{variable}: ")
    monkeypatch.setenv(variable, value)
    with pytest.raises(Configuration, match=f"^{variable}: "):
        load_settings()


def test_error_does_not_repeat_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that was put into the wrong variable does not end up in logs."""
    monkeypatch.setenv("LORA_REGISTRY_LEASE_S", "hunter2")
    with pytest.raises(Configuration) as wrong:
        load_settings()
    assert "hunter2" not in wrong.value.message


def test_settings_are_frozen() -> None:
    """What was read at the entry point is what every part of the process sees."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().lease_s = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("redis_url", "broker_url", "celery_url"),
    [
        ("redis://host:6379/0", "", "redis://host:6379/0"),
        ("rediss://user:password@host/1", "", "rediss://user:password@host/1"),
        ("redis://host:6379/0", "redis://broker:6379/2", "redis://broker:6379/2"),
        ("unix:///run/valkey.sock", "", "redis+socket:///run/valkey.sock"),
        ("unix://worker:password@/run/valkey.sock", "", "redis+socket://worker:password@/run/valkey.sock"),
        ("redis://host:6379/0", "unix:///run/broker.sock", "redis+socket:///run/broker.sock"),
        ("redis://unix://odd", "", "redis://unix://odd"),
    ],
)
def test_celery_gets_the_broker_as_it_writes_it(redis_url: str, broker_url: str, celery_url: str) -> None:
    """The registry's server unless another is named; a unix socket under Celery's scheme."""
    assert Settings(redis_url=redis_url, broker_url=broker_url).celery_broker_url == celery_url


def test_passwords_of_servers_are_not_shown() -> None:
    """Settings may end in a log or a traceback."""
    shown = Settings(redis_url="redis://:s3cret@host", broker_url="redis://user:s3cret@host")
    assert "s3cret" not in f"{shown!r} {shown!s}"
