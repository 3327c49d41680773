"""An export as a model: the calls of `RPiAE`, `TextDenoiser` and `ClassDenoiser` in a runtime.

B images, R rows, C latent channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from models.bridge import Posterior
from models.bundle import denoiser_config
from models.class_denoiser import ClassContext, ClassDenoiserConfig, class_context
from models.exports import export_files
from models.manifest import Export, GraphName, Manifest, Precision
from models.sessions import Session
from models.text_context import TextContext, trim_padding
from models.text_denoiser import TextDenoiserConfig

Sessions: TypeAlias = Mapping[GraphName, Session]


class OnnxTextDenoiser:
    """`TextDenoiser`'s calls."""

    def __init__(self, config: TextDenoiserConfig, sessions: Sessions) -> None:
        self.config = config
        self._prefill, self._prefill_source = sessions["prefill"], sessions["prefill_source"]
        self._velocity = sessions["velocity"]

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._velocity.device

    def prefill(self, tokens: Tensor, source_latents: Tensor | None = None) -> TextContext:
        """Context of prompt tokens (R, T) and maybe source latents (R, C, h, w)."""
        config = self.config
        tokens = trim_padding(tokens, config.pad_id)
        rows, length = tokens.shape
        if source_latents is not None:
            length += config.num_image_tokens
        head_width = config.width // config.num_heads
        cached = (rows, config.depth, config.num_heads, length, head_width)
        source_shape = (config.num_image_tokens, config.width)
        source: Tensor | None = None
        if source_latents is None:
            keys, values = self._prefill.run({"prompt_tokens": tokens}, (cached, cached))
        else:
            keys, values, source = self._prefill_source.run(
                {"prompt_tokens": tokens, "source_latents": source_latents},
                (cached, cached, (rows, *source_shape)),
            )
        return TextContext.padded(
            keys,
            values,
            tokens.to(keys.device) != config.pad_id,
            source,
            source_shape=source_shape,
            max_prompt_tokens=config.max_prompt_tokens,
        )

    def velocity(self, x: Tensor, t: Tensor, context: TextContext) -> Tensor:
        """Velocity (R, C, h, w) of noisy latents x (R, C, h, w) at times t (R,)."""
        inputs = {
            "x": x,
            "t": t,
            "keys": context.keys,
            "values": context.values,
            "mask": context.mask,
            "source": context.source,
        }
        return self._velocity.run(inputs, (x.shape,))[0]


class OnnxClassDenoiser:
    """`ClassDenoiser`'s calls."""

    def __init__(self, config: ClassDenoiserConfig, velocity: Session) -> None:
        self.config = config
        self._velocity = velocity

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._velocity.device

    def prefill(self, tokens: Tensor, source_latents: Tensor | None = None) -> ClassContext:
        """Context of labels (R,) int64; see `class_context`."""
        return class_context(tokens, source_latents)

    def velocity(self, x: Tensor, t: Tensor, context: ClassContext) -> Tensor:
        """Velocity (R, C, h, w) of noisy latents x (R, C, h, w) at times t (R,)."""
        inputs = {"latents": x, "t": t, "labels": context.labels}
        return self._velocity.run(inputs, (x.shape,))[0]


OnnxDenoiser: TypeAlias = OnnxTextDenoiser | OnnxClassDenoiser


@dataclass(frozen=True)
class OnnxModel:
    """A loaded export; `denoiser` and `guide` are None where the bundle has none."""

    manifest: Manifest
    sessions: Sessions
    num_bytes: int
    denoiser: OnnxDenoiser | None = None
    guide: OnnxClassDenoiser | None = None

    def encode(self, images: Tensor) -> Posterior:
        """Posterior over normalised latents of images (B, 3, H, W) of the model's size."""
        shape = (len(images), *self.manifest.latent_shape)
        return Posterior(*self.sessions["encode"].run({"images": images}, (shape, shape)))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) of normalised latents of the model's shape."""
        shape = (len(latents), 3, *self.manifest.image_size)
        return self.sessions["decode"].run({"latents": latents}, (shape,))[0]


@dataclass(frozen=True)
class TensorRTOptions:
    """What onnxruntime's TensorRT provider builds its engines for, when a session is loaded.

    max_rows: of a batch; lengths: the largest of the graphs' other axes, by their names; cache:
    folder for engines and timings; without one they are built anew at each start.
    """

    max_rows: int
    lengths: Mapping[str, int] = field(default_factory=dict)
    precision: Precision = "fp32"
    cache: Path | None = None


def load_export(
    directory: Path,
    manifest: Manifest,
    export: Export,
    *,
    device: str = "cpu",
    threads: int = 1,
    tensorrt: TensorRTOptions | None = None,
) -> OnnxModel:
    """Load an export's graphs into onnxruntime; `usable_export` says whether they should be.

    Args:
        threads: of the CPU, for each graph.
        tensorrt: run them on onnxruntime's TensorRT provider.

    Raises:
        BundleError: a file is no graph, the device is missing, or the denoiser's config is wrong.
    """
    from models.onnx_session import GraphSession  # other runtimes go without onnxruntime

    sessions = {
        artifact.graph: GraphSession(
            directory / artifact.files[0].path, device=device, threads=threads, tensorrt=tensorrt
        )
        for artifact in export.artifacts
    }
    return assemble(manifest, sessions, sum(file.bytes for file in export_files(export)))


def assemble(manifest: Manifest, sessions: Sessions, num_bytes: int) -> OnnxModel:
    """The model that loaded graphs make up; num_bytes: memory that they hold.

    Raises:
        BundleError: the denoiser's config is wrong.
    """
    denoiser: OnnxDenoiser | None = None
    guide = None
    if "velocity" in sessions:
        config = denoiser_config(manifest)
        if isinstance(config, ClassDenoiserConfig):
            denoiser = OnnxClassDenoiser(config, sessions["velocity"])
            if "guide_velocity" in sessions:
                guide = OnnxClassDenoiser(config, sessions["guide_velocity"])
        else:
            denoiser = OnnxTextDenoiser(config, sessions)
    return OnnxModel(manifest, sessions, num_bytes, denoiser, guide)
