"""The published sizes of every module, as differences from a base.

Sources: RPiAE (arXiv 2603.19206) and its configs for tokenizer and decoders; LightningDiT (arXiv
2501.01423), whose sizes are those of DiT (arXiv 2212.09748), for the denoisers.
"""

from dataclasses import replace

from models.autoencoder import RPiAEConfig
from models.bridge import BridgeConfig
from models.class_denoiser import ClassDenoiserConfig
from models.decoder import PixelDecoderConfig
from models.encoder import PretrainedEncoderConfig

_HALF = (0.5, 0.5, 0.5)

DINOV2_B = PretrainedEncoderConfig()
SIGLIP2_B = PretrainedEncoderConfig(
    kind="siglip2",
    image_size=256,
    patch_size=16,
    position_grid=16,
    num_registers=0,
    pixel_mean=_HALF,
    pixel_std=_HALF,
)
MAE_B = PretrainedEncoderConfig(
    kind="mae", image_size=256, patch_size=16, position_grid=14, num_registers=0
)
ENCODERS = {"dinov2-b": DINOV2_B, "siglip2-b": SIGLIP2_B, "mae-b": MAE_B}

BRIDGE_C64 = BridgeConfig(
    token_width=768,
    latent_width=64,
    num_heads=8,
    encoder_depth=1,
    decoder_depth=6,
    style="layer-gelu",
    norm_eps=1e-5,
    encoder_hidden_width=768,
    skip_projection=True,
    out_projection=True,
)

VIT_B = PixelDecoderConfig(
    token_width=768,
    grid=16,
    patch_size=16,
    width=768,
    depth=12,
    num_heads=12,
    style="layer-gelu",
    hidden_width=3072,
    norm_eps=1e-12,
    rotary=False,
    class_token=True,
    final_norm=True,
    pixel_mean=DINOV2_B.pixel_mean,
    pixel_std=DINOV2_B.pixel_std,
)
VIT_L = replace(VIT_B, width=1024, depth=24, num_heads=16, hidden_width=4096)
VIT_XL = replace(VIT_L, width=1152, depth=28)
PIXEL_DECODERS = {"vit-b": VIT_B, "vit-l": VIT_L, "vit-xl": VIT_XL}

LIGHTNINGDIT_XL = ClassDenoiserConfig()
LIGHTNINGDIT_L = replace(LIGHTNINGDIT_XL, width=1024, depth=24)
LIGHTNINGDIT_B = replace(LIGHTNINGDIT_XL, width=768, depth=12, num_heads=12)
LIGHTNINGDIT_S = replace(LIGHTNINGDIT_B, width=384, num_heads=6)
CLASS_DENOISERS = {
    "lightningdit-s": LIGHTNINGDIT_S,
    "lightningdit-b": LIGHTNINGDIT_B,
    "lightningdit-l": LIGHTNINGDIT_L,
    "lightningdit-xl": LIGHTNINGDIT_XL,
}

RPIAE_C64 = RPiAEConfig(encoder=DINOV2_B, bridge=BRIDGE_C64, decoder=VIT_XL)
