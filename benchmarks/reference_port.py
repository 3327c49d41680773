"""The published computation step by step in plain eager PyTorch, to measure against.

It follows the reference implementation as research code does it: separate queries, keys and
values, attention as two matrix products around a softmax, norms written out, float32. It reads
tensors by their published names, so both sides run the same weights.
Source: 360CVGroup/RPiAE at a4c6242, RPiAE_VB and LightningDiT; LightningDiT arXiv 2501.01423.

B images, N tokens, C width, H heads, D head width.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from export.dims import PublishedDims

Weights = Mapping[str, Tensor]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    """A layer's output."""
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def layer_norm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    """LayerNorm with affine."""
    shape = (x.shape[-1],)
    return functional.layer_norm(
        x, shape, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=eps
    )


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """(B, N, C) of queries, keys and values (B, N, C): softmax(q k^T / sqrt(D)) v."""
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    return _attend(q, k, v)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = functional.softmax(scores, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def torch_attention(x: Tensor, weights: Weights, name: str, num_heads: int) -> Tensor:
    """nn.MultiheadAttention, written out."""
    qkv = functional.linear(x, weights[f"{name}.in_proj_weight"], weights[f"{name}.in_proj_bias"])
    return linear(attention(*qkv.chunk(3, dim=-1), num_heads), weights, f"{name}.out_proj")


def encode(images: Tensor, weights: Weights, dims: PublishedDims) -> tuple[Tensor, Tensor]:
    """Posterior mean and logvar (B, D, h, w) of images (B, 3, H, W) in [0, 1]."""
    tokens = encoder_tokens(images, weights, dims)
    num_heads = dims.autoencoder().bridge.num_heads
    name = "vb_feature_encoder"
    normed = layer_norm(tokens, weights, f"{name}.norm1", 1e-5)
    attended = torch_attention(normed, weights, f"{name}.attn", num_heads)
    x = linear(tokens, weights, f"{name}.skip_proj") + attended
    hidden = linear(layer_norm(x, weights, f"{name}.norm2", 1e-5), weights, f"{name}.proj2.0")
    x = x + linear(functional.gelu(hidden), weights, f"{name}.proj2.3")
    mean, logvar = linear(x, weights, f"{name}.to_moments").chunk(2, dim=-1)
    side = dims.encoder.input_size // dims.encoder.patch_size
    mean, logvar = (part.transpose(1, 2).unflatten(-1, (side, side)) for part in (mean, logvar))
    return mean, logvar.clamp(-30, 20)


def encoder_tokens(images: Tensor, weights: Weights, dims: PublishedDims) -> Tensor:
    """(B, N, C) normalised patch tokens of DINOv2 with registers."""
    config = dims.encoder
    size = (config.input_size, config.input_size)
    if images.shape[-2:] != size:
        images = functional.interpolate(images, size=size, mode="bicubic", align_corners=False)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1).to(images)
        for values in (config.image_mean, config.image_std)
    )
    name = "encoder.encoder.embeddings"
    patches = functional.conv2d(
        (images - mean) / std,
        weights[f"{name}.patch_embeddings.projection.weight"],
        weights[f"{name}.patch_embeddings.projection.bias"],
        stride=config.patch_size,
    )
    side = patches.shape[-1]
    first = weights[f"{name}.cls_token"].expand(len(images), -1, -1)
    x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + _positions(weights[f"{name}.position_embeddings"], side)
    registers = weights[f"{name}.register_tokens"].expand(len(images), -1, -1)
    x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
    for index in range(config.num_hidden_layers):
        x = _encoder_layer(x, weights, f"encoder.encoder.encoder.layer.{index}", dims)
    x = functional.layer_norm(x, (x.shape[-1],), eps=1e-6)
    return x[:, 1 + config.num_register_tokens :]


def _positions(positions: Tensor, side: int) -> Tensor:
    stored = math.isqrt(positions.shape[1] - 1)
    grid = positions[:, 1:].unflatten(1, (stored, stored)).permute(0, 3, 1, 2)
    grid = functional.interpolate(
        grid, size=(side, side), mode="bicubic", align_corners=False, antialias=True
    )
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _encoder_layer(x: Tensor, weights: Weights, name: str, dims: PublishedDims) -> Tensor:
    normed = layer_norm(x, weights, f"{name}.norm1", 1e-6)
    inner = f"{name}.attention.attention"
    q, k, v = (linear(normed, weights, f"{inner}.{part}") for part in ("query", "key", "value"))
    attended = attention(q, k, v, dims.encoder.num_attention_heads)
    attended = linear(attended, weights, f"{name}.attention.output.dense")
    x = x + attended * weights[f"{name}.layer_scale1.lambda1"]
    hidden = linear(layer_norm(x, weights, f"{name}.norm2", 1e-6), weights, f"{name}.mlp.fc1")
    hidden = linear(functional.gelu(hidden), weights, f"{name}.mlp.fc2")
    return x + hidden * weights[f"{name}.layer_scale2.lambda1"]


def decode(latents: Tensor, weights: Weights, dims: PublishedDims) -> Tensor:
    """Images (B, 3, H, W) of latents (B, D, h, w)."""
    bridge_heads = dims.autoencoder().bridge.num_heads
    name = "vb_feature_decoder"
    x = linear(latents.flatten(2).transpose(1, 2), weights, f"{name}.in_proj")
    for index in range(dims.bridge.decoder_layers):
        layer = f"{name}.net.{index}"
        normed = layer_norm(x, weights, f"{layer}.norm1", 1e-5)
        x = x + torch_attention(normed, weights, f"{layer}.self_attn", bridge_heads)
        hidden = linear(layer_norm(x, weights, f"{layer}.norm2", 1e-5), weights, f"{layer}.linear1")
        x = x + linear(functional.gelu(hidden), weights, f"{layer}.linear2")
    tokens = linear(x, weights, f"{name}.out_proj")
    return _paint(tokens, weights, dims)


def _paint(tokens: Tensor, weights: Weights, dims: PublishedDims) -> Tensor:
    config = dims.decoder
    x = linear(tokens, weights, "decoder.decoder_embed")
    first = weights["decoder.trainable_cls_token"].expand(len(x), -1, -1)
    x = torch.cat([first, x], dim=1) + weights["decoder.decoder_pos_embed"]
    for index in range(config.decoder_num_hidden_layers):
        x = _decoder_layer(x, weights, f"decoder.decoder_layers.{index}", dims)
    x = layer_norm(x, weights, "decoder.decoder_norm", config.layer_norm_eps)
    x = linear(x, weights, "decoder.decoder_pred")[:, 1:]
    side, patch = math.isqrt(x.shape[1]), config.patch_size
    x = x.unflatten(1, (side, side)).unflatten(-1, (patch, patch, 3))
    images = x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1).to(images)
        for values in (dims.encoder.image_mean, dims.encoder.image_std)
    )
    return images * std + mean


def _decoder_layer(x: Tensor, weights: Weights, name: str, dims: PublishedDims) -> Tensor:
    config = dims.decoder
    normed = layer_norm(x, weights, f"{name}.layernorm_before", config.layer_norm_eps)
    inner = f"{name}.attention.attention"
    q, k, v = (linear(normed, weights, f"{inner}.{part}") for part in ("query", "key", "value"))
    attended = attention(q, k, v, config.decoder_num_attention_heads)
    x = x + linear(attended, weights, f"{name}.attention.output.dense")
    normed = layer_norm(x, weights, f"{name}.layernorm_after", config.layer_norm_eps)
    hidden = functional.gelu(linear(normed, weights, f"{name}.intermediate.dense"))
    return x + linear(hidden, weights, f"{name}.output.dense")


def velocity(
    latents: Tensor, t: Tensor, labels: Tensor, weights: Weights, dims: PublishedDims
) -> Tensor:
    """LightningDiT's velocity (B, C, h, w) at times t (B,) for labels (B,)."""
    name = "x_embedder.proj"
    x = functional.conv2d(latents, weights[f"{name}.weight"], weights[f"{name}.bias"])
    side = x.shape[-1]
    x = x.flatten(2).transpose(1, 2) + weights["pos_embed"]
    angles = 2 * math.pi * t[:, None] * weights["t_embedder.W"][None]
    time = torch.cat([angles.sin(), angles.cos()], dim=-1)
    time = functional.silu(linear(time, weights, "t_embedder.mlp.0"))
    time = linear(time, weights, "t_embedder.mlp.2")
    condition = time + weights["y_embedder.embedding_table.weight"][labels]
    for index in range(dims.dit.depth):
        x = _denoiser_block(x, condition, weights, f"blocks.{index}", dims.dit.num_heads)
    modulation = linear(functional.silu(condition), weights, "final_layer.adaLN_modulation.1")
    shift, scale = modulation.chunk(2, dim=-1)
    x = rms_norm(x, weights["final_layer.norm_final.weight"])
    x = linear(_modulate(x, shift, scale), weights, "final_layer.linear")
    return x.transpose(1, 2).unflatten(-1, (side, side))


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) * weight, statistics in float32."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return normed.type_as(x) * weight


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def _rotate(x: Tensor, weights: Weights) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return x * weights["feat_rope.freqs_cos"] + turned * weights["feat_rope.freqs_sin"]


def _denoiser_block(
    x: Tensor, condition: Tensor, weights: Weights, name: str, num_heads: int
) -> Tensor:
    modulation = linear(functional.silu(condition), weights, f"{name}.adaLN_modulation.1")
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
    normed = _modulate(rms_norm(x, weights[f"{name}.norm1.weight"]), shift1, scale1)
    qkv = linear(normed, weights, f"{name}.attn.qkv").unflatten(-1, (3, num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q = _rotate(rms_norm(q, weights[f"{name}.attn.q_norm.weight"]), weights)
    k = _rotate(rms_norm(k, weights[f"{name}.attn.k_norm.weight"]), weights)
    x = x + gate1.unsqueeze(1) * linear(_attend(q, k, v), weights, f"{name}.attn.proj")
    normed = _modulate(rms_norm(x, weights[f"{name}.norm2.weight"]), shift2, scale2)
    gate, value = linear(normed, weights, f"{name}.mlp.w12").chunk(2, dim=-1)
    hidden = linear(functional.silu(gate) * value, weights, f"{name}.mlp.w3")
    return x + gate2.unsqueeze(1) * hidden
