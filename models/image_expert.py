"""The image expert of TextDenoiser, layer by layer.

R rows, S image tokens, W width, H heads, D head width, N keys of the context.
"""

import torch
from torch import Tensor, nn

from models.layers import Attention, RMSNorm, SwiGLU, modulate, swiglu_width


class ImageExpertBlock(nn.Module):
    """The image expert's part of one layer: adaLN-zero with a shared modulation plus a table."""

    def __init__(self, width: int, num_heads: int, hidden_width: int | None = None) -> None:
        """`hidden_width`: of the feed-forward; absent: that of a plain one of ratio 4's cost."""
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden_width or swiglu_width(width))
        self.modulation = nn.Parameter(torch.zeros(6, width))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rotary: Tensor,
        context: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens after the layer, and this layer's own keys and values.

        x (R, S, W); modulation (R, 6, W); context: keys and values (R, H, N, D) seen beside the
        own ones; mask (R, 1, 1, N + S).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation).unbind(1)
        q, k, v = self.attn.project(modulate(self.norm1(x), shift1, scale1), rotary)
        all_keys, all_values = k, v
        if context is not None:
            all_keys = torch.cat([context[0], k], dim=2)
            all_values = torch.cat([context[1], v], dim=2)
        x = x + gate1[:, None] * self.attn.attend(q, all_keys, all_values, mask)
        x = x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x, k, v
