"""The runtimes that `benchmarks.backends` compares, each as the service loads it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.bundle import load_bundle
from models.context import Context
from models.manifest import BundleError, Manifest, Precision
from models.sampler import LatentSpace
from service.backends.base import Backend
from service.backends.compiling import Compiler, compile_block
from service.backends.onnx_backend import OnnxBackend
from service.backends.torch_backend import TorchBackend

EAGER, PACKED, COMPILED = "torch", "torch, packed", "torch, compiled"
ONNX: dict[Precision, str] = {"fp32": "onnxruntime fp32", "int8": "onnxruntime int8"}

Load = Callable[[], Backend]


def loaders(
    directory: Path, manifest: Manifest, *, device: str, threads: int, full: bool
) -> dict[str, Load]:
    """How each side is loaded, PyTorch as it is first.

    Args:
        full: also those that take minutes to compile, and PyTorch's other precisions. On a GPU they
            are what is to be measured, and always there.
    """
    plain = partial(TorchBackend.load, directory, device=device, threads=threads)
    onnx = partial(OnnxBackend.load, directory, manifest, device=device, threads=threads)
    as_it_is: dict[str, Load] = {
        EAGER: lambda: TorchBackend(load_bundle(directory, device), device=device)
    }
    if device == "cpu":
        sides: dict[str, Load] = {PACKED: plain}
        slow: dict[str, Load] = {
            COMPILED: partial(plain, compile="on"),
            "torch bf16": partial(plain, precision="bf16"),
            "torch int8": partial(plain, precision="int8"),
            "torch fp8": partial(plain, precision="fp8"),
        }
        exports: dict[str, Load] = {
            name: partial(onnx, precision=precision) for precision, name in ONNX.items()
        }
        return as_it_is | sides | (slow if full else {}) | exports
    return (
        as_it_is
        | {
            COMPILED: partial(_compiled_alone, directory, device),
            "torch, compiled, CUDA graphs": partial(plain, compile="on"),
            "torch bf16": partial(plain, precision="bf16"),
            "torch bf16, compiled, CUDA graphs": partial(plain, precision="bf16", compile="on"),
            "torch int8, compiled, CUDA graphs": partial(plain, precision="int8", compile="on"),
            "torch fp8, compiled, CUDA graphs": partial(plain, precision="fp8", compile="on"),
            ONNX["fp32"]: onnx,
        }
        | {
            f"tensorrt {engines.precision}": partial(
                _tensorrt, directory, manifest, engines.precision, device
            )
            for engines in manifest.engines
        }
    )


def _compiled_alone(directory: Path, device: str) -> Backend:
    return TorchBackend(
        load_bundle(directory, device), device=device, compiler=Compiler(compile_block)
    )


def _tensorrt(directory: Path, manifest: Manifest, precision: Precision, device: str) -> Backend:
    from service.backends.tensorrt_backend import TensorRTBackend  # needs its libraries

    return TensorRTBackend.load(directory, manifest, precision=precision, device=device)


def load_sides(loads: dict[str, Load], report: Callable[[str], None] = print) -> dict[str, Backend]:
    """Those that this machine can load; of the others it is said why not."""
    sides: dict[str, Backend] = {}
    for name, load in loads.items():
        try:
            sides[name] = load()
        except BundleError as error:
            report(f"{name}: left out: {error}")
    return sides


class ServedDenoiser:
    """A backend as the sampler sees a denoiser; its tokens are the prompts themselves."""

    def __init__(self, backend: Backend, config: LatentSpace, device: str, *, guide: bool) -> None:
        self.config = config
        self.device = torch.device(device)
        self._backend = backend
        self._guide = guide

    def prefill(self, tokens: Sequence[str], source_latents: Tensor | None = None) -> Context:
        return self._backend.prefill(tokens, source_latents, guide=self._guide)

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        return self._backend.velocity(x, t, context)


class Prompts(list[str]):
    """Prompts where the sampler expects their ids: the backend reads them itself."""

    @classmethod
    def encode(cls, prompts: Sequence[str]) -> "Prompts":
        return cls(prompts)

    def to(self, _device: torch.device) -> "Prompts":
        return self
