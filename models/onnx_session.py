"""One ONNX graph in onnxruntime, from torch tensors to torch tensors on one device.

Tensors are bound by address: nothing is copied between the two libraries.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from models.manifest import BundleError

_FATAL = 4  # errors are raised; logged as well they would be seen twice
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_TYPES = {torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}

onnxruntime.disable_telemetry_events()  # a service tells nobody but its own operator


class GraphError(RuntimeError):
    """onnxruntime could not run a graph."""


class GraphSession:
    """A loaded graph; called from one thread at a time."""

    def __init__(self, path: Path, *, device: str = "cpu", threads: int = 1) -> None:
        """`threads`: of the CPU, for this graph.

        Raises:
            BundleError: the file is no graph that this onnxruntime runs, or it lacks the device.
        """
        self.device = torch.device(device)
        provider: Any = _PROVIDERS[self.device.type]
        # Without a GPU that works, onnxruntime goes on with the CPU instead.
        if provider not in onnxruntime.get_available_providers():
            raise BundleError(f"this onnxruntime has no {provider}: install onnxruntime-gpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL
        # Threads that spin while they wait stall those of other processes on a busy machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.device.type == "cuda":
            provider = (provider, {"device_id": self.device.index or 0})
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=[provider])
        except Exception as error:  # its exceptions share no other base
            raise BundleError(f"onnxruntime cannot load {path}: {_first_line(error)}") from error
        if self._session.get_providers()[0] != _PROVIDERS[self.device.type]:
            raise BundleError(f"onnxruntime could not start {_PROVIDERS[self.device.type]}")
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(
        self, inputs: Mapping[str, Tensor], shapes: Sequence[Sequence[int]]
    ) -> tuple[Tensor, ...]:
        """The outputs, float32 on the session's device.

        Args:
            inputs: by name, float32, int64 or bool, from any device.
            shapes: of the outputs, in the graph's order.

        Raises:
            GraphError: inputs do not fit the graph, or it failed.
        """
        here = {name: tensor.to(self.device).contiguous() for name, tensor in inputs.items()}
        outputs = tuple(torch.empty(*shape, device=self.device) for shape in shapes)
        binding = self._session.io_binding()
        try:
            for name, tensor in here.items():
                binding.bind_input(name, *_place(tensor))
            for name, tensor in zip(self._outputs, outputs, strict=True):
                binding.bind_output(name, *_place(tensor))
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:  # its exceptions share no other base
            raise GraphError(_first_line(error)) from error
        return outputs


def _place(tensor: Tensor) -> tuple[str, int, type, tuple[int, ...], int]:
    """Where a tensor lies, as onnxruntime asks for it."""
    device = tensor.device
    return (
        device.type,
        device.index or 0,
        _TYPES[tensor.dtype],
        tuple(tensor.shape),
        tensor.data_ptr(),
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
