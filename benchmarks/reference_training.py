"""Training steps as the published trainers take them, to measure ours against.

The same modules and the same losses, in the order and with the calls of research code: gradient
norms for the pivot weight from two more backward passes, PyTorch's default AdamW, averages blended
one parameter after another, frozen ones too, and for the denoiser images encoded in every step.
Source: 360CVGroup/RPiAE at a4c6242, train_stage1 and train_diffusion; RAE (arXiv 2510.11690).
"""

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.autoencoder import RPiAE
from models.decoder import PixelDecoder
from models.text_denoiser import TextDenoiser
from training.config import AutoencoderConfig, DiffusionConfig, OptimConfig
from training.losses import adaptive_weight, kl_mean, noise_tokens
from training.perceptual import ImageLoss
from training.pivot import norm_parameter

Loss = Callable[[], Tensor]


class ReferenceLoop:
    """Optimizer and averages of some modules; a call takes one step on a loss."""

    def __init__(
        self, modules: Sequence[nn.Module], trained: Iterable[nn.Parameter], optim: OptimConfig
    ) -> None:
        self._modules = modules
        self._averages = [copy.deepcopy(module).requires_grad_(False) for module in modules]
        self._parameters = list(trained)
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
        )
        self._clip = optim.clip

    def __call__(self, loss: Loss) -> float:
        """Gradients, optimizer step, averages; the loss."""
        self._optimizer.zero_grad()
        value = loss()
        value.backward()
        if self._clip:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        with torch.no_grad():
            for average, module in zip(self._averages, self._modules, strict=True):
                pairs = zip(average.parameters(), module.parameters(), strict=True)
                for averaged, latest in pairs:
                    averaged.mul_(0.9978).add_(latest, alpha=1 - 0.9978)
        return float(value.detach())


def pivot_loss(
    config: AutoencoderConfig,
    encoder: nn.Module,
    decoder: PixelDecoder,
    teacher: nn.Module,
    image_loss: ImageLoss,
    images: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Stage 1."""
    tokens = encoder(images)
    painted = decoder(noise_tokens(tokens, config.noise_tau, generator))
    reconstruction = image_loss(painted, images)
    with torch.no_grad():
        wanted = teacher(images)
    pivot = functional.mse_loss(tokens, wanted)
    weight = adaptive_weight(
        reconstruction, pivot, norm_parameter(encoder, "fc2"), weight=config.pivot_weight
    )
    return reconstruction + weight * pivot


def bridge_loss(
    config: AutoencoderConfig, model: RPiAE, images: Tensor, generator: torch.Generator
) -> Tensor:
    """Stage 2."""
    with torch.no_grad():
        tokens = model.encoder(images)
    posterior = model.bridge_encoder(noise_tokens(tokens, config.noise_tau, generator))
    noise = torch.randn(posterior.mean.shape, generator=generator)
    bridged = model.bridge_decoder(posterior.mean + (0.5 * posterior.logvar).exp() * noise)
    return (
        config.feature_weight * functional.mse_loss(bridged, tokens)
        + config.kl_weight * kl_mean(posterior.mean, posterior.logvar)
        + config.l1_weight * functional.l1_loss(model.decoder(bridged), images)
    )


def decoder_loss(model: RPiAE, image_loss: ImageLoss, images: Tensor) -> Tensor:
    """Stage 3."""
    with torch.no_grad():
        bridged = model.bridge_decoder(model.bridge_encoder(model.encoder(images)).mean)
    return image_loss(model.decoder(bridged), images)


def diffusion_loss(
    config: DiffusionConfig,
    denoiser: TextDenoiser,
    latents: Tensor,
    prompts: Tensor,
    shift: float,
    generator: torch.Generator,
) -> Tensor:
    """Stage 4, text-to-image: x = (1 - t) latents + t noise, target noise - latents."""
    u = torch.sigmoid(torch.randn(len(latents), generator=generator))
    t = shift * u / (1 + (shift - 1) * u)
    noise = torch.randn(latents.shape, generator=generator)
    at = t[:, None, None, None]
    velocity = denoiser.velocity((1 - at) * latents + at * noise, t, denoiser.prefill(prompts))
    return (velocity - (noise - latents)).square().mean()
