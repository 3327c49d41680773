"""The published checkpoints from import to HTTP: small ones always, full-size ones on request.

Random weights of the published layout, at a small and at the full size, and the authors' own where
they are at hand.
"""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.numpy import load

from benchmarks.serving import own_server
from export.dims import PublishedDims
from models.autoencoder import RPiAE
from models.bundle import load_bundle
from models.manifest import read_manifest
from models.sampler import SamplingOptions, generate_latents
from tests.published_files import write_published_files

PARITY = Path(__file__).parents[1] / "data" / "parity"
FULL_SIZE = "RPIAE_FULL_SIZE"
WEIGHTS = "RPIAE_WEIGHTS"
MAX_BYTES = 8 * 2**30
IMPORT_SHARE = 1.5
TIMEOUT_S = 600


@dataclass(frozen=True)
class Served:
    """A bundle, a server of it, and the most memory that its import took."""

    bundle: Path
    client: httpx.Client
    import_bytes: int
    largest_checkpoint_bytes: int


def import_by_command(files: Path, bundle: Path, *options: str) -> int:
    """Run `rpiae import-published`; the most resident memory it had, in bytes."""
    program = str(Path(sys.executable).with_name("rpiae"))
    command = [program, "import-published", str(files), "-o", str(bundle), *options]
    peak = 0
    with subprocess.Popen(command) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.02)
    assert process.returncode == 0
    return peak


_LONG = (pytest.mark.slow, pytest.mark.timeout(1800))


@pytest.fixture(
    scope="module",
    params=[
        "small",
        pytest.param("full-size", marks=_LONG),
        pytest.param("weights", marks=(*_LONG, pytest.mark.weights)),
    ],
)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    files, options = folder / "files", []
    if request.param == "small":
        write_published_files(files, PublishedDims.read(PARITY / "config.json"))
        options = ["--dims", str(PARITY / "config.json")]
    elif request.param == "full-size":
        if not os.environ.get(FULL_SIZE):
            pytest.skip(f"needs 16 GB of disk and some minutes: set {FULL_SIZE}=1")
        write_published_files(files, PublishedDims())
    else:
        if not os.environ.get(WEIGHTS):
            pytest.skip(f"needs the authors' files: {WEIGHTS} names their folder")
        files = Path(os.environ[WEIGHTS])
    sizes = [path.stat().st_size for path in files.rglob("*.pt")]
    bundle = folder / "published"
    peak = import_by_command(files, bundle, *options)
    with (
        own_server("--bundle", str(bundle)) as url,
        httpx.Client(base_url=url, timeout=TIMEOUT_S) as client,
    ):
        yield Served(bundle, client, peak, max(sizes))


def is_full(served: Served) -> bool:
    return read_manifest(served.bundle).latent_shape == (64, 16, 16)


def class_name(served: Served) -> str:
    return "golden retriever" if is_full(served) else "class 7"


def make_picture(served: Served) -> tuple[np.ndarray, bytes]:
    """Pixels (H, W, 3) at the model's size, and the PNG file."""
    height, width = read_manifest(served.bundle).image_size
    pixels = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return pixels, buffer.getvalue()


def opened(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def test_encode_and_decode_are_the_tokenizers(served: Served) -> None:
    pixels, file = make_picture(served)
    answer = served.client.post(
        "/v1/latents/encode", content=file, headers={"content-type": "image/png"}
    )
    assert answer.status_code == 200, answer.text
    latents = load(answer.content)["latents"]
    tokenizer = RPiAE.from_pretrained(served.bundle)
    assert latents.shape == (1, *tokenizer.latent_shape)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    expected = tokenizer.encode(images).latent_dist.mean.numpy()
    assert np.abs(latents - expected).max() < 1e-4

    painted = served.client.post(
        "/v1/latents/decode",
        content=answer.content,
        headers={"accept": "image/png", "content-type": answer.headers["content-type"]},
    )
    assert painted.status_code == 200, painted.text
    ours = opened(painted.content)
    theirs = tokenizer.decode(torch.from_numpy(latents)).sample[0].clamp(0, 1).permute(1, 2, 0)
    assert ours.shape == pixels.shape
    assert np.abs(ours - (theirs * 255).round().numpy()).max() <= 1


def test_a_class_picture_is_the_offline_samplers(served: Served) -> None:
    """Autoguidance at its default scale, on the published grid."""
    fields = {"prompt": class_name(served), "seed": 3, "steps": 3}
    answer = served.client.post(
        "/v1/images/generations", json=fields, headers={"accept": "image/png"}
    )
    assert answer.status_code == 200, answer.text
    bundle = load_bundle(served.bundle)
    manifest = bundle.manifest
    assert bundle.denoiser is not None
    assert bundle.tokenizer is not None
    options = SamplingOptions(
        num_steps=3,
        shift=manifest.timestep_shift,
        guidance_scale=manifest.default_guidance_scale,
        sampler=manifest.sampler,
    )
    prompts = [class_name(served)]
    latents = generate_latents(
        bundle.denoiser, bundle.tokenizer, prompts, [3], options, guide=bundle.guide
    )
    images = bundle.autoencoder.decode(latents).sample[0].clamp(0, 1).permute(1, 2, 0)
    difference = np.abs(opened(answer.content) - (images * 255).round().numpy())
    assert (difference <= 1).mean() >= 0.999

    unguided = served.client.post(
        "/v1/images/generations",
        json={**fields, "guidance_scale": 1},
        headers={"accept": "image/png"},
    )
    assert np.abs(opened(unguided.content) - opened(answer.content)).max() > 1


def test_an_index_is_a_class_and_a_mistake_is_answered(served: Served) -> None:
    index = {"prompt": "207" if is_full(served) else "7", "seed": 3, "steps": 3}
    name = {**index, "prompt": class_name(served)}
    pictures = [
        served.client.post("/v1/images/generations", json=body, headers={"accept": "image/png"})
        for body in (index, name)
    ]
    assert np.array_equal(*(opened(picture.content) for picture in pictures))
    wrong = served.client.post("/v1/images/generations", json={"prompt": "golden retreiver"})
    assert wrong.status_code == 422
    assert wrong.json()["error"]["param"] == "prompt"
    if is_full(served):
        assert "golden retriever" in wrong.json()["error"]["message"]


def test_memory_stays_in_bounds(served: Served) -> None:
    """At full size: importing within 1.5 checkpoints, the whole service within 8 GiB."""
    if not is_full(served):
        pytest.skip(f"says something at full size only: set {FULL_SIZE}=1")
    assert served.import_bytes <= IMPORT_SHARE * served.largest_checkpoint_bytes
    me = psutil.Process()
    total = sum(child.memory_info().rss for child in me.children(recursive=True))
    assert total <= MAX_BYTES
    print(f"import {served.import_bytes / 2**30:.2f} GiB, service {total / 2**30:.2f} GiB")  # noqa: T201


def test_a_tokenizer_alone_is_served(tmp_path: Path) -> None:
    """It encodes, and says that it draws nothing."""
    bundle = tmp_path / "tokenizer"
    write_published_files(
        tmp_path / "files", PublishedDims.read(PARITY / "config.json"), denoiser=False, guide=False
    )
    import_by_command(tmp_path / "files", bundle, "--dims", str(PARITY / "config.json"))
    with own_server("--bundle", str(bundle)) as url, httpx.Client(base_url=url) as client:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
        encoded = client.post(
            "/v1/latents/encode", content=buffer.getvalue(), headers={"content-type": "image/png"}
        )
        drawn = client.post("/v1/images/generations", json={"prompt": "7"})
    assert load(encoded.content)["latents"].shape == (1, 8, 4, 4)
    assert drawn.status_code == 422
    assert "it has encode, decode" in drawn.json()["error"]["message"]
