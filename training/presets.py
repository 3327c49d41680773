"""Named runs: `rpiae train <name>` runs or resumes one; `after` says what it starts from."""

from dataclasses import replace

from models.presets import RPIAE_C64
from models.text_denoiser import TextDenoiserConfig
from training.config import (
    AutoencoderConfig,
    ComputeConfig,
    DataConfig,
    DiffusionConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
)
from training.denoiser_presets import DENOISERS

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
    # Goes on in a wider world. Few latent values need times nearer to noise than their number says:
    # at the default shift of 1 the denoiser learned what there is, and not which of two is where.
    DiffusionConfig(
        name="stickers-counted",
        after="stickers-bridge",
        start_from="stickers-diffusion",
        world="counted",
        steps=14000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, warmup_steps=200, decay_from=0.4),
        denoiser=TextDenoiserConfig(vocabulary_size=384, prompt_depth=3),
        timestep_shift=3.0,
        pool_scenes=49152,
        pool_edits=24576,
    ),
    # And then in more captions that leave to the model where things are.
    DiffusionConfig(
        name="stickers-terse",
        after="stickers-bridge",
        start_from="stickers-counted",
        world="counted",
        steps=2500,
        batch_size=32,
        optim=OptimConfig(lr=5e-4, warmup_steps=100),
        denoiser=TextDenoiserConfig(vocabulary_size=384, prompt_depth=3),
        timestep_shift=3.0,
        omit_places=0.7,
        pool_scenes=32768,
        pool_edits=24576,
    ),
)

_IMAGENET_IMAGES = 1_281_167


def _epoch(batch_size: int) -> int:
    """Steps of one epoch of ImageNet-1k, the last incomplete batch left out."""
    return _IMAGENET_IMAGES // batch_size


# The paper's tokenizer, as its code and configs state it. Files stand in `weights/`, ImageNet-1k in
# `data/imagenet/train`, until other paths are given; no clipping; the fall to 2e-5 ends after 16
# epochs in every stage. The TFLOP/s are an assumption for the dry run, not measured.
_EPOCH = _epoch(256)
_PAPER_OPTIM = OptimConfig(lr=2e-4, warmup_steps=_EPOCH, min_lr_ratio=0.1, clip=0.0)
_RPIAE_PIVOT = AutoencoderConfig(
    name="rpiae-pivot",
    stage="pivot",
    encoder_folder="weights/dinov2-with-registers-base",
    data=DataConfig(kind="folder", path="data/imagenet/train", num_workers=8),
    compute=ComputeConfig(device="gpu", precision="bf16", num_gpus=8, gpu_tflops=200),
    checkpoint_every_s=1800,  # ten GB each
    model=RPIAE_C64,
    steps=16 * _EPOCH,
    batch_size=256,
    optim=_PAPER_OPTIM,
    linear_start=False,
    noise_tau=0.8,
    pivot_weight=0.75,
    pivot_weight_cap=1e5,
    pivot_norms_at="fc2",
    pivot_warmup_steps=1000,
    vgg_weights="weights/vgg16.pth",
    lpips_weights="weights/lpips-vgg.pth",
    gan_weight=0.75,
    discriminator_start=6 * _EPOCH,
    gan_start=8 * _EPOCH,
    dino_weights="weights/dino_vit_small_patch8_224.pth",
    discriminator_optim=_PAPER_OPTIM,
    ema_decay=0.9978,
)
_RPIAE_BRIDGE = replace(
    _RPIAE_PIVOT,
    name="rpiae-bridge",
    stage="bridge",
    after="rpiae-pivot",
    encoder_folder=None,
    steps=32 * _epoch(512),
    batch_size=512,
    optim=replace(_PAPER_OPTIM, warmup_steps=_epoch(512), decay_to=0.5),
    kl_weight=1e-3,
    l1_weight=0.05,
    gan_weight=0.0,
    # The published config asks for samples and its trainer decodes the mean all the same.
    posterior="mean",
)
_RPIAE_DECODER = replace(
    _RPIAE_PIVOT,
    name="rpiae-decoder",
    stage="decoder",
    after="rpiae-bridge",
    encoder_folder=None,
    noise_tau=0.0,
)

STICKERS: dict[str, RunConfig] = {config.name: config for config in _STICKERS}
"""The chain of `rpiae train stickers`, in its order."""
PAPER: dict[str, RunConfig] = {
    config.name: config for config in (_RPIAE_PIVOT, _RPIAE_BRIDGE, _RPIAE_DECODER)
}
"""The tokenizer of the paper, in the order of its stages."""
PRESETS: dict[str, RunConfig] = STICKERS | PAPER | DENOISERS
