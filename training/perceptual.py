"""How alike two pictures look: LPIPS on VGG16 where its weights are given, a stand-in otherwise.

B batch, C channels. Images come in [0, 1]; LPIPS itself works on [-1, 1].
Source: LPIPS v0.1 (arXiv 1801.03924), VGG16 (arXiv 1409.1556) in torchvision's layout.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.weights import check_tensors, without_weights
from training.config import AutoencoderConfig
from training.losses import gradient_loss
from training.weight_files import read_tensors

# Output channels of VGG16's convolutions; 0 is a max-pool. A map is taken before each pool.
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
_WIDTHS = (64, 128, 256, 512, 512)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-10

ImageLoss = Callable[[Tensor, Tensor], Tensor]


class Lpips(nn.Module):
    """Distance of VGG16 features under learned channel weights, frozen; random until loaded."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for channels in _VGG16:
            if channels:
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)  # indices, and so names, are torchvision's
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in _WIDTHS)
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, vgg_weights: Path, lpips_weights: Path) -> "Lpips":
        """With the weights of two local files.

        Args:
            vgg_weights: torchvision's vgg16 state dict: `features.N.weight`, `features.N.bias`;
                its `classifier.*` is not used.
            lpips_weights: the linear heads, `lin0.model.1.weight` to `lin4.model.1.weight`.

        Raises:
            CheckpointError: a file is missing or unreadable.
            BundleError: missing, unexpected or misshaped tensors; all are listed.
        """
        model = without_weights(cls)
        vgg = read_tensors(vgg_weights, "vgg_weights")
        vgg = {name: value for name, value in vgg.items() if not name.startswith("classifier.")}
        lin = read_tensors(lpips_weights, "lpips_weights")
        expected = model.state_dict()
        check_tensors(
            {key: value for key, value in expected.items() if key.startswith("features.")},
            vgg,
            f"vgg_weights: {vgg_weights}",
        )
        heads = {f"lin{i}.model.1.weight": f"heads.{i}.weight" for i in range(len(_WIDTHS))}
        check_tensors(
            {theirs: expected[ours] for theirs, ours in heads.items()},
            lin,
            f"lpips_weights: {lpips_weights}",
        )
        state = vgg | {ours: lin[theirs] for theirs, ours in heads.items()}
        model.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
        return model.requires_grad_(False).eval()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """(B, 3, H, W) twice, in [-1, 1], sides of at least 16 pixels -> distances (B,)."""
        maps = zip(self._maps(images), self._maps(targets), strict=True)
        total = images.new_zeros(len(images))
        for head, (ours, wanted) in zip(self.heads, maps, strict=True):
            difference = (_unit(ours) - _unit(wanted)).square()
            total = total + head(difference).float().mean((1, 2, 3))
        return total

    def _maps(self, images: Tensor) -> list[Tensor]:
        x = (images - self.shift) / self.scale
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return [*found, x]


def _unit(x: Tensor) -> Tensor:
    """Feature vectors (B, C, h, w) of length 1; this norm has a gradient also where all are 0."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPS)


def make_image_loss(config: AutoencoderConfig) -> tuple[ImageLoss, str]:
    """L1 plus the perceptual term of images and targets in [0, 1], and what that term is.

    LPIPS where `vgg_weights` and `lpips_weights` are set; else its stand-in, a gradient L1.

    Raises:
        CheckpointError, BundleError: the weights are not there or do not fit.
    """
    if config.vgg_weights is None or config.lpips_weights is None:

        def stand_in(images: Tensor, targets: Tensor) -> Tensor:
            l1 = functional.l1_loss(images, targets)
            return l1 + config.gradient_weight * gradient_loss(images, targets)

        return stand_in, "gradient L1, which stands in for LPIPS"
    lpips = Lpips.load(Path(config.vgg_weights), Path(config.lpips_weights))

    def with_lpips(images: Tensor, targets: Tensor) -> Tensor:
        distance = lpips.to(images.device)(2 * images - 1, 2 * targets - 1).mean()
        return functional.l1_loss(images, targets) + config.lpips_weight * distance

    return with_lpips, f"LPIPS on VGG16, weights {config.vgg_weights} and {config.lpips_weights}"
