"""Bearer tokens: shown once, kept as a hash, found by their id, compared in constant time."""

from __future__ import annotations

from hmac import compare_digest

import pytest

from lora_registry import tokens as module
from lora_registry.errors import InvalidName
from lora_registry.settings import SECONDS_PER_DAY
from lora_registry.tokens import Scope, Token, find_token, make_token

NOW_S = 1_800_000_000.0


def made(**fields: object) -> tuple[str, Token]:
    """A token and what is kept of it."""
    given = {"scopes": [Scope.PUBLISH], "namespaces": ["team"], "now_s": NOW_S, **fields}
    secret, kept = make_token(**given)  # type: ignore[arg-type]
    return secret.get_secret_value(), kept


def test_a_token_is_found_by_itself_only() -> None:
    """The whole token is needed: another one, a part, a longer one, another case or another id is nobody's."""
    secret, kept = made()
    other, _ = made()
    known = {kept.id: kept}
    assert find_token(secret, known, now_s=NOW_S) == kept
    forged = f"lrt_{kept.id}_{other.rpartition('_')[2][:43]}"
    for wrong in ("", other, forged, secret[:-1], f"{secret}x", secret.upper(), secret.replace("lrt", "xyz"), "ü"):
        assert find_token(wrong, known, now_s=NOW_S) is None


def test_every_comparison_is_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown id costs a hash and a comparison too, so the time does not tell whether it exists."""
    secret, kept = made()
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare_digest(one, other)

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    for presented, known in ((secret, {kept.id: kept}), (secret, {}), ("nonsense", {kept.id: kept})):
        find_token(presented, known, now_s=NOW_S)
    assert [len(other) for _, other in compared] == [64, 64, 64]


def test_only_a_hash_is_kept() -> None:
    """Neither what is stored nor what is printed of it holds the secret; the secret does not print itself."""
    secret, kept = make_token(scopes=[Scope.READ], namespaces=["*"], now_s=NOW_S)
    hidden = secret.get_secret_value().rpartition("_")[2]
    assert hidden not in kept.model_dump_json() + repr(kept) + repr(secret) + str(secret)
    assert kept.sha256 not in repr(kept)


def test_tokens_have_256_random_bits() -> None:
    """That is why one SHA-256 is enough."""
    secret, _ = made()
    assert len(secret.split("_", 2)[2]) == 43  # 256 bits in base64
    assert len({made()[0] for _ in range(100)}) == 100


def test_an_expired_token_is_nobodys() -> None:
    """From the second on in which it ends."""
    secret, kept = made(expires_days=2)
    known = {kept.id: kept}
    assert find_token(secret, known, now_s=NOW_S + 2 * SECONDS_PER_DAY - 1)
    assert find_token(secret, known, now_s=NOW_S + 2 * SECONDS_PER_DAY) is None


def test_scopes_and_namespaces() -> None:
    """`admin` includes the other scopes, `*` every namespace; nothing else includes anything."""
    _, publisher = made()
    _, admin = made(scopes=[Scope.ADMIN], namespaces=["*"])
    assert [publisher.allows(scope) for scope in Scope] == [True, False, False]
    assert [admin.allows(scope) for scope in Scope] == [True, True, True]
    assert [publisher.reaches(name) for name in ("team", "team-b", "*")] == [True, False, False]
    assert admin.reaches("team-b")


def test_namespaces_of_a_token_are_names() -> None:
    """A slip of the operator makes no token."""
    with pytest.raises(InvalidName):
        made(namespaces=["team/.."])
