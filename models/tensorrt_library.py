"""TensorRT's Python library, and what its engines are bound to.

The library comes from NVIDIA's own index and needs its GPUs. Neither is where this was written: the
calls follow the documentation and have been made to a recording double only.
"""

import importlib
from typing import Any

import torch

from models.manifest import BundleError, EngineTarget

OLDEST = (10, 15)
"""The first that reads opset 23's RMSNormalization; Attention came with 10.14."""
_BELOW = (11,)  # onnxruntime-gpu, of the same extra, links TensorRT 10
_INSTALL = (
    "`pip install -c constraints.txt -e '.[gpu]' --extra-index-url https://pypi.nvidia.com` brings "
    "one that fits"
)


def load_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        BundleError: it is not installed, cannot be loaded, or has another version than those that
            this program knows.
    """
    try:
        library = importlib.import_module("tensorrt")
    except ModuleNotFoundError:
        raise BundleError(f"TensorRT is not installed: {_INSTALL}") from None
    except (ImportError, OSError) as error:  # a shared library of it is missing, or of another CUDA
        raise BundleError(f"TensorRT cannot be loaded ({error}): {_INSTALL}") from error
    found = tuple(int(part) for part in library.__version__.split(".")[:2])
    if not OLDEST <= found < _BELOW:
        raise BundleError(
            f"TensorRT {library.__version__} is installed, and this program needs at least "
            f"{'.'.join(map(str, OLDEST))}, below {_BELOW[0]}: {_INSTALL}"
        )
    return library


def engine_target(library: Any, device: torch.device) -> EngineTarget:
    """What engines are built for that run on that device.

    Raises:
        BundleError: it is no NVIDIA GPU.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        raise BundleError("TensorRT runs on NVIDIA GPUs alone, and PyTorch sees none here")
    properties = torch.cuda.get_device_properties(device)
    return EngineTarget(
        gpu=properties.name,
        compute_capability=f"{properties.major}.{properties.minor}",
        tensorrt=library.__version__,
    )
