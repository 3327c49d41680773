"""RPiAE: representation encoder, variational bridge and pixel decoder in one tokenizer.

Source: RPiAE (arXiv 2603.19206). Token noise, pivot and teacher belong to training, not here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.bridge import BridgeConfig, BridgeDecoder, BridgeEncoder, Posterior
from models.decoder import PixelDecoder, PixelDecoderConfig
from models.encoder import SmallViT, SmallViTConfig


@dataclass(frozen=True, kw_only=True)
class RPiAEConfig:
    """The three parts; their widths must fit together."""

    encoder: SmallViTConfig
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

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, h, w)."""
        return (self.bridge.latent_width, self.encoder.grid, self.encoder.grid)


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
        self.encoder = SmallViT(config.encoder)
        self.bridge_encoder = BridgeEncoder(config.bridge)
        self.bridge_decoder = BridgeDecoder(config.bridge)
        self.decoder = PixelDecoder(config.decoder)
        self.register_buffer("latents_mean", torch.zeros(config.bridge.latent_width))
        self.register_buffer("latents_std", torch.ones(config.bridge.latent_width))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, h, w)."""
        return self.config.latent_shape

    def encode(self, images: Tensor) -> Posterior:
        """Posterior over normalized latents for images in [0, 1].

        Args:
            images: (B, 3, H, W); any size, resized to the encoder's input (bicubic).

        Returns:
            Posterior over (B, D, h, w). Use `.mean` for serving.

        Raises:
            ValueError: images is not (B, 3, H, W).
        """
        posterior = self.bridge_encoder(self.encoder(images))
        mean = (posterior.mean - self.latents_mean) / self.latents_std
        logvar = posterior.logvar - 2 * self.latents_std.log()
        return Posterior(self._to_map(mean), self._to_map(logvar))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [0, 1] and not clamped, of normalized latents (B, D, h, w).

        Raises:
            ValueError: latents do not have the shape (B, *latent_shape).
        """
        if latents.ndim != 4 or tuple(latents.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"latents must be (B, {', '.join(map(str, self.latent_shape))}), "
                f"got {tuple(latents.shape)}"
            )
        tokens = latents.flatten(2).transpose(1, 2) * self.latents_std + self.latents_mean
        images: Tensor = self.decoder(self.bridge_decoder(tokens))
        return images

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

    def _to_map(self, tokens: Tensor) -> Tensor:
        grid = self.config.encoder.grid
        return tokens.transpose(1, 2).reshape(len(tokens), -1, grid, grid)  # (B, D, h, w)
