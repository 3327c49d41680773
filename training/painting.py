"""Pictures from a loaded bundle: prompts and edits to uint8 arrays, with one set of options."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle
from models.sampler import SamplingOptions, generate_latents
from training.batches import to_tensor

Picture = NDArray[np.uint8]


def to_pictures(images: Tensor) -> list[Picture]:
    """(B, 3, H, W), clamped to [0, 1] -> B arrays (H, W, 3) uint8."""
    rounded = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return list(rounded.permute(0, 2, 3, 1).cpu().numpy())


@dataclass(frozen=True)
class BundlePainter:
    """A bundle and the sampling options that all its pictures share."""

    bundle: Bundle
    options: SamplingOptions

    @staticmethod
    def of(
        bundle: Bundle,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
    ) -> "BundlePainter":
        """Options from the manifest where none is given."""
        manifest = bundle.manifest
        options = SamplingOptions(
            num_steps=num_steps or manifest.default_steps,
            shift=manifest.timestep_shift,
            sampler=manifest.sampler,
            guidance_interval=manifest.guidance_interval,
            guidance_scale=_given(guidance_scale, manifest.default_guidance_scale),
            image_guidance_scale=_given(
                image_guidance_scale, manifest.default_image_guidance_scale
            ),
        )
        return BundlePainter(bundle, options)

    def paint(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Picture]:
        """One picture per prompt."""
        return self._decode(self._latents(prompts, seeds, None))

    def edit(
        self, sources: Sequence[Picture], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Picture]:
        """Each source, changed as its prompt says."""
        return self._decode(self._latents(prompts, seeds, self._encode(sources)))

    def round_trip(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Encoded and decoded again, nothing else."""
        return self._decode(self._encode(pictures))

    @torch.inference_mode()
    def _encode(self, pictures: Sequence[Picture]) -> Tensor:
        return self.bundle.autoencoder.encode(to_tensor(list(pictures))).latent_dist.mean

    @torch.inference_mode()
    def _decode(self, latents: Tensor) -> list[Picture]:
        return to_pictures(self.bundle.autoencoder.decode(latents).sample)

    def _latents(
        self, prompts: Sequence[str], seeds: Sequence[int], source: Tensor | None
    ) -> Tensor:
        return generate_latents(
            self.bundle.denoiser,
            self.bundle.tokenizer,
            prompts,
            seeds,
            self.options,
            source_latents=source,
        )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
