"""FlashAttention takes no mask: which attentions have one."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig
from models.decoder import PixelDecoder, PixelDecoderConfig
from models.encoder import SmallViT, SmallViTConfig
from models.text_denoiser import TextDenoiser, TextDenoiserConfig


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """The mask of every attention, in order."""
    found: list[Tensor | None] = []
    attend = functional.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        found.append(attn_mask)
        return attend(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noted)
    return found


@torch.inference_mode()
def test_pictures_are_seen_without_masks(masks: list[Tensor | None]) -> None:
    denoiser = ClassDenoiser(
        ClassDenoiserConfig(
            latent_channels=4, latent_side=2, width=16, depth=1, num_heads=2, num_classes=2
        )
    )
    denoiser(torch.zeros(1, 4, 2, 2), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    encoder = SmallViT(SmallViTConfig(image_size=16, patch_size=8, width=16, depth=1, num_heads=2))
    encoder(torch.zeros(1, 3, 16, 16))
    decoder: nn.Module = PixelDecoder(
        PixelDecoderConfig(token_width=16, grid=2, patch_size=8, width=16, depth=1, num_heads=2)
    )
    decoder(torch.zeros(1, 4, 16))
    assert masks == [None] * 3


@torch.inference_mode()
def test_prompts_of_different_lengths_need_them(masks: list[Tensor | None]) -> None:
    config = TextDenoiserConfig(
        latent_channels=4, latent_side=4, width=16, depth=1, num_heads=2, text_width=16,
        vocabulary_size=9, max_prompt_tokens=5,
    )  # fmt: skip
    denoiser = TextDenoiser(config)
    context = denoiser.prefill(torch.tensor([[3, 4, 5], [6, 0, 0]]))
    masks.clear()
    denoiser.velocity(torch.zeros(2, 4, 4, 4), torch.zeros(2), context)
    (mask,) = masks
    assert mask is not None
    assert mask[:, 0, 0].sum(1).tolist() == [3 + 4, 1 + 4]
