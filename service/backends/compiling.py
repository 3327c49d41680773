"""How a module is made fast at fixed shapes: torch.compile, and CUDA graphs where there is CUDA.

Compiled is each block of a stack, not the model in one piece. All blocks of a stack are alike and
share their kernels, so that a size takes as long to compile as one block of it, not as 28; what
launching so many kernels would cost is what CUDA graphs save. Kernels stay on disk: the next start
reads them.
"""

import copy
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import nn

from models.manifest import BundleError
from service.backends.cuda_graphs import CudaGraphs
from service.backends.static_batches import Capture, uncaptured

Compile: TypeAlias = Literal["auto", "off", "on"]
_log = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)

_CPP_COMPILERS = ("g++", "clang++", "c++")
_MOST_SHAPES = 256  # that a block is compiled for; PyTorch's own limit is 8


@dataclass(frozen=True)
class Compiler:
    """compile_block: changes a block so that its calls run compiled; capture: records calls;
    optional: where that fails, the modules run as they are.
    """

    compile_block: Callable[[nn.Module], None]
    capture: Capture = uncaptured
    optional: bool = False

    def compiled(self, module: M) -> M:
        """A copy with compiled blocks and the same weights in memory. The module itself still runs
        as before, at any shape.
        """
        weights = (*module.parameters(), *module.buffers())
        twin = copy.deepcopy(module, {id(tensor): tensor for tensor in weights})
        for part in twin.modules():
            if isinstance(part, nn.ModuleList):
                for block in part:
                    self.compile_block(block)
        return twin


def find_compiler(mode: Compile, device: torch.device, cache: Path | None) -> Compiler | None:
    """What makes modules fast there; None: they run as they are.

    Args:
        mode: auto compiles for CUDA alone, where it takes seconds; without what compiling needs
            it leaves CUDA graphs.
        cache: folder of compiled kernels; None: PyTorch's own, among the temporary files.

    Raises:
        BundleError: mode is on, and something is not installed.
    """
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return None
    missing = _missing_tool(device)
    if mode == "on" and missing:
        raise BundleError(f"RPIAE_COMPILE=on lacks {missing}; or set RPIAE_COMPILE=off")
    capture = CudaGraphs(device) if device.type == "cuda" else uncaptured
    if missing:
        _log.warning("nothing is compiled, only recorded as CUDA graphs: %s is not here", missing)
        return Compiler(lambda _: None, capture, optional=True)
    if cache is not None:
        # Read by PyTorch when it compiles for the first time; there is no other way to say it.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    return Compiler(compile_block, capture, optional=mode == "auto")


def compile_block(block: nn.Module) -> None:
    """Compile a block anew for every shape that it meets; kernels of exact sizes are faster."""
    limit = torch._dynamo.config
    limit.recompile_limit = max(limit.recompile_limit, _MOST_SHAPES)
    limit.accumulated_recompile_limit = max(limit.accumulated_recompile_limit, _MOST_SHAPES)
    block.compile(dynamic=False)


def _missing_tool(device: torch.device) -> str | None:
    """What torch.compile would miss here."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "Triton (pip install triton)"
    if not any(map(shutil.which, _CPP_COMPILERS)):
        return "a C++ compiler (apt-get install g++)"
    return None
