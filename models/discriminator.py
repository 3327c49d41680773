"""The adversary of the pixel decoder: frozen features and small trained heads on their tokens.

B batch, N tokens, C width. The encoder below the heads is frozen; only the heads learn.
Source: RPiAE (arXiv 2603.19206) and RAE (arXiv 2510.11690), whose discriminator is that of
StyleGAN-T (arXiv 2301.09515) on DINO ViT-S/8 (arXiv 2104.14294).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

NUM_MAPS = 5
_PIXEL_MEAN = (0.485, 0.456, 0.406)
_PIXEL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """DINO's ViT; the defaults are those of ViT-S/8, as the discriminator of the paper uses it."""

    image_size: int = 224
    patch_size: int = 8
    width: int = 384
    depth: int = 12
    num_heads: int = 6

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")


class DinoEncoder(nn.Module):
    """DINO's ViT through transformers, random until its weights are loaded."""

    num_prefix_tokens = 1  # the class token
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        # transformers takes seconds to import; only runs that use DINO pay for that.
        from transformers import ViTConfig, ViTModel

        self.config = config
        family = ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.width,
            image_size=config.image_size,
            patch_size=config.patch_size,
            layer_norm_eps=1e-6,
            hidden_act="gelu_pytorch_tanh",  # of the discriminator; DINO itself used the exact GELU
        )
        self.model = ViTModel(family, add_pooling_layer=False)
        for name, values in (("pixel_mean", _PIXEL_MEAN), ("pixel_std", _PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> hidden tokens (B, 1 + N, C), the class token first.

        Images are stretched to the square input, bilinear.
        """
        size = (self.config.image_size, self.config.image_size)
        images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
        normalised = (images - self.pixel_mean) / self.pixel_std
        hidden: Tensor = self.model(normalised).last_hidden_state
        return hidden


class FrozenFeatures(nn.Module):
    """Five token maps of a frozen encoder: what its last block gives, then four on the way there.

    The four are spread evenly over the depth; the last of them is the last block again, as in the
    paper's discriminator (blocks 2, 5, 8 and 11 of 12). No norm is applied to any.
    """

    def __init__(self, encoder: nn.Module) -> None:
        """`encoder` says in `num_prefix_tokens` how many tokens before the patches to drop.

        Raises:
            ValueError: the encoder's blocks are not found.
        """
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        blocks = _blocks(encoder)
        depth = len(blocks)
        taps = [math.ceil(depth * part / 4) - 1 for part in (1, 2, 3, 4)]
        self._blocks = [blocks[tap] for tap in taps]  # a plain list: no second registration
        num_prefix_tokens = encoder.num_prefix_tokens
        assert isinstance(num_prefix_tokens, int)
        self._num_prefix_tokens = num_prefix_tokens

    def train(self, mode: bool = True) -> "FrozenFeatures":
        """Stay in eval mode whatever the parent does."""
        del mode
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [0, 1] -> five maps (B, C, N); gradients reach the images."""
        found: dict[int, Tensor] = {}
        handles = [
            block.register_forward_hook(_keeper(found, index))
            for index, block in enumerate(self._blocks)
        ]
        try:
            self.encoder(images)
        finally:
            for handle in handles:
                handle.remove()
        maps = [found[index][:, self._num_prefix_tokens :] for index in range(len(self._blocks))]
        return [tokens.transpose(1, 2) for tokens in (maps[-1], *maps)]


def _keeper(found: dict[int, Tensor], index: int) -> Callable[[nn.Module, object, object], None]:
    def keep(module: nn.Module, inputs: object, output: object) -> None:
        del module, inputs
        tokens = output[0] if isinstance(output, tuple) else output
        assert isinstance(tokens, Tensor)
        found[index] = tokens

    return keep


def _blocks(encoder: nn.Module) -> Sequence[nn.Module]:
    """The encoder's transformer blocks: its outermost list of modules."""
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module):
            return list(module)
    raise ValueError(f"{type(encoder).__name__} has no list of blocks to take token maps from")


class Head(nn.Module):
    """Logits of one token map: every layer is spectrally normed, every norm is of one image."""

    def __init__(self, width: int, kernel_size: int = 9) -> None:
        super().__init__()
        self.mix = _Layer(width, 1)
        self.look = _Layer(width, kernel_size)
        self.to_logits = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, C, N) -> (B, N)."""
        x = self.mix(tokens)
        x = (x + self.look(x)) / math.sqrt(2)
        logits: Tensor = self.to_logits(x)
        return logits[:, 0]


class _Layer(nn.Module):
    """Convolution along the tokens, norm over the tokens of each image and channel, LeakyReLU."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = spectral_norm(
            nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, padding_mode="circular")
        )
        # Batch norm over virtual batches of one image, as published.
        self.norm = nn.InstanceNorm1d(width, eps=1e-6, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, N)."""
        return functional.leaky_relu(self.norm(self.conv(x)), 0.2)


class Discriminator(nn.Module):
    """One head per token map; positive logits say that a patch is real."""

    def __init__(self, width: int, num_maps: int = NUM_MAPS) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width) for _ in range(num_maps))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, N) of `FrozenFeatures` -> logits (B, maps * N)."""
        pairs = zip(self.heads, maps, strict=True)
        return torch.cat([head(tokens) for head, tokens in pairs], dim=1)
