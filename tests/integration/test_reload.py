"""Bundles are swapped while they serve, with no failed request; real processes throughout."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.manifest import DENOISER_FILE, list_files, read_manifest, write_manifest
from tests.integration.test_serve import DEADLINE_S, address_of, children, wait_until

GENERATE = "/v1/images/generations"
RELOAD = "/v1/admin/reload"
ADMIN = {"authorization": "Bearer an-admin-key"}
PICTURE = {"accept": "image/png"}
REQUEST = {"prompt": "a red circle", "seed": 5, "steps": 6}


@dataclass
class Server:
    """A running `rpiae serve` and what it has logged."""

    process: subprocess.Popen[str]
    url: str
    log_file: Path

    def get(self, path: str, **options: Any) -> Any:
        return httpx.get(self.url + path, timeout=DEADLINE_S, **options).json()

    def picture(self) -> bytes:
        answer = httpx.post(self.url + GENERATE, json=REQUEST, headers=PICTURE, timeout=DEADLINE_S)
        assert answer.status_code == 200, answer.text
        return answer.content

    def reload(self, bundle: Path | None = None) -> httpx.Response:
        body = None if bundle is None else {"bundle": str(bundle)}
        return httpx.post(self.url + RELOAD, json=body, headers=ADMIN, timeout=DEADLINE_S)

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = self.log_file.read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]


@contextmanager
def serving(bundle: Path, folder: Path, **settings: Any) -> Iterator[Server]:
    names = {name: text for name, text in os.environ.items() if name != "RPIAE_REDIS_URL"}
    settings = {"lease_s": 1, "threads": 1, "drain_timeout_s": 20, **settings}
    environment = names | {f"RPIAE_{name.upper()}": str(text) for name, text in settings.items()}
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--bundle", str(bundle)]
    log_file = folder / "log"
    with (
        log_file.open("w") as log,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            yield Server(process, address_of(process), log_file)
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


def with_other_weights(bundle: Path, directory: Path, name: str) -> Path:
    """A bundle of the same sizes whose denoiser draws something else."""
    shutil.copytree(bundle, directory)
    weights = load_file(directory / DENOISER_FILE)
    generator = torch.Generator().manual_seed(1)
    for tensor in weights.values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    save_file(weights, directory / DENOISER_FILE)
    manifest = read_manifest(directory)
    files = list_files(directory, [file.path for file in manifest.files])
    write_manifest(directory, manifest.model_copy(update={"name": name, "files": files}))
    return directory


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def same(ours: bytes, theirs: bytes) -> bool:
    """Whether two files show the same picture; in another batch sums may round otherwise."""
    with Image.open(io.BytesIO(ours)) as first, Image.open(io.BytesIO(theirs)) as second:
        return bool(np.abs(np.asarray(first, int) - np.asarray(second, int)).max() <= 1)


@dataclass
class Clients:
    """Ask for the same picture again and again until they are told to stop."""

    server: Server
    statuses: list[int] = field(default_factory=list)
    pictures: set[bytes] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=DEADLINE_S, headers=PICTURE) as client:
            while not self.stopping.is_set():
                answer = client.post(GENERATE, json=REQUEST)
                self.statuses.append(answer.status_code)
                self.pictures.add(answer.content)


@pytest.mark.timeout(180)
def test_bundles_are_swapped_and_no_request_fails(tiny_bundle: Path, tmp_path: Path) -> None:
    other = with_other_weights(tiny_bundle, tmp_path / "other", "other")
    with serving(tiny_bundle, tmp_path, admin_keys="an-admin-key", workers=2) as server:
        before = server.picture()
        clients = Clients(server)
        threads = [threading.Thread(target=clients.run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number, bundle in enumerate((other, tiny_bundle, other, None, other), 1):
            answer = server.reload(bundle)
            assert answer.status_code == 200, answer.text
            status = answer.json()
            assert (status["number"], status["state"]) == (number, "done")
            assert {each["model"] for each in status["workers"]} == {
                "tiny" if bundle == tiny_bundle else "other"
            }
        clients.stopping.set()
        for thread in threads:
            thread.join()
        assert set(clients.statuses) == {200}
        after = server.picture()
        assert not same(before, after)
        for picture in clients.pictures:
            assert same(picture, before) or same(picture, after)
        wait_until(lambda: server.get("/v1/models")["data"][0]["id"] == "other")
        assert server.get("/readyz")["workers"] == 2
        assert {each["backend"] for each in server.get(RELOAD, headers=ADMIN)["workers"]} == {
            "torch"
        }

        flip_a_byte(shutil.copytree(tiny_bundle, tmp_path / "damaged") / DENOISER_FILE)
        refused = server.reload(tmp_path / "damaged")
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "reload_refused"
        assert "denoiser.safetensors differs from its SHA-256" in refused.text
        assert {line["number"] for line in server.logged("bundle is loaded")} == {1, 2, 3, 4, 5, 6}
        assert len(server.logged("bundle refused")) == 2
        assert 'rpiae_reloads_total{outcome="refused"' in httpx.get(f"{server.url}/metrics").text
        assert server.get(RELOAD, headers=ADMIN)["state"] == "refused"
        assert same(server.picture(), after)

        for worker in children(server.process.pid, "worker"):  # who comes back has the same model
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: server.get("/readyz")["status"] != "ready")
        wait_until(lambda: server.get("/readyz")["status"] == "ready")
        assert same(server.picture(), after)
        assert server.get("/v1/models")["data"][0]["id"] == "other"


def test_a_bundle_of_other_sizes_is_refused(
    tiny_bundle: Path, fake_bundle: Path, tmp_path: Path
) -> None:
    with serving(tiny_bundle, tmp_path, admin_keys="an-admin-key") as server:
        refused = server.reload(fake_bundle)
        assert refused.status_code == 409
        assert "its image_size is (16, 16), not (32, 32)" in refused.text
        for headers in ({}, {"authorization": "Bearer another-key"}):
            assert httpx.post(server.url + RELOAD, headers=headers).status_code == 401
        wrong = httpx.post(server.url + RELOAD, json={"bundle": "relative"}, headers=ADMIN)
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "bundle")
        at_once = httpx.post(server.url + RELOAD, headers={**ADMIN, "prefer": "respond-async"})
        assert at_once.status_code == 202
        wait_until(lambda: server.get(RELOAD, headers=ADMIN)["state"] == "done")


@pytest.mark.slow
@pytest.mark.timeout(300)  # the fixture exports a bundle
def test_a_damaged_export_is_told_everywhere_and_mended_by_a_hangup(
    exported_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(exported_bundle, tmp_path / "tiny")
    graph = bundle / "onnx" / "fp32" / "decode.onnx"
    flip_a_byte(graph)
    with serving(bundle, tmp_path) as server:
        card = server.get("/v1/models/tiny")
        assert card["backends"] == ["torch"]
        reason = card["unusable_backends"]["onnxruntime"]
        assert "onnx/fp32/decode.onnx differs from its SHA-256" in reason
        assert "`rpiae export tiny --onnx --precision fp32` makes it anew" in reason
        (line,) = server.logged("a runtime cannot be used")
        assert (line["level"], line["backend"]) == ("warning", "onnxruntime")
        assert f"rpiae export {bundle}" in line["reason"]
        metric = 'rpiae_unusable_backend_workers{backend="onnxruntime"'
        assert metric in httpx.get(f"{server.url}/metrics").text
        server.picture()
        assert httpx.get(server.url + RELOAD).status_code == 404  # without admin keys

        shutil.copy(exported_bundle / "onnx" / "fp32" / "decode.onnx", graph)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not server.get("/v1/models/tiny")["unusable_backends"])
        assert metric not in httpx.get(f"{server.url}/metrics").text
        (line,) = server.logged("the fastest runtime is used")
        assert line["seconds"].keys() == {"torch", "onnxruntime"}
        assert server.get("/v1/models/tiny")["backends"] == [line["backend"]]

        foreign = with_other_weights(exported_bundle, tmp_path / "foreign", "tiny")
        for file in ("manifest.json", DENOISER_FILE):
            shutil.copy(foreign / file, bundle / file)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.get("/v1/models/tiny")["unusable_backends"])
        card = server.get("/v1/models/tiny")
        assert "was made from other weights" in card["unusable_backends"]["onnxruntime"]
