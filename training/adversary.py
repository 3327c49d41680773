"""The adversarial part of stages 1 and 3: when it acts, how strongly, and how it learns.

The discriminator looks at augmented images through a frozen encoder; it learns from
`discriminator_start` on, and the pixel decoder feels it from `gan_start` on.
Source: RPiAE (arXiv 2603.19206); hinge losses, adaptive weight as in VQGAN (arXiv 2012.09841).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from models.discriminator import DinoConfig, DinoEncoder, Discriminator, FrozenFeatures
from models.weights import check_tensors, without_weights
from training.augment import augment
from training.batches import torch_generator
from training.config import AutoencoderConfig
from training.losses import adaptive_weight, discriminator_loss, generator_loss
from training.optim import make_optimizer, update
from training.processes import Processes
from training.weight_files import read_tensors

_GAN_EPS = 1e-6
_GAN_CAP = 1e4
# A DINO block in its own file and in transformers; queries, keys and values are one tensor there.
_BLOCK_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_OUTER_NAMES = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


def dino_names(depth: int) -> dict[str, tuple[str, ...]]:
    """Name in DINO's own file -> names in transformers, of which its tensor is the stack."""
    names = {theirs: (ours,) for theirs, ours in _OUTER_NAMES.items()}
    for index in range(depth):
        for kind in ("weight", "bias"):
            for theirs, ours in _BLOCK_NAMES.items():
                names[f"blocks.{index}.{theirs}.{kind}"] = (f"layers.{index}.{ours}.{kind}",)
            names[f"blocks.{index}.attn.qkv.{kind}"] = tuple(
                f"layers.{index}.attention.{part}_proj.{kind}" for part in "qkv"
            )
    return names


def load_dino(path: Path, config: DinoConfig | None = None) -> DinoEncoder:
    """DINO's ViT with the weights of a local file, in the layout of its authors and of timm.

    The published discriminator sets the keys' biases to zero; that changes no attention, so the
    file is taken as it is.

    Raises:
        CheckpointError: the file is missing or unreadable.
        BundleError: missing, unexpected or misshaped tensors; all are listed.
    """
    config = config or DinoConfig()
    tensors = read_tensors(path, "dino_weights")
    encoder = without_weights(lambda: DinoEncoder(config))
    state = encoder.model.state_dict()
    names = dino_names(config.depth)
    expected = {theirs: torch.cat([state[name] for name in ours]) for theirs, ours in names.items()}
    check_tensors(expected, tensors, f"dino_weights: {path}")
    loaded: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        parts = tensors[theirs].float().chunk(len(ours))
        loaded |= dict(zip(ours, (part.clone() for part in parts), strict=True))
    encoder.model.load_state_dict(loaded, assign=True)
    return encoder


class Adversary:
    """Discriminator, its optimizer, and what it says to the pixel decoder."""

    def __init__(
        self, config: AutoencoderConfig, frozen_encoder: nn.Module, processes: Processes
    ) -> None:
        """`frozen_encoder`: what the heads look through where no DINO weights are given.

        It is shared, not copied, and must not change while training.

        With a `gan_weight` of 0 nothing is built, and no step has a part for it.

        Raises:
            CheckpointError, BundleError: `dino_weights` is not there or does not fit.
        """
        self.config, self.processes = config, processes
        self.name = "none"
        self.modules: dict[str, nn.Module] = {}
        """What a checkpoint keeps of it, by name."""
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        if not config.gan_weight:
            return
        encoder, width = frozen_encoder, config.model.encoder.width
        self.name = f"heads on the run's frozen encoder, {config.model.encoder.kind}"
        if config.dino_weights is not None:
            encoder = load_dino(Path(config.dino_weights))
            width = encoder.config.width
            self.name = f"heads on DINO, weights {config.dino_weights}"
        self.features = FrozenFeatures(encoder).to(processes.device)
        self.discriminator = Discriminator(width).to(processes.device)
        self.optimizer = make_optimizer(self.discriminator.parameters(), config.discriminator_optim)
        self.modules["discriminator"] = self.discriminator
        self.optimizers["discriminator_optimizer"] = self.optimizer

    def learns(self, step: int) -> bool:
        """Whether the discriminator is updated in this step."""
        return bool(self.modules) and step >= self.config.discriminator_start

    def felt(self, step: int) -> bool:
        """Whether the pixel decoder feels the discriminator in this step."""
        return bool(self.modules) and step >= self.config.gan_start

    def _maps(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        rows = self.processes.parts()[0]
        seen = augment(2 * images - 1, generator, rows, self.config.batch_size)
        maps: list[Tensor] = self.features((seen + 1) / 2)
        return maps

    def _share(self, images: Tensor) -> float:
        """Part of the batch that these images are: losses are means over all of it."""
        return len(images) / self.config.batch_size

    def painter_term(
        self, base_loss: Tensor, painted: Tensor, last_weight: Tensor, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """What to add to the pixel decoder's loss, and what to log of it.

        Args:
            base_loss: the other losses of `painted`, as its share of the batch's mean.
            painted: this process's (B, 3, H, W), about [0, 1], with its graph.
            last_weight: weight of the pixel decoder's last layer, where gradients are compared.
            step: chooses the augmentation.
        """
        # In eval mode the heads' power iterations stand still: only their own update moves them.
        self.discriminator.eval().requires_grad_(False)
        generator = torch_generator(self.config.seed, "augment-painter", step)
        logits = self.discriminator(self._maps(painted, generator))
        loss = self._share(painted) * generator_loss(logits)
        weight = adaptive_weight(
            base_loss,
            loss,
            last_weight,
            weight=self.config.gan_weight,
            eps=_GAN_EPS,
            cap=_GAN_CAP,
            total=self.processes.sum,
        )
        return weight * loss, {"gan": self._total(loss), "gan_weight": weight.item()}

    def _total(self, value: Tensor) -> float:
        return self.processes.sum(value.detach()).item()

    def learn(self, images: Tensor, painted: Tensor, step: int) -> dict[str, float]:
        """Update the discriminator once; this process's images, `painted` without noise.

        Painted images are clamped and rounded to 8 bit like real ones, so that rounding does not
        give them away.
        """
        self.discriminator.train().requires_grad_(True)
        painted = (painted.detach().clamp(0, 1) * 255).round() / 255
        generator = torch_generator(self.config.seed, "augment-discriminator", step)
        with self.processes.autocast():
            with torch.no_grad():
                maps = [self._maps(batch, generator) for batch in (images, painted)]
            real, fake = (self.discriminator(part).float() for part in maps)
        share = self._share(images)
        loss = share * discriminator_loss(real, fake)
        loss.backward()
        self.processes.sum_gradients(self.discriminator.parameters())
        terms = {
            "discriminator": self._total(loss),
            "logits_real": self._total(share * real.mean()),
            "logits_fake": self._total(share * fake.mean()),
        }
        update(
            self.optimizer,
            step,
            self.config.steps,
            self.config.discriminator_optim,
            terms,
            self.config.seed,
            self.config.discriminator_start,
        )
        return terms
