"""Tiny runs of every stage, made once, and the bundle of them; scenes made by hand."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from models.autoencoder import RPiAEConfig
from models.bridge import BridgeConfig
from models.decoder import PixelDecoderConfig
from models.encoder import SmallViTConfig
from models.text_denoiser import TextDenoiserConfig
from training import bridge, decoder, latents, pivot, pretrain
from training.bundling import BundleConfig, make_bundle
from training.config import (
    AutoencoderConfig,
    DiffusionConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
)
from training.judge import Judge
from training.run import Run
from training.stickers import SHAPES, Background, Item, Scene

MODEL = RPiAEConfig(
    encoder=SmallViTConfig(width=32, depth=1, num_heads=2),
    bridge=BridgeConfig(
        token_width=32, latent_width=8, num_heads=2, encoder_depth=1, decoder_depth=1
    ),
    decoder=PixelDecoderConfig(token_width=32, width=32, depth=1, num_heads=2),
)
# checkpoint_every_s=0 saves after every step, so that a run can be stopped after any of them.
_OPTIM = OptimConfig(lr=1e-3, warmup_steps=1)
_PIVOT = AutoencoderConfig(
    name="tiny-pivot",
    stage="pivot",
    after="tiny-pretrain",
    steps=4,
    batch_size=2,
    optim=_OPTIM,
    model=MODEL,
    checkpoint_every_s=0,
)
TINY_STAGES: tuple[RunConfig, ...] = (
    PretrainConfig(
        name="tiny-pretrain",
        steps=4,
        batch_size=2,
        optim=_OPTIM,
        model=MODEL,
        num_components=16,
        checkpoint_every_s=0,
    ),
    _PIVOT,
    replace(_PIVOT, name="tiny-bridge", stage="bridge", after="tiny-pivot"),
    replace(_PIVOT, name="tiny-decoder", stage="decoder", after="tiny-bridge", refit_decoder=True),
    DiffusionConfig(
        name="tiny-diffusion",
        after="tiny-bridge",
        steps=4,
        batch_size=8,
        optim=_OPTIM,
        model=MODEL,
        denoiser=TextDenoiserConfig(
            latent_channels=8,
            width=32,
            depth=1,
            num_heads=2,
            text_width=32,
            vocabulary_size=384,
        ),
        pool_scenes=16,
        pool_edits=16,
        checkpoint_every_s=0,
    ),
)

StageRunner = Callable[[RunConfig, Path], None]


@pytest.fixture(scope="session")
def run_stage() -> Iterator[StageRunner]:
    """Runs a stage in a root; initialisations look at few images, shards are small."""

    def run(config: RunConfig, root: Path) -> None:
        importlib.import_module(f"training.{config.stage}").main(config, Run(root, config))

    with pytest.MonkeyPatch.context() as patch:
        for stage in (pretrain, pivot, bridge, decoder):
            patch.setattr(stage, "INIT_IMAGES", 16)
        patch.setattr(latents, "SHARD_SIZE", 16)
        yield run


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory, run_stage: StageRunner) -> Path:
    """A folder with a finished run of every stage: read it, do not write into it."""
    root = tmp_path_factory.mktemp("runs")
    for config in TINY_STAGES:
        run_stage(config, root)
    return root


def tiny_bundle_config(directory: Path) -> BundleConfig:
    return BundleConfig(
        name="tiny-bundle",
        bundle="tiny",
        directory=str(directory),
        diffusion="tiny-diffusion",
        decoder="tiny-decoder",
        default_steps=2,
        guidance_scale=2.0,
    )


@pytest.fixture
def tiny_stickers(tmp_path: Path, tiny_runs: Path) -> Path:
    """A bundle of the tiny runs, for the test alone."""
    directory = tmp_path / "tiny"
    make_bundle(tiny_bundle_config(directory), tiny_runs)
    return directory


@pytest.fixture(scope="session")
def judge() -> Judge:
    """A judge of all shapes."""
    return Judge(SHAPES)


def shape(kind: str, color: str, center: tuple[float, float], position: str) -> Item:
    return Item(
        kind=kind,
        color=color,
        size="large",
        position=position,
        center=center,
        extent=56,
        angle=0.0,
    )


def scene_of(*items: Item, background: str = "white") -> Scene:
    ground = Background(style="plain", colors=(background,), scene=None)
    return Scene(background=ground, items=items, seed=0)
