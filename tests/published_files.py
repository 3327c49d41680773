"""Files in the layout of the published checkpoints, with random weights, at any size."""

from pathlib import Path

import torch
from torch import Tensor, nn

from export.dims import PublishedDims
from models.autoencoder import RPiAE
from models.class_denoiser import ClassDenoiser
from models.published import NameMap, class_denoiser_map, tokenizer_map
from models.weights import without_weights

TOKENIZER_FILE = "rpiae_stage3_1_c64_ema.pt"
DENOISER_FILE = "LightningDiT/ep-0000800.pt"
GUIDE_FILE = "LightningDiT/ep-0000020.pt"
_STD = 0.02


def published_tensors(module: nn.Module, names: NameMap, seed: int) -> dict[str, Tensor]:
    """Random tensors in a module's published layout, at scales that pass a signal on."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in names.to_published(module.state_dict()).items():
        if name in names.constants:
            tensors[name] = names.constants[name]
            continue
        noise = torch.randn(shape.shape, generator=generator)
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "lambda1")):
            tensors[name] = 1 + _STD * noise
        elif noise.ndim > 1 and name.endswith("weight"):
            tensors[name] = noise.div_(noise[0].numel() ** 0.5)
        else:
            tensors[name] = noise.mul_(_STD)
    return tensors


def write_published_files(
    folder: Path, dims: PublishedDims, *, denoiser: bool = True, guide: bool = True, seed: int = 0
) -> None:
    """Write tokenizer, denoiser and guide under the names that the authors gave them.

    As published, the tokenizer is flat and the denoisers are training checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = without_weights(lambda: RPiAE(dims.autoencoder()))
    torch.save(published_tensors(model, tokenizer_map(model), seed), folder / TOKENIZER_FILE)
    for wanted, name, offset in ((denoiser, DENOISER_FILE, 1), (guide, GUIDE_FILE, 2)):
        if wanted:
            dit = without_weights(lambda: ClassDenoiser(dims.denoiser()))
            tensors = published_tensors(dit, class_denoiser_map(dit), seed + offset)
            (folder / name).parent.mkdir(exist_ok=True)
            torch.save({"ema": tensors, "epoch": 800}, folder / name)
