"""The tokenizers that are compared: each one's runs, from the encoder to the denoiser.

All of them have the same sizes, pixel decoder, number of gradient steps and samples, and the same
denoiser on top, in which only the latents' channels differ. Those that start from a pretrained
encoder share one; it was never asked for pixels, as DINO is not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.bridge import BridgeConfig
from training.config import (
    AutoencoderConfig,
    ComputeConfig,
    DiffusionConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
)
from training.presets import STICKERS

PREFIX = "compare"

# What the stickers' variants get: about an hour and a half of one core for all of them.
_STAGE_STEPS = (300, 300, 400)
_DENOISER_STEPS = 1500
_POOL = (8192, 4096)  # scenes, edits


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all variants share.

    pretrain, tokenizer, diffusion: configs that the runs differ from; stage_steps: of stages 1, 2
    and 3, whose sum every other tokenizer gets; start_pixel_weight: of bridges on
    pretrained tokens; widths: latent channels of the full tokenizer, `latent_width` those of the
    variants with a bridge.
    """

    pretrain: PretrainConfig
    tokenizer: AutoencoderConfig
    diffusion: DiffusionConfig
    stage_steps: tuple[int, int, int]
    start_pixel_weight: float = 0.0
    latent_width: int = 32
    timestep_shift: float = 3.0
    widths: tuple[int, ...] = (8, 16, 64)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """runs: in their order, the last one is the denoiser's."""

    name: str
    title: str
    runs: tuple[RunConfig, ...]


def variants(recipe: Recipe) -> dict[str, Variant]:
    """All variants by name, the plain autoencoder first."""
    pretrain = replace(recipe.pretrain, name=f"{PREFIX}-pretrain")
    builder = _Builder(recipe, pretrain)
    found = [
        builder.scratch(),
        builder.frozen(),
        builder.staged("no-pivot", "RPiAE without the pivot", builder.pivot("no-pivot", 0.0)),
        builder.without_bridge(),
        builder.end_to_end(),
        builder.staged("full", "RPiAE", builder.full_pivot),
    ]
    for width in recipe.widths:
        title = f"RPiAE, {width} channels"
        found.append(builder.staged(f"full-{width}", title, builder.full_pivot, width))
    return {variant.name: variant for variant in found}


class _Builder:
    """Makes the runs of one variant after another."""

    def __init__(self, recipe: Recipe, pretrain: PretrainConfig) -> None:
        self._recipe, self._pretrain = recipe, pretrain
        self._base = replace(recipe.tokenizer, after=pretrain.name)
        self._total = sum(recipe.stage_steps)
        self.full_pivot = self.pivot("full", recipe.tokenizer.pivot_weight)

    def _named(
        self, base: AutoencoderConfig, variant: str, bridge: BridgeConfig
    ) -> AutoencoderConfig:
        """`base` under the variant's name, with its bridge."""
        name = f"{PREFIX}-{variant}-{base.stage}"
        return replace(base, name=name, model=replace(base.model, bridge=bridge))

    def _bridge(self, latent_width: int) -> BridgeConfig:
        return replace(self._base.model.bridge, latent_width=latent_width)

    @property
    def _identity(self) -> BridgeConfig:
        width = self._base.model.bridge.token_width
        return BridgeConfig(kind="identity", token_width=width, latent_width=width, num_heads=1)

    def _variant(self, name: str, title: str, *runs: AutoencoderConfig) -> Variant:
        last = runs[-1]
        width = last.model.bridge.latent_width
        denoiser = replace(self._recipe.diffusion.denoiser, latent_channels=width)
        # More values hide an image's layout until later, by the square root of their number
        # (RAE, arXiv 2510.11690); `timestep_shift` is that of `latent_width` channels.
        shift = self._recipe.timestep_shift * math.sqrt(width / self._recipe.latent_width)
        diffusion = replace(
            self._recipe.diffusion,
            timestep_shift=max(1.0, shift),
            name=f"{PREFIX}-{name}-diffusion",
            after=last.name,
            model=last.model,
            denoiser=denoiser,
        )
        pretrain = () if runs[0].after is None else (self._pretrain,)
        return Variant(name=name, title=title, runs=(*pretrain, *runs, diffusion))

    def pivot(self, variant: str, weight: float) -> AutoencoderConfig:
        """Stage 1."""
        steps = self._recipe.stage_steps[0]
        base = replace(self._base, stage="pivot", steps=steps, pivot_weight=weight)
        return self._named(base, variant, self._bridge(self._recipe.latent_width))

    def staged(
        self, name: str, title: str, pivot: AutoencoderConfig, latent_width: int | None = None
    ) -> Variant:
        """Stages 2 and 3 after a run of stage 1."""
        bridge = self._bridge(latent_width or self._recipe.latent_width)
        _, bridge_steps, decoder_steps = self._recipe.stage_steps
        second = replace(
            self._base,
            stage="bridge",
            after=pivot.name,
            steps=bridge_steps,
            start_pixel_weight=self._recipe.start_pixel_weight,
        )
        second = self._named(second, name, bridge)
        third = replace(self._base, stage="decoder", after=second.name, steps=decoder_steps)
        return self._variant(name, title, pivot, second, self._named(third, name, bridge))

    def scratch(self) -> Variant:
        """A KL autoencoder: nothing pretrained, no pivot, no token noise.

        Its tokens begin as components of pixels, so its bridge starts at those of tokens alone.
        """
        run = replace(
            self._base,
            stage="joint",
            after=None,
            steps=self._total,
            pivot_weight=0.0,
            noise_tau=0.0,
        )
        run = self._named(run, "kl", self._bridge(self._recipe.latent_width))
        return self._variant("kl", "KL autoencoder from scratch", run)

    def end_to_end(self) -> Variant:
        """Encoder, bridge and decoder with all losses in one stage."""
        weight = self._recipe.start_pixel_weight
        run = replace(self._base, stage="joint", steps=self._total, start_pixel_weight=weight)
        run = self._named(run, "end-to-end", self._bridge(self._recipe.latent_width))
        return self._variant("end-to-end", "RPiAE in one stage", run)

    def frozen(self) -> Variant:
        """RAE: only the pixel decoder learns, from the noised tokens of the pretrained encoder."""
        run = replace(
            self._base,
            stage="decoder",
            steps=self._total,
            refit_decoder=True,
            decoder_noise_tau=self._base.noise_tau,
        )
        run = self._named(run, "rae", self._identity)
        return self._variant("rae", "RAE: frozen encoder, no bridge", run)

    def without_bridge(self) -> Variant:
        """Stage 1 of the full tokenizer, then its decoder goes on; tokens are the latents."""
        run = replace(
            self._base,
            stage="decoder",
            after=self.full_pivot.name,
            steps=self._total - self._recipe.stage_steps[0],
            decoder_noise_tau=self._base.noise_tau,
        )
        run = self._named(run, "no-bridge", self._identity)
        return self._variant("no-bridge", "RPiAE without the bridge", self.full_pivot, run)


def _stickers() -> Recipe:
    """The stickers' sizes, at a budget that a CPU has for nine variants."""
    compute = ComputeConfig(cpu_kernels="onednn")
    pretrain, pivot = STICKERS["stickers-pretrain"], STICKERS["stickers-pivot"]
    diffusion = STICKERS["stickers-diffusion"]
    assert isinstance(pretrain, PretrainConfig)
    assert isinstance(pivot, AutoencoderConfig)
    assert isinstance(diffusion, DiffusionConfig)
    return Recipe(
        pretrain=replace(pretrain, reconstruction_weight=0.0, compute=compute),
        tokenizer=replace(pivot, compute=compute),
        diffusion=replace(
            diffusion,
            steps=_DENOISER_STEPS,
            optim=OptimConfig(lr=1e-3, warmup_steps=50, decay_from=0.4),
            pool_scenes=_POOL[0],
            pool_edits=_POOL[1],
            ema_decay=0.99,
            compute=compute,
        ),
        stage_steps=_STAGE_STEPS,
        start_pixel_weight=1.0,
    )


VARIANTS: dict[str, Variant] = variants(_stickers())
"""Those of `rpiae train compare` and `rpiae evaluate compare`."""


def all_runs(chosen: Sequence[Variant]) -> tuple[RunConfig, ...]:
    """The runs of several variants in an order that works, each once."""
    return tuple({run.name: run for variant in chosen for run in variant.runs}.values())
