"""What a training run is made of: one frozen dataclass per kind of stage."""

from dataclasses import dataclass, field
from typing import Literal

from models.autoencoder import RPiAEConfig
from models.bridge import BridgeConfig
from models.class_denoiser import ClassDenoiserConfig
from models.decoder import PixelDecoderConfig
from models.encoder import SmallViTConfig
from models.text_denoiser import TextDenoiserConfig
from models.transport import default_shift
from training.captions import OMIT_PLACES_SHARE
from training.compute_config import ComputeConfig
from training.data_config import DataConfig, check_edit_share
from training.optim_config import OptimConfig

Stage = Literal["pretrain", "pivot", "bridge", "decoder", "joint", "diffusion", "class_diffusion"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One stage of training. `after` names the run whose result this one starts from."""

    name: str
    stage: Stage
    after: str | None = None
    world: Literal["shapes", "counted", "full"] = "shapes"
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
    samples_every: int = 0
    """Steps between sample grids, which change nothing that is learned; 0: none."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"steps and batch_size must be >= 1, got {self.steps} and {self.batch_size}"
            )
        if self.samples_every < 0 or (self.samples_every and self.stage == "pretrain"):
            raise ValueError(
                f"samples_every {self.samples_every}: it is never negative, and stage pretrain "
                "paints nothing"
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
    """Stages 1 to 3, or all in one. The defaults are a small run's; `rpiae-*` in presets.py are
    the paper's.
    """

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
    start_pixel_weight: float = 0.0
    """Bridge and joint stage: what the pixels weigh, against the tokens, in the components that the
    bridge starts from; 0: principal components of the tokens alone."""
    posterior: Literal["sampled", "mean"] = "sampled"
    """Bridge stage: what is decoded. The published weights were trained on the mean."""
    feature_weight: float = 1.0
    """Bridge stage: weight of the token MSE."""
    kl_weight: float = 1e-3
    l1_weight: float = 1.0
    refit_decoder: bool = False
    """Decoder stage: start from a ridge regression instead of the decoder of the run before."""
    decoder_noise_tau: float = 0.0
    """Decoder stage: noise_tau of that stage, for a decoder that tokens or bridged ones reach with
    the errors of a denoiser."""
    num_components: int = 128
    """Joint stage without a run before: as in stage 0, principal components that initialise the
    patch embedding."""

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
        if self.stage == "joint" and self.gan_weight > 0:
            raise ValueError(f"the joint stage has no discriminator, got {self.gan_weight=}")
        if self.stage == "joint" and self.after is None and self.pivot_weight > 0:
            raise ValueError(
                "a joint stage from scratch (after=none) has no encoder to stay near to: "
                f"pivot_weight must be 0, got {self.pivot_weight}"
            )
        kind = self.model.encoder.kind
        if self.pivot_norms_at == "layer_scale" and kind != "dinov2-with-registers":
            raise ValueError(f"pivot_norms_at layer_scale: an encoder of kind {kind} has none")


@dataclass(frozen=True, kw_only=True)
class DenoiserRunConfig(RunConfig):
    """What the denoisers of stage 4 have in common."""

    denoiser: TextDenoiserConfig | ClassDenoiserConfig
    data: DataConfig = field(default_factory=lambda: DataConfig(crop="center"))
    averaged: bool = False
    """Encode with the averaged weights of the tokenizer's run."""
    timestep_shift: float | None = None
    """Of the training times towards noise, >= 1; absent: by the latents' size. Where things are is
    decided close to noise, so few latent values may want more than their size says."""
    start_from: str | None = None
    """Whose averaged denoiser this one starts from: an earlier run's name, a bundle's folder, or a
    file of weights. Latent statistics and vocabulary come along, unless it is a file."""
    statistics_images: int = 4096
    """Files: how many pictures the latent statistics, and a small text expert's vocabulary, are
    taken from; 0: latents are not normalized, as published."""
    per_channel_normalization: bool = False
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timestep_shift is not None and self.timestep_shift < 1:
            raise ValueError(f"timestep_shift must be >= 1, got {self.timestep_shift}")
        if self.statistics_images < 0:
            raise ValueError(f"statistics_images must be >= 0, got {self.statistics_images}")
        shape = self.denoiser.latent_shape
        if shape != self.model.latent_shape:
            raise ValueError(
                f"denoiser works on latents {shape}, the tokenizer gives {self.model.latent_shape}"
            )

    @property
    def shift(self) -> float:
        """Of training times, and of the steps of a bundle made of the run."""
        return self.timestep_shift or default_shift(self.denoiser.latent_shape)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(DenoiserRunConfig):
    """Stage 4: text-to-image and edits in one denoiser.

    `data` gives stickers, captioned pictures (shards) or edits (jsonl, parquet); `edit_data` adds
    edits to captioned pictures.
    """

    stage: Stage = "diffusion"
    denoiser: TextDenoiserConfig = field(default_factory=TextDenoiserConfig)
    edit_data: DataConfig = field(default_factory=lambda: DataConfig(kind="none", crop="center"))
    text_folder: str | None = None
    """Folder of the pretrained language model whose layers are the text expert, and its tokenizer;
    for denoiser.text_expert=qwen2."""
    freeze_text: bool = False
    """Leave the text expert as it is."""
    pool_scenes: int = 32768
    """Stickers: captioned scenes that are encoded once and reused."""
    pool_edits: int = 16384
    omit_places: float = OMIT_PLACES_SHARE
    """Stickers: share of captions that do not say where things are."""
    edit_share: float = 0.4
    """Share of edits in a batch; 0 or 1 where `data` has no edits, or nothing else."""
    text_dropout: float = 0.1
    source_dropout: float = 0.05
    unknown_share: float = 0.01
    """Share of prompt words replaced by <unk>, so that unknown words are harmless; of the small
    text expert alone."""
    item_weight: float = 3.0
    """Stickers: loss weight of latent tokens that an item touches, relative to bare background."""
    sample_prompts: str = ""
    """Files: what sample grids paint, prompts parted by |. Stickers have held-out ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "omit_places",
            "edit_share",
            "text_dropout",
            "source_dropout",
            "unknown_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        check_edit_share(self.data, self.edit_data, self.edit_share)
        if self.samples_every and self.data.kind != "stickers" and not self.sample_prompts:
            raise ValueError("samples_every needs sample_prompts for data from files")
        if (self.denoiser.text_expert == "small") != (self.text_folder is None):
            raise ValueError(
                "text_folder names a pretrained text expert and goes with denoiser.text_expert "
                f"qwen2, got {self.text_folder} and {self.denoiser.text_expert}"
            )
        if self.num_measured_words and not self.statistics_images and self.start_from is None:
            raise ValueError(
                "a small text expert takes its vocabulary from statistics_images pictures: set it "
                "above 0"
            )

    @property
    def num_measured_words(self) -> int | None:
        """Size of a vocabulary taken from files; None where the tokenizer is there already."""
        if self.data.kind == "stickers" or self.denoiser.text_expert != "small":
            return None
        return self.denoiser.vocabulary_size


@dataclass(frozen=True, kw_only=True)
class ClassDiffusionConfig(DenoiserRunConfig):
    """Stage 4 for classes: `data` is a folder whose folders are the classes, sorted by name."""

    stage: Stage = "class_diffusion"
    denoiser: ClassDenoiserConfig = field(default_factory=ClassDenoiserConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(kind="folder", crop="center"))
    class_dropout: float = 0.1
    """Share of rows whose class is the null class, which guidance needs."""
    ema_decay: float = 0.9995

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.kind != "folder":
            raise ValueError(f"classes are the folders of data.kind folder, got {self.data.kind}")
        if not 0 <= self.class_dropout <= 1:
            raise ValueError(f"class_dropout must be in [0, 1], got {self.class_dropout}")
