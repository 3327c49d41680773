"""Sizes of published files, as JSON: for checkpoints of the published layout at other sizes.

A section that is absent takes the published sizes.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from models.autoencoder import RPiAEConfig
from models.class_denoiser import ClassDenoiserConfig
from models.manifest import BundleError
from models.presets import BRIDGE_C64, DINOV2_B, LIGHTNINGDIT_XL, VIT_XL
from models.transport import default_shift

_HEAD_WIDTH = 64  # the bridge has one head for each 64 channels, at most eight
_MAX_HEADS = 8


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderDims(_Section):
    """DINOv2 with registers. image_size: side that the stored positions are for; input_size: side
    of what the encoder sees.
    """

    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    image_size: PositiveInt = 518
    patch_size: PositiveInt = 14
    num_register_tokens: int = Field(default=4, ge=0)
    input_size: PositiveInt = 224
    image_mean: tuple[float, float, float] = DINOV2_B.pixel_mean
    image_std: tuple[float, float, float] = DINOV2_B.pixel_std


class DecoderDims(_Section):
    """The pixel decoder, in the words of its own config file."""

    decoder_hidden_size: PositiveInt = 1152
    decoder_num_hidden_layers: PositiveInt = 28
    decoder_num_attention_heads: PositiveInt = 16
    decoder_intermediate_size: PositiveInt = 4096
    patch_size: PositiveInt = 16
    layer_norm_eps: float = 1e-12
    hidden_act: Literal["gelu"] = "gelu"
    qkv_bias: Literal[True] = True


class BridgeDims(_Section):
    """The variational bridge."""

    latent_dim: PositiveInt = 64
    decoder_layers: PositiveInt = 6


class DenoiserDims(_Section):
    """LightningDiT."""

    input_size: PositiveInt = 16
    hidden_size: PositiveInt = 1152
    depth: PositiveInt = 28
    num_heads: PositiveInt = 16
    num_classes: PositiveInt = 1000
    patch_size: Literal[1] = 1
    in_channels: PositiveInt = 64
    mlp_ratio: float = Field(default=4.0, ge=4.0, le=4.0)
    qk_norm: Literal[True] = True
    swiglu: Literal[True] = True
    rope: Literal[True] = True
    rmsnorm: Literal[True] = True


class PublishedDims(BaseModel):
    """All sizes. time_shift: the sampler's timestep shift, by default that of the latents' size."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # seeds and notes may stand beside

    encoder: EncoderDims = EncoderDims()
    decoder: DecoderDims = DecoderDims()
    bridge: BridgeDims = BridgeDims()
    dit: DenoiserDims = DenoiserDims()
    time_shift: float | None = Field(default=None, ge=1)

    @classmethod
    def read(cls, path: Path) -> "PublishedDims":
        """Sizes from a JSON file.

        Raises:
            BundleError: unreadable, or a field that does not fit.
        """
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{path}: {field or '(root)'}: {first['msg']}") from None
        except ValueError as error:
            raise BundleError(f"{path} is not valid JSON: {error}") from None

    def autoencoder(self) -> RPiAEConfig:
        """The tokenizer's config.

        Raises:
            ValueError: sizes that do not fit together.
        """
        encoder, decoder = self.encoder, self.decoder
        width, grid = encoder.hidden_size, encoder.input_size // encoder.patch_size
        return RPiAEConfig(
            encoder=replace(
                DINOV2_B,
                image_size=encoder.input_size,
                patch_size=encoder.patch_size,
                width=width,
                depth=encoder.num_hidden_layers,
                num_heads=encoder.num_attention_heads,
                hidden_width=4 * width,
                position_grid=encoder.image_size // encoder.patch_size,
                num_registers=encoder.num_register_tokens,
                pixel_mean=encoder.image_mean,
                pixel_std=encoder.image_std,
            ),
            bridge=replace(
                BRIDGE_C64,
                token_width=width,
                latent_width=self.bridge.latent_dim,
                num_heads=min(_MAX_HEADS, max(1, width // _HEAD_WIDTH)),
                encoder_hidden_width=width,
                decoder_depth=self.bridge.decoder_layers,
            ),
            decoder=replace(
                VIT_XL,
                token_width=width,
                grid=grid,
                patch_size=decoder.patch_size,
                width=decoder.decoder_hidden_size,
                depth=decoder.decoder_num_hidden_layers,
                num_heads=decoder.decoder_num_attention_heads,
                hidden_width=decoder.decoder_intermediate_size,
                norm_eps=decoder.layer_norm_eps,
                pixel_mean=encoder.image_mean,
                pixel_std=encoder.image_std,
            ),
        )

    def denoiser(self) -> ClassDenoiserConfig:
        """The class-conditional denoiser's config.

        Raises:
            ValueError: sizes that do not fit together.
        """
        dit = self.dit
        return replace(
            LIGHTNINGDIT_XL,
            latent_channels=dit.in_channels,
            latent_side=dit.input_size,
            width=dit.hidden_size,
            depth=dit.depth,
            num_heads=dit.num_heads,
            num_classes=dit.num_classes,
        )

    def timestep_shift(self) -> float:
        """The sampler's shift, 2 for the published models."""
        if self.time_shift is not None:
            return self.time_shift
        return default_shift(self.denoiser().latent_shape)
