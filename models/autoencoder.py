"""RPiAE: representation encoder, variational bridge and pixel decoder in one tokenizer.

Source: RPiAE (arXiv 2603.19206). Token noise, pivot and teacher belong to training, not here.
Its calls have the shape of diffusers' autoencoders, so that it can stand where one of those does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from models.bridge import BridgeConfig, Posterior, build_bridge
from models.decoder import PixelDecoder, PixelDecoderConfig
from models.encoder import EncoderConfig, build_encoder, encoder_config
from models.manifest import (
    AUTOENCODER_FILE,
    BundleError,
    Manifest,
    check_name,
    list_files,
    read_manifest,
    write_manifest,
)
from models.positions import Grid
from models.transport import default_shift
from models.weights import load_weights, save_weights, without_weights

_PARTS: dict[str, Callable[..., Any]] = {
    "encoder": encoder_config,
    "bridge": BridgeConfig,
    "decoder": PixelDecoderConfig,
}


@dataclass(frozen=True, kw_only=True)
class RPiAEConfig:
    """The three parts; their widths must fit together."""

    encoder: EncoderConfig
    bridge: BridgeConfig
    decoder: PixelDecoderConfig

    def __post_init__(self) -> None:
        widths = {self.encoder.width, self.bridge.token_width, self.decoder.token_width}
        if len(widths) != 1:
            raise ValueError(
                f"token widths differ: encoder {self.encoder.width}, "
                f"bridge {self.bridge.token_width}, decoder {self.decoder.token_width}"
            )
        if self.encoder.grid != self.decoder.grid:
            raise ValueError(
                f"encoder grid {self.encoder.grid} and decoder grid {self.decoder.grid} differ"
            )

    @classmethod
    def from_fields(cls, model: Mapping[str, Mapping[str, Any]]) -> Self:
        """The config that a manifest's `model` states.

        Raises:
            BundleError: names the part that is missing or does not fit.
        """
        parts = {}
        for name, build in _PARTS.items():
            try:
                parts[name] = build(**model[name])
            except KeyError:
                raise BundleError(f"manifest: model lacks {name}") from None
            except (TypeError, ValueError) as error:
                raise BundleError(f"manifest: model.{name}: {error}") from None
        try:
            return cls(**parts)
        except ValueError as error:
            raise BundleError(f"manifest: model: {error}") from None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, h, w)."""
        return (self.bridge.latent_width, self.encoder.grid, self.encoder.grid)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the model was trained on."""
        return self.decoder.grid * self.decoder.patch_size

    # What diffusers' pipelines ask the config of an autoencoder.

    @property
    def latent_channels(self) -> int:
        """D."""
        return self.bridge.latent_width

    @property
    def scaling_factor(self) -> float:
        """1: latents are normalised inside."""
        return 1.0

    @property
    def shift_factor(self) -> float:
        """0: latents are normalised inside."""
        return 0.0

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """One entry more than the times that the side of a latent cell halves to one pixel."""
        return (self.decoder.width,) * self.decoder.patch_size.bit_length()


class EncoderOutput(NamedTuple):
    """What `RPiAE.encode` gives: by name, or as a tuple of one."""

    latent_dist: Posterior


class DecoderOutput(NamedTuple):
    """What `RPiAE.decode` gives: images (B, 3, H, W), by name, or as a tuple of one."""

    sample: Tensor


class RPiAE(nn.Module):
    """Images <-> normalized latents (B, D, h, w).

    Latents leave `encode` and enter `decode` normalized by the buffers `latents_mean` and
    `latents_std` (D,), which start as 0 and 1 and are set once from data.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: RPiAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.bridge_encoder, self.bridge_decoder = build_bridge(config.bridge)
        self.decoder = PixelDecoder(config.decoder)
        self.register_buffer("latents_mean", torch.zeros(config.bridge.latent_width))
        self.register_buffer("latents_std", torch.ones(config.bridge.latent_width))

    @classmethod
    def from_pretrained(cls, bundle: str | Path) -> Self:
        """The tokenizer of a bundle, in eval mode and without gradients.

        Raises:
            BundleError: no bundle there, or its weights do not fit its manifest.
        """
        directory = Path(bundle)
        config = RPiAEConfig.from_fields(read_manifest(directory).model)
        model = without_weights(lambda: cls(config))
        load_weights(model, directory / AUTOENCODER_FILE)
        return model.eval().requires_grad_(False)

    def save_pretrained(
        self, folder: str | Path, *, name: str | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Write a bundle that holds this tokenizer alone; `rpiae serve` serves it.

        `name`: of the model; absent: the folder's own.

        Raises:
            BundleError: the name holds other characters than letters, digits, `.`, `_`, `-`.
        """
        directory = Path(folder)
        manifest = Manifest(
            name=check_name(name or directory.resolve().name),
            tasks=["encode", "decode"],
            timestep_shift=default_shift(self.latent_shape),
            **self.manifest_fields(),
        )
        directory.mkdir(parents=True, exist_ok=True)
        save_weights(self, directory / AUTOENCODER_FILE, dtype)
        files = list_files(directory, [AUTOENCODER_FILE])
        write_manifest(directory, manifest.model_copy(update={"files": files}))

    def manifest_fields(self) -> dict[str, Any]:
        """What a bundle's manifest says of its tokenizer."""
        size = self.config.image_size
        return {
            "image_size": (size, size),
            "latent_shape": self.latent_shape,
            "other_sizes": True,
            "latents_mean": self.latents_mean.tolist(),
            "latents_std": self.latents_std.tolist(),
            "model": {name: asdict(getattr(self.config, name)) for name in _PARTS},
        }

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, h, w)."""
        return self.config.latent_shape

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.latents_mean.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next(self.decoder.parameters()).dtype

    def encode(
        self, images: Tensor, return_dict: bool = True, *, grid: Grid | None = None
    ) -> EncoderOutput:
        """Posterior over normalised latents for images in [0, 1].

        Args:
            images: (B, 3, H, W); any size, stretched to the encoder's input (bicubic).
            return_dict: accepted as diffusers' autoencoders do; the output serves as both.
            grid: (rows, columns) of the latents; by default the grid the model was trained on.

        Returns:
            `latent_dist` over (B, D, rows, columns). Use its `.mean` for serving.

        Raises:
            ValueError: images is not (B, 3, H, W).
        """
        del return_dict
        grid = grid or (self.config.encoder.grid, self.config.encoder.grid)
        posterior = self.bridge_encoder(self.encoder(images, grid))
        mean = (posterior.mean - self.latents_mean) / self.latents_std
        logvar = posterior.logvar - 2 * self.latents_std.log()
        return EncoderOutput(Posterior(_to_map(mean, grid), _to_map(logvar, grid)))

    def decode(self, latents: Tensor, return_dict: bool = True) -> DecoderOutput:
        """Images of normalised latents (B, D, h, w); h and w need not be the trained grid's.

        Args:
            latents: (B, D, h, w).
            return_dict: accepted as diffusers' autoencoders do; the output serves as both.

        Returns:
            `sample`: (B, 3, H, W), about [0, 1] and not clamped.

        Raises:
            ValueError: latents are not (B, D, h, w).
        """
        del return_dict
        channels = self.latent_shape[0]
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(f"latents must be (B, {channels}, h, w), got {tuple(latents.shape)}")
        tokens = latents.flatten(2).transpose(1, 2) * self.latents_std + self.latents_mean
        grid = (latents.shape[-2], latents.shape[-1])
        return DecoderOutput(self.decoder(self.bridge_decoder(tokens), grid))

    @torch.no_grad()
    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the latent statistics: one value for all channels, or one per channel.

        Raises:
            ValueError: a standard deviation is not positive.
        """
        if min(std) <= 0:
            raise ValueError(f"latents_std must be positive, got {min(std)}")
        self.latents_mean.copy_(torch.tensor(mean).expand_as(self.latents_mean))
        self.latents_std.copy_(torch.tensor(std).expand_as(self.latents_std))


def _to_map(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)  # (B, D, h, w)
