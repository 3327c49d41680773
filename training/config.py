"""What a training run is made of: one frozen dataclass per kind of stage."""

from dataclasses import dataclass, field
from typing import Literal

from models.autoencoder import RPiAEConfig
from models.bridge import BridgeConfig
from models.decoder import PixelDecoderConfig
from models.encoder import SmallViTConfig
from models.text_denoiser import TextDenoiserConfig

Stage = Literal["pretrain", "pivot", "bridge", "decoder", "diffusion"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up, a constant part, then a fall to min_lr_ratio * lr, which is kept."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 50
    decay_from: float = 0.0
    """Share of the run after which the fall begins; 0 decays from the end of the warm-up."""
    decay_to: float = 1.0
    """Share of the run at which the fall ends."""
    decay: Literal["cosine", "linear"] = "cosine"
    min_lr_ratio: float = 0.03
    clip: float = 1.0
    """Largest gradient norm; 0 leaves gradients as they are."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.decay_from < 1:
            raise ValueError(f"decay_from must be in [0, 1), got {self.decay_from}")
        if not self.decay_from < self.decay_to <= 1:
            raise ValueError(
                f"decay_to must be above decay_from {self.decay_from} and at most 1, "
                f"got {self.decay_to}"
            )
        if self.clip < 0:
            raise ValueError(f"clip must not be negative, got {self.clip}")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where and how a step is computed; the batch, and so the result, stays that of one process."""

    device: Literal["cpu", "gpu"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes products in bfloat16; weights, gradients and optimizer stay float32."""
    micro_batches: int = 1
    """Parts of its batch that a process computes one after another, adding up their gradients."""
    num_gpus: int = 0
    """GPUs that the preset is meant for, for the dry run; 0: not stated."""
    gpu_tflops: float = 0.0
    """TFLOP/s that one of them sustains in training, for the dry run's hours."""

    def __post_init__(self) -> None:
        if self.micro_batches < 1:
            raise ValueError(f"micro_batches must be >= 1, got {self.micro_batches}")
        if self.num_gpus < 0 or self.gpu_tflops < 0:
            raise ValueError(
                "num_gpus and gpu_tflops must not be negative, "
                f"got {self.num_gpus} and {self.gpu_tflops}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from: stickers drawn while training, or files on disk."""

    kind: Literal["stickers", "folder", "shards", "jsonl", "parquet"] = "stickers"
    """folder: image files. shards: webdataset tar archives. jsonl, parquet: edit pairs."""
    path: str = ""
    """Folder; of the other kinds also a glob or a range like `cc12m-{0000..0995}.tar`."""
    crop: Literal["random", "center"] = "random"
    """random for tokenizers, center (with flips) for denoisers: see transforms.py."""
    caption: Literal["long", "short", "either"] = "either"
    """Shards: which caption of each picture; where only one is there, that one."""
    columns: tuple[str, str, str] = ("src_img", "edited_img", "edited_prompt_list")
    """Parquet: source, target, instruction."""
    num_workers: int = 2
    """Processes that read ahead; 0 reads in the training process."""

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One stage of training. `after` names the run whose result this one starts from."""

    name: str
    stage: Stage
    after: str | None = None
    world: Literal["shapes", "full"] = "shapes"
    seed: int = 0
    steps: int
    batch_size: int
    optim: OptimConfig
    model: RPiAEConfig = field(
        default_factory=lambda: RPiAEConfig(
            encoder=SmallViTConfig(), bridge=BridgeConfig(), decoder=PixelDecoderConfig()
        )
    )
    num_threads: int = 1
    checkpoint_every_s: float = 120.0
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"steps and batch_size must be >= 1, got {self.steps} and {self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Stage 0. Weights of the loss terms; the reconstruction head keeps tokens paintable."""

    stage: Stage = "pretrain"
    num_components: int = 128
    """Principal components of the data's patches that initialise the patch embedding."""
    background_weight: float = 0.3
    color_weight: float = 0.5
    scene_weight: float = 0.1
    reconstruction_weight: float = 30.0
    caption_weight: float = 0.1


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(RunConfig):
    """Stages 1 to 3. The defaults are a small run's; `rpiae-*` in presets.py are the paper's."""

    data: DataConfig = field(default_factory=DataConfig)
    noise_tau: float = 0.25
    """Top of the uniform range of token noise that the decoder sees."""
    pivot_weight: float = 0.2
    """Target share of the pivot gradient; the weight adapts to gradient norms, capped."""
    pivot_weight_cap: float = 10.0
    """At the tokens: of the weight. At a parameter: of the ratio of norms, as published."""
    pivot_norms_at: Literal["tokens", "fc2", "layer_scale"] = "tokens"
    """Where gradient norms are compared: at the tokens, at the last output weight of the encoder's
    last feed-forward (the paper's intent), or at its LayerScale (as the published weights)."""
    pivot_warmup_steps: int = 0
    """Steps in which the pivot weight is pivot_weight itself."""
    gradient_weight: float = 0.5
    """Of the gradient L1 that stands in for LPIPS where its weights are not given."""
    lpips_weight: float = 1.0
    vgg_weights: str | None = None
    """File of torchvision's vgg16 weights, for LPIPS."""
    lpips_weights: str | None = None
    """File of LPIPS' linear heads for VGG16."""
    gan_weight: float = 0.0
    """Share of the adversarial gradient at the decoder's last layer; 0: no discriminator."""
    discriminator_start: int = 0
    """Step from which the discriminator learns."""
    gan_start: int = 0
    """Step from which the pixel decoder feels it."""
    dino_weights: str | None = None
    """File of DINO ViT-S/8; absent: the discriminator looks through the run's frozen encoder."""
    discriminator_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-4, clip=0.0))
    """Its schedule begins at discriminator_start."""
    ema_decay: float = 0.0
    """Of averaged weights, saved as `<name>_ema`; 0: none."""
    averaged: bool = False
    """Start from the averaged weights of the run before."""
    encoder_folder: str | None = None
    """Pivot stage: folder of a published encoder to start from, instead of a run before."""
    linear_start: bool = True
    """Decoder and bridge start from regressions instead of at random."""
    posterior: Literal["sampled", "mean"] = "sampled"
    """Bridge stage: what is decoded. The published weights were trained on the mean."""
    feature_weight: float = 1.0
    """Bridge stage: weight of the token MSE."""
    kl_weight: float = 1e-3
    l1_weight: float = 1.0
    refit_decoder: bool = False
    """Decoder stage: start from a ridge regression instead of the decoder of the run before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.vgg_weights is None) != (self.lpips_weights is None):
            raise ValueError(
                "LPIPS needs both vgg_weights and lpips_weights, got "
                f"{self.vgg_weights} and {self.lpips_weights}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if not 0 <= self.discriminator_start <= self.gan_start:
            raise ValueError(
                f"gan_start {self.gan_start} must not come before discriminator_start "
                f"{self.discriminator_start}, and neither below 0"
            )
        if self.stage == "pivot" and (self.after is None) == (self.encoder_folder is None):
            raise ValueError(
                "the pivot stage starts either from a run (after) or from encoder_folder, got "
                f"{self.after} and {self.encoder_folder}"
            )
        kind = self.model.encoder.kind
        if self.pivot_norms_at == "layer_scale" and kind != "dinov2-with-registers":
            raise ValueError(f"pivot_norms_at layer_scale: an encoder of kind {kind} has none")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(RunConfig):
    """Stage 4: text-to-image and edits in one denoiser."""

    stage: Stage = "diffusion"
    denoiser: TextDenoiserConfig = field(default_factory=TextDenoiserConfig)
    pool_scenes: int = 32768
    """Captioned scenes that are encoded once and reused."""
    pool_edits: int = 16384
    edit_share: float = 0.4
    text_dropout: float = 0.1
    source_dropout: float = 0.05
    unknown_share: float = 0.01
    """Share of prompt words replaced by <unk>, so that unknown words are harmless."""
    item_weight: float = 3.0
    """Loss weight of latent tokens that an item touches, relative to bare background."""
    ema_decay: float = 0.995
    per_channel_normalization: bool = False
