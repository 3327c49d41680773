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
    """AdamW with warm-up, a constant part, then a cosine to min_lr_ratio * lr."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 50
    decay_from: float = 0.0
    """Share of the run after which the cosine begins; 0 decays from the end of the warm-up."""
    min_lr_ratio: float = 0.03
    clip: float = 1.0
    """Largest gradient norm."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.decay_from < 1:
            raise ValueError(f"decay_from must be in [0, 1), got {self.decay_from}")


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
    """Stages 1 to 3. Images feel L1, a gradient L1 at several scales and stage-0 features."""

    noise_tau: float = 0.25
    """Top of the uniform range of token noise that the decoder sees."""
    pivot_weight: float = 0.2
    """Target share of the pivot gradient; the weight adapts to gradient norms, capped."""
    pivot_weight_cap: float = 10.0
    gradient_weight: float = 0.5
    feature_weight: float = 1.0
    """Bridge stage: weight of the token MSE."""
    kl_weight: float = 1e-3
    l1_weight: float = 1.0
    refit_decoder: bool = False
    """Decoder stage: start from a ridge regression instead of the decoder of the run before."""


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
