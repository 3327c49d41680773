"""Named runs: `rpiae train <name>` runs or resumes one; `after` says what it starts from."""

from dataclasses import replace

from models.text_denoiser import TextDenoiserConfig
from training.config import (
    AutoencoderConfig,
    DiffusionConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
)

_PIVOT = AutoencoderConfig(
    name="stickers-pivot",
    stage="pivot",
    after="stickers-pretrain",
    steps=500,
    batch_size=16,
    optim=OptimConfig(lr=8e-4),
)

_STICKERS: tuple[RunConfig, ...] = (
    PretrainConfig(
        name="stickers-pretrain",
        steps=1500,
        batch_size=16,
        optim=OptimConfig(lr=1.2e-3),
    ),
    _PIVOT,
    replace(
        _PIVOT,
        name="stickers-bridge",
        stage="bridge",
        after="stickers-pivot",
        steps=800,
        optim=OptimConfig(lr=1e-3),
    ),
    replace(
        _PIVOT,
        name="stickers-decoder",
        stage="decoder",
        after="stickers-bridge",
        steps=2500,
        optim=OptimConfig(lr=8e-4, decay_from=0.3),
    ),
    DiffusionConfig(
        name="stickers-diffusion",
        after="stickers-bridge",
        steps=20000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, warmup_steps=100, decay_from=0.6),
        denoiser=TextDenoiserConfig(vocabulary_size=384),
    ),
)

PRESETS: dict[str, RunConfig] = {config.name: config for config in _STICKERS}
