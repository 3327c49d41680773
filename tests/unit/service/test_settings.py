"""Settings come from RPIAE_* variables; what cannot be used names its variable."""

import os
from pathlib import Path

import pytest

from service.api.app import create_app
from service.api_keys import hash_api_key
from service.settings import Settings, SettingsError, load_settings
from service.supervisor import serve


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("RPIAE_"):
            monkeypatch.delenv(name)


def test_every_setting_is_documented() -> None:
    undocumented = [name for name, field in Settings.model_fields.items() if not field.description]
    assert undocumented == []


def test_nothing_has_to_be_set() -> None:
    settings = load_settings()
    assert settings.redis_url is None
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.bundle.parts[-2:] == ("bundles", "stickers")


def test_variables_are_read_and_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPIAE_PORT", "9000")
    monkeypatch.setenv("RPIAE_REDIS_URL", "unix:///run/redis.sock")
    monkeypatch.setenv("RPIAE_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("RPIAE_MAX_ROWS", "")  # set but empty is not set
    monkeypatch.setenv("RPIAE_LOG_PROMPTS", "true")

    settings = load_settings(workers=2, bundle=Path("other"), host=None)

    assert settings.port == 9000
    assert settings.redis_url == "unix:///run/redis.sock"
    assert settings.log_level == "warning"
    assert settings.max_rows is None
    assert settings.log_prompts
    assert (settings.workers, settings.bundle, settings.host) == (2, Path("other"), "127.0.0.1")
    assert load_settings(port=1).port == 1


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("RPIAE_PORT", "tcp://10.0.0.1:80", "integer"),
        ("RPIAE_PORT", "70000", "65535"),
        ("RPIAE_WORKERS", "0", "1"),
        ("RPIAE_REDIS_URL", "localhost:6379", "redis://"),
        ("RPIAE_LEASE_S", "-1", "greater"),
        ("RPIAE_PUBLIC_URL", "pictures.example", "https://"),
        ("RPIAE_PUBLIC_URL", "https://", "a host"),
        ("RPIAE_PUBLIC_URL", "https://pictures.example/?a=b", "nothing after"),
        ("RPIAE_QUEUE_NAME", "a{b}", "pattern"),
        ("RPIAE_LOG_LEVEL", "loud", "'debug'"),
        ("RPIAE_BACKEND", "abacus", "'torch'"),
        ("RPIAE_API_KEYS", "short", "5 characters"),
        ("RPIAE_API_KEYS", "sha256:12", "64"),
        ("RPIAE_API_KEYS_FILE", "/nowhere/keys", "cannot be read"),
        ("RPIAE_API_KEYS_FILE", os.devnull, "holds no keys"),
        ("RPIAE_RATE_LIMIT", "many", "60/minute;5/second"),
        ("RPIAE_RATE_LIMIT", "0/minute", "60/minute;5/second"),
        ("RPIAE_CORS_ORIGINS", "example.com", "https://example.com"),
        ("RPIAE_TRUSTED_PROXIES", "10.0.0.0/8,proxy", "'proxy' does not appear to be"),
        ("RPIAE_TRUSTED_PROXIES", "10.0.0.1/8", "has host bits set"),
        ("RPIAE_CORS_ORIGINS", "https://example.com/page", "is not an origin"),
    ],
)
def test_an_unusable_value_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable) as refused:
        load_settings()
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_all_unusable_values_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPIAE_PORT", "x")
    monkeypatch.setenv("RPIAE_WORKERS", "y")
    with pytest.raises(SettingsError, match=r"RPIAE_PORT: .*; RPIAE_WORKERS: "):
        load_settings()


def test_keys_are_held_as_digests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = hash_api_key("second-key-of-ours")
    monkeypatch.setenv("RPIAE_API_KEYS", f" first-key-of-ours, sha256:{hashed} ,")
    settings = load_settings(host="0.0.0.0")
    assert settings.api_keys == (hash_api_key("first-key-of-ours"), hashed)
    assert "first-key" not in repr(settings)


def test_keys_of_a_file_are_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\n  second-key-of-ours \n")
    monkeypatch.setenv("RPIAE_API_KEYS", "first-key-of-ours")
    monkeypatch.setenv("RPIAE_API_KEYS_FILE", str(file))
    expected = [hash_api_key(f"{place}-key-of-ours") for place in ("first", "second")]
    assert list(load_settings(host="0.0.0.0").api_keys) == expected


def test_a_key_never_shows_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPIAE_API_KEYS", "hush")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    load_settings(host=host).check_exposure()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway.example"])
def test_an_open_address_needs_keys_or_an_explicit_wish(host: str) -> None:
    settings = load_settings(host=host)  # enough for a worker, which shows nothing but metrics
    with pytest.raises(SettingsError, match="RPIAE_ALLOW_ANONYMOUS"):
        settings.check_exposure()
    with pytest.raises(SettingsError, match="RPIAE_ALLOW_ANONYMOUS"):
        create_app(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"}))
    with pytest.raises(SettingsError, match="RPIAE_ALLOW_ANONYMOUS"):
        serve(settings, lambda _address: None)
    load_settings(host=host, allow_anonymous=True).check_exposure()
    load_settings(host=host, api_keys="a-key-of-some-length").check_exposure()


def test_a_public_address_ends_without_a_slash() -> None:
    assert load_settings(public_url="https://a.example/b/").public_url == "https://a.example/b"
