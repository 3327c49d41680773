"""Loss terms of the tokenizer stages: functions of tensors."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def image_gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring rows and columns of images (B, 3, H, W)."""
    return images[..., 1:, :] - images[..., :-1, :], images[..., 1:] - images[..., :-1]


def gradient_loss(images: Tensor, targets: Tensor, num_scales: int = 3) -> Tensor:
    """L1 between image gradients at full, half, quarter ... size: keeps edges where they are.

    Stands in for LPIPS where no VGG weights are at hand.
    """
    total = images.new_zeros(())
    for _ in range(num_scales):
        for ours, wanted in zip(image_gradients(images), image_gradients(targets), strict=True):
            total = total + functional.l1_loss(ours, wanted)
        images, targets = functional.avg_pool2d(images, 2), functional.avg_pool2d(targets, 2)
    return total / (2 * num_scales)


ALL_ROWS = slice(None)


def noise_tokens(
    tokens: Tensor,
    tau: float,
    generator: torch.Generator,
    rows: slice = ALL_ROWS,
    num_rows: int | None = None,
) -> Tensor:
    """tokens + sigma * noise with sigma ~ tau * U(0, 1), one per sample. Source: RAE, RPiAE.

    tokens may be some `rows` of a batch of `num_rows`: their noise is what it is in the batch.
    """
    num_rows = num_rows or len(tokens)
    sigma = tau * torch.rand(num_rows, 1, 1, generator=generator)
    noise = torch.randn(num_rows, *tokens.shape[1:], generator=generator)
    return tokens + (sigma[rows] * noise[rows]).to(tokens)


def kl_mean(mean: Tensor, logvar: Tensor) -> Tensor:
    """mean(mu^2 + var - 1 - logvar) over all elements: as published, without the factor 1/2."""
    return (mean.square() + logvar.exp() - 1 - logvar).mean()


def adaptive_weight(
    base_loss: Tensor,
    other_loss: Tensor,
    parameter: Tensor,
    *,
    weight: float = 0.75,
    eps: float = 1e-4,
    cap: float = 1e5,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """weight * |gradient of base_loss| / (|gradient of other_loss| + eps), detached, capped.

    Both gradients are taken at one parameter that both losses depend on; the graph is kept.
    `total` gives the whole batch's gradient from that of a part.
    Source: RPiAE (arXiv 2603.19206). The published weights were trained with the last block's
    LayerScale as the parameter; its MLP's output weight is what was meant.
    """
    gradients = [
        torch.autograd.grad(loss, parameter, retain_graph=True)[0]
        for loss in (base_loss, other_loss)
    ]
    if total is not None:
        gradients = [total(gradient) for gradient in gradients]
    norms = [gradient.norm() for gradient in gradients]
    return (weight * (norms[0] / (norms[1] + eps)).clamp(0, cap)).detach()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge: 0.5 * (mean relu(1 - real) + mean relu(1 + fake)) of logits of any shape."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """-mean of the logits of painted images: what the pixel decoder is asked to lower."""
    return -fake.mean()


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Pairwise sigmoid loss of matching unit rows (B, D). Source: SigLIP (arXiv 2303.15343)."""
    logits = images @ texts.T * scale.exp() + bias
    signs = 2 * torch.eye(len(logits)) - 1
    return -functional.logsigmoid(signs * logits).sum(1).mean()
