"""ClassDenoiser: LightningDiT, velocity of noisy latents given a class.

Source: LightningDiT (arXiv 2501.01423) as RPiAE (arXiv 2603.19206) uses it.

R rows, C latent channels, N = rows * columns tokens, W width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import Block, RMSNorm, modulate, swiglu_width
from models.manifest import DENOISER_FILE, BundleError, read_manifest
from models.positions import (
    Grid,
    patchify,
    resize_positions,
    rotary_table,
    sinusoidal_positions,
    unpatchify,
)
from models.weights import load_weights, without_weights

_NUM_FREQUENCIES = 256


@dataclass(frozen=True, kw_only=True)
class ClassDenoiserConfig:
    """Sizes; one token for each latent cell. The defaults are LightningDiT-XL on f16d64."""

    kind: Literal["class"] = "class"
    latent_channels: int = 64
    latent_side: int = 16
    width: int = 1152
    depth: int = 28
    num_heads: int = 16
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if self.width % (4 * self.num_heads):
            raise ValueError(
                f"width {self.width} is not divisible by 4 * num_heads {4 * self.num_heads}"
            )
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be >= 1, got {self.num_classes}")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return (self.latent_channels, self.latent_side, self.latent_side)


@dataclass(frozen=True)
class ClassContext:
    """labels (R,) int64, `num_classes` being the null class; guide (R,) bool, on the CPU: rows that
    the guide model runs, not this one.
    """

    labels: Tensor
    guide: Tensor

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.labels)

    @property
    def num_bytes(self) -> int:
        """Memory that its tensors take."""
        return self.labels.nbytes + self.guide.nbytes

    def of_guide(self) -> Self:
        """The same rows for the guide model."""
        return type(self)(self.labels, torch.ones_like(self.guide))

    def select(self, rows: Tensor | Sequence[int]) -> Self:
        """The context of some rows, in that order."""
        index = torch.as_tensor(rows)
        return type(self)(self.labels[index.to(self.labels.device)], self.guide[index.cpu()])

    @classmethod
    def cat(cls, contexts: Sequence[Self]) -> Self:
        """Rows of several contexts, one after another."""
        return cls(torch.cat([c.labels for c in contexts]), torch.cat([c.guide for c in contexts]))


class FourierEmbedding(nn.Module):
    """Sine and cosine of random multiples of t, through a small MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(_NUM_FREQUENCIES))
        self.mlp = nn.Sequential(
            nn.Linear(2 * _NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Tensor) -> Tensor:
        """(R,) -> (R, W)."""
        angles = 2 * math.pi * t[:, None] * self.frequencies
        out: Tensor = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))
        return out


class ClassBlock(Block):
    """A block whose norms and branches are modulated by time and class (adaLN-zero)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__(width, num_heads, hidden_width=swiglu_width(width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(  # type: ignore[override]
        self, x: Tensor, condition: Tensor, rotary: Tensor
    ) -> Tensor:
        """Tokens x (R, N, W), condition (R, W) already activated."""
        parts = self.modulation(condition).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        attended = self.attn(modulate(self.norm1(x), shift1, scale1), rotary)
        x = x + gate1[:, None] * attended
        out: Tensor = x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return out


class ClassDenoiser(nn.Module):
    """Velocity of noisy latents, given a class label."""

    rotary: Tensor

    def __init__(self, config: ClassDenoiserConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.latent_channels, width)
        square = (config.latent_side, config.latent_side)
        self.position = nn.Parameter(sinusoidal_positions(square, width))
        self.time = FourierEmbedding(width)
        self.labels = nn.Embedding(config.num_classes + 1, width)
        self.blocks = nn.ModuleList(
            ClassBlock(width, config.num_heads) for _ in range(config.depth)
        )
        self.norm = RMSNorm(width)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.to_velocity = nn.Linear(width, config.latent_channels)
        self.register_buffer("rotary", self._rotary(square), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time.mlp[0], self.time.mlp[2], self.labels):
            assert isinstance(layer, nn.Linear | nn.Embedding)
            nn.init.normal_(layer.weight, std=0.02)
        # adaLN-zero: every block starts as identity and the predicted velocity at zero.
        for block in self.blocks:
            assert isinstance(block, ClassBlock)
            nn.init.zeros_(block.modulation.weight)
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.to_velocity.weight)

    @classmethod
    def from_pretrained(cls, bundle: str | Path, *, file: str = DENOISER_FILE) -> Self:
        """The denoiser of a bundle, in eval mode and without gradients; `file` may name the guide.

        Raises:
            BundleError: no bundle there, or its denoiser is of another kind or does not fit.
        """
        directory = Path(bundle)
        fields = read_manifest(directory).module_fields("denoiser")
        if fields.get("kind") != "class":
            raise BundleError(f"{directory} holds no class-conditional denoiser")
        model = without_weights(lambda: cls(ClassDenoiserConfig(**fields)))
        load_weights(model, directory / file)
        return model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.position.device

    def forward(self, latents: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Velocity (R, C, h, w) of noisy latents.

        Args:
            latents: (R, C, h, w), normalised; positions of another grid than the config's are
                interpolated.
            t: (R,) in [0, 1], 1 is noise.
            labels: (R,) int64 in [0, num_classes]; num_classes is the null class.
        """
        trained = (self.config.latent_side, self.config.latent_side)
        grid = (latents.shape[-2], latents.shape[-1])
        x = self.embed(patchify(latents, 1)) + resize_positions(self.position, trained, grid)
        rotary = self.rotary if grid == trained else self._rotary(grid).to(x)
        condition = functional.silu(self.time(t) + self.labels(labels))
        for block in self.blocks:
            x = block(x, condition, rotary)
        shift, scale = self.final_modulation(condition).chunk(2, dim=-1)
        x = self.to_velocity(modulate(self.norm(x), shift, scale))
        return unpatchify(x, 1, grid)

    def prefill(self, labels: Tensor, source_latents: Tensor | None = None) -> ClassContext:
        """Context of labels (R,) int64; see `class_context`."""
        return class_context(labels, source_latents)

    def velocity(self, x: Tensor, t: Tensor, context: ClassContext) -> Tensor:
        """`forward` with the labels of a context."""
        velocity: Tensor = self(x, t, context.labels)
        return velocity

    def _rotary(self, grid: Grid) -> Tensor:
        side = self.config.latent_side
        head_width = self.config.width // self.config.num_heads
        return rotary_table(grid, head_width, trained=(side, side))


def class_context(labels: Tensor, source_latents: Tensor | None = None) -> ClassContext:
    """Context of labels (R,) int64.

    Raises:
        ValueError: there are source latents: these models make no edits.
    """
    if source_latents is not None:
        raise ValueError("a class-conditional denoiser takes no source latents")
    return ClassContext(labels, torch.zeros(len(labels), dtype=torch.bool))


class ClassVelocity(Protocol):
    """A class-conditional denoiser, whatever runs it."""

    def velocity(self, x: Tensor, t: Tensor, context: ClassContext, /) -> Tensor:
        """Velocity (R, C, h, w) of x (R, C, h, w) at times t (R,)."""
        ...


def autoguided_velocity(
    denoiser: ClassVelocity,
    guide: ClassVelocity | None,
    x: Tensor,
    t: Tensor,
    context: ClassContext,
) -> Tensor:
    """Velocity (R, C, h, w) of rows of which some are the guide model's; see `ClassContext`.

    Raises:
        ValueError: a row asks for a guide, and there is none.
    """
    if not bool(context.guide.any()):
        return denoiser.velocity(x, t, context)
    if guide is None:
        raise ValueError("rows of the guide model, but no guide model")
    velocity = torch.empty_like(x)
    for model, rows in ((denoiser, ~context.guide), (guide, context.guide)):
        index = rows.nonzero()[:, 0]
        if len(index):
            here = index.to(x.device)
            velocity[here] = model.velocity(x[here], t[here], context.select(index))
    return velocity
