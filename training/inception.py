"""The InceptionV3 of the Frechet Inception distance, for its 2048 pool features.

Weights are a local file in the layout of pytorch-fid, `pt_inception-2015-12-05-6726825d.pth`, which
were carried over from the network that the first FIDs were measured with. Nothing is downloaded.
Here this has run on random weights alone: names, shapes and pooling rules follow the published
ones, and no figure was compared with a published FID.

Source: Szegedy et al. 2015 (arXiv 1512.00567); the pooling of pytorch-fid, src/pytorch_fid/
inception.py: averages leave the padding out, and the last block takes the maximum instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.weights import check_tensors, without_weights
from training.weight_files import read_tensors

NUM_FEATURES = 2048
_INPUT_SIDE = 299
_NUM_CLASSES = 1008  # of the classifier in the file, which is not used
_EPS = 1e-3

Layer: TypeAlias = tuple[str, int, tuple[int, int]]
"""Name, output channels, kernel."""
Step: TypeAlias = Layer | tuple[Layer, Layer]
"""One layer, or two side by side whose outputs are joined."""

_ONE, _THREE, _FIVE = (1, 1), (3, 3), (5, 5)
_ROW, _COLUMN, _ROW_3, _COLUMN_3 = (1, 7), (7, 1), (1, 3), (3, 1)


@dataclass(frozen=True)
class _Block:
    """Branches that run side by side, then one that pools and, with `pool_width`, convolves.

    halve: the last layers and the pool have stride 2 and no padding.
    """

    branches: tuple[tuple[Step, ...], ...]
    pool: Literal["mean", "max"]
    pool_width: int = 0
    halve: bool = False


def _a(pool_width: int) -> _Block:
    return _Block(
        (
            (("branch1x1", 64, _ONE),),
            (("branch5x5_1", 48, _ONE), ("branch5x5_2", 64, _FIVE)),
            (
                ("branch3x3dbl_1", 64, _ONE),
                ("branch3x3dbl_2", 96, _THREE),
                ("branch3x3dbl_3", 96, _THREE),
            ),
        ),
        "mean",
        pool_width,
    )


def _c(width: int) -> _Block:
    return _Block(
        (
            (("branch1x1", 192, _ONE),),
            (
                ("branch7x7_1", width, _ONE),
                ("branch7x7_2", width, _ROW),
                ("branch7x7_3", 192, _COLUMN),
            ),
            (
                ("branch7x7dbl_1", width, _ONE),
                ("branch7x7dbl_2", width, _COLUMN),
                ("branch7x7dbl_3", width, _ROW),
                ("branch7x7dbl_4", width, _COLUMN),
                ("branch7x7dbl_5", 192, _ROW),
            ),
        ),
        "mean",
        192,
    )


def _e(pool: Literal["mean", "max"]) -> _Block:
    return _Block(
        (
            (("branch1x1", 320, _ONE),),
            (
                ("branch3x3_1", 384, _ONE),
                (("branch3x3_2a", 384, _ROW_3), ("branch3x3_2b", 384, _COLUMN_3)),
            ),
            (
                ("branch3x3dbl_1", 448, _ONE),
                ("branch3x3dbl_2", 384, _THREE),
                (("branch3x3dbl_3a", 384, _ROW_3), ("branch3x3dbl_3b", 384, _COLUMN_3)),
            ),
        ),
        pool,
        192,
    )


_B = _Block(
    (
        (("branch3x3", 384, _THREE),),
        (
            ("branch3x3dbl_1", 64, _ONE),
            ("branch3x3dbl_2", 96, _THREE),
            ("branch3x3dbl_3", 96, _THREE),
        ),
    ),
    "max",
    halve=True,
)
_D = _Block(
    (
        (("branch3x3_1", 192, _ONE), ("branch3x3_2", 320, _THREE)),
        (
            ("branch7x7x3_1", 192, _ONE),
            ("branch7x7x3_2", 192, _ROW),
            ("branch7x7x3_3", 192, _COLUMN),
            ("branch7x7x3_4", 192, _THREE),
        ),
    ),
    "max",
    halve=True,
)
_BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _B,
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _D,
    "Mixed_7b": _e("mean"),
    "Mixed_7c": _e("max"),
}


class _Conv(nn.Module):
    """Convolution without bias, batch norm with the stored statistics, ReLU."""

    def __init__(
        self, width: int, channels: int, kernel: tuple[int, int], stride: int = 1, *, pad: bool
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(width, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _layers(step: Step) -> tuple[Layer, ...]:
    return (step,) if isinstance(step[0], str) else step


class Mixed(nn.Module):
    """One block; its layers have the published names."""

    def __init__(self, width: int, block: _Block) -> None:
        super().__init__()
        self._block = block
        self.num_channels = block.pool_width or width
        for branch in block.branches:
            channels = width
            for step in branch:
                halve = block.halve and step is branch[-1]
                layers = _layers(step)
                for name, out, kernel in layers:
                    conv = _Conv(channels, out, kernel, 2 if halve else 1, pad=not halve)
                    self.add_module(name, conv)
                channels = sum(layer[1] for layer in layers)
            self.num_channels += channels
        if block.pool_width:
            self.branch_pool = _Conv(width, block.pool_width, _ONE, pad=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, num_channels, h', w')."""
        found = [self._branch(x, branch) for branch in self._block.branches]
        if self._block.halve:
            pooled = functional.max_pool2d(x, 3, 2)
        elif self._block.pool == "max":
            pooled = functional.max_pool2d(x, 3, 1, 1)
        else:
            pooled = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        found.append(self.branch_pool(pooled) if self._block.pool_width else pooled)
        return torch.cat(found, dim=1)

    def _branch(self, x: Tensor, branch: Sequence[Step]) -> Tensor:
        for step in branch:
            outputs = [self.get_submodule(name)(x) for name, _, _ in _layers(step)]
            x = torch.cat(outputs, dim=1)
        return x


class Inception(nn.Module):
    """Frozen; random until loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, _THREE, 2, pad=False)
        self.Conv2d_2a_3x3 = _Conv(32, 32, _THREE, pad=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, _THREE, pad=True)
        self.Conv2d_3b_1x1 = _Conv(64, 80, _ONE, pad=False)
        self.Conv2d_4a_3x3 = _Conv(80, 192, _THREE, pad=False)
        width = 192
        for name, block in _BLOCKS.items():
            mixed = Mixed(width, block)
            self.add_module(name, mixed)
            width = mixed.num_channels
        assert width == NUM_FEATURES
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path) -> "Inception":
        """With the weights of a local file.

        Raises:
            CheckpointError: it is missing or unreadable.
            BundleError: missing, unexpected or misshaped tensors, as in torchvision's own
                InceptionV3, whose weights are others; all are listed.
        """
        found = read_tensors(path, "inception_weights")
        # Counters of training steps, which some versions of the file have.
        found = {key: value for key, value in found.items() if not key.endswith("_tracked")}
        model = without_weights(cls)
        expected = {k: v for k, v in model.state_dict().items() if not k.endswith("_tracked")}
        classifier = {
            "fc.weight": torch.empty(_NUM_CLASSES, NUM_FEATURES, device="meta"),
            "fc.bias": torch.empty(_NUM_CLASSES, device="meta"),
        }
        check_tensors(expected | classifier, found, f"inception_weights: {path}")
        state = {key: found[key].float() for key in expected}
        model.load_state_dict(state, strict=False, assign=True)
        return model.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], brought to 299 x 299 -> (B, 2048)."""
        side = (_INPUT_SIDE, _INPUT_SIDE)
        x = functional.interpolate(images, side, mode="bilinear", align_corners=False)
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * x - 1))
        x = functional.max_pool2d(self.Conv2d_2b_3x3(x), 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, 2)
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))
