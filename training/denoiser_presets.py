"""Named runs of the denoiser: the paper's, and their small counterparts on stickers.

The class-conditional run follows the published configs. Text-to-image and editing have no public
code: layout and data are the paper's as others tell them, steps, batch and learning rate of
text-to-image those of DRoRAE (arXiv 2605.10780), which says that it follows RPiAE, and what is left
is assumed here; training/README.md says which is which. TFLOP/s are assumed too, for the dry run.
"""

from dataclasses import replace

from models.class_denoiser import ClassDenoiserConfig
from models.presets import LIGHTNINGDIT_XL, RPIAE_C64
from models.text_denoiser import TextDenoiserConfig
from training.config import (
    ClassDiffusionConfig,
    ComputeConfig,
    DiffusionConfig,
    OptimConfig,
    RunConfig,
)
from training.data_config import DataConfig

_IMAGENET_IMAGES = 1_281_167
_CLASS_BATCH = 1024
_GPUS = ComputeConfig(device="gpu", precision="bf16", num_gpus=8, gpu_tflops=200)

_CLASS = ClassDiffusionConfig(
    name="rpiae-class",
    after="rpiae-decoder",
    averaged=True,
    data=DataConfig(kind="folder", path="data/imagenet/train", crop="center", num_workers=8),
    compute=replace(_GPUS, micro_batches=2),  # 128 samples at a time would not fit into 80 GB
    checkpoint_every_s=1800,
    model=RPIAE_C64,
    denoiser=LIGHTNINGDIT_XL,
    # 800 epochs: constant for 40, then a straight line to 2e-5 at the end.
    steps=800 * (_IMAGENET_IMAGES // _CLASS_BATCH),
    batch_size=_CLASS_BATCH,
    optim=OptimConfig(
        lr=2e-4, warmup_steps=0, decay="linear", decay_from=0.05, min_lr_ratio=0.1, clip=1.0
    ),
    class_dropout=0.1,
    ema_decay=0.9995,
    statistics_images=0,
)

# For a laptop: the latents of the small tokenizer, trained on stickers or on pictures of one's own.
_SMALL_CLASS = ClassDiffusionConfig(
    name="small-class",
    after="stickers-bridge",
    data=DataConfig(kind="folder", path="data/classes", crop="center"),
    denoiser=ClassDenoiserConfig(
        latent_channels=32, latent_side=8, width=192, depth=6, num_heads=4, num_classes=10
    ),
    steps=20_000,
    batch_size=32,
    optim=OptimConfig(lr=1e-3, warmup_steps=100, decay_from=0.6),
    ema_decay=0.995,
)

# Both experts have the layers and heads of Qwen2.5-0.5B, the image expert also its feed-forward.
QWEN_DENOISER = TextDenoiserConfig(
    latent_channels=64,
    latent_side=16,
    patch_size=1,
    width=896,
    depth=24,
    num_heads=14,
    hidden_width=4864,
    text_expert="qwen2",
    text_width=896,
    text_hidden_width=4864,
    text_key_heads=2,
    vocabulary_size=151_936,
    max_prompt_tokens=256,
)
_CAPTIONS = DataConfig(kind="shards", path="data/cc12m-llavanext", crop="center", num_workers=8)
_EDITS = DataConfig(kind="parquet", path="data/omniedit", crop="center", num_workers=8)
_T2I = DiffusionConfig(
    name="rpiae-t2i",
    after="rpiae-decoder",
    averaged=True,
    data=_CAPTIONS,
    compute=_GPUS,
    checkpoint_every_s=1800,
    model=RPIAE_C64,
    denoiser=QWEN_DENOISER,
    text_folder="weights/qwen2.5-0.5b",
    steps=100_000,
    batch_size=128,
    optim=OptimConfig(lr=5e-5, warmup_steps=1000, min_lr_ratio=0.0),
    edit_share=0.0,
    source_dropout=0.1,
    ema_decay=0.9995,
    statistics_images=0,
)
_EDIT = replace(
    _T2I,
    name="rpiae-edit",
    start_from="rpiae-t2i",
    data=_EDITS,
    edit_share=1.0,
    steps=30_000,
)
_JOINT = replace(_T2I, name="rpiae-joint", edit_data=_EDITS, edit_share=0.4)

_STICKERS_T2I = DiffusionConfig(
    name="stickers-t2i",
    after="stickers-bridge",
    steps=12_000,
    batch_size=32,
    optim=OptimConfig(lr=1e-3, warmup_steps=100, decay_from=0.6),
    denoiser=TextDenoiserConfig(vocabulary_size=384),
    edit_share=0.0,
)
_STICKERS_EDIT = replace(
    _STICKERS_T2I,
    name="stickers-edit",
    start_from="stickers-t2i",
    steps=8_000,
    optim=OptimConfig(lr=5e-4, warmup_steps=100),
    edit_share=1.0,
)

DENOISERS: dict[str, RunConfig] = {
    config.name: config
    for config in (_CLASS, _SMALL_CLASS, _T2I, _EDIT, _JOINT, _STICKERS_T2I, _STICKERS_EDIT)
}
"""Runs of stage 4 besides `stickers-diffusion`."""
