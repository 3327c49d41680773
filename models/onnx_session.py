"""One ONNX graph in onnxruntime, from torch tensors to torch tensors on one device.

Tensors are bound by address: nothing is copied between the two libraries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from models.manifest import BundleError
from models.onnx_model import TensorRTOptions
from models.onnx_providers import providers_for
from models.sessions import GraphError

_FATAL = 4  # errors are raised; logged as well they would be seen twice
_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_TYPES = {torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}

onnxruntime.disable_telemetry_events()  # a service tells nobody but its own operator


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Options that change how fast a graph runs, and nothing else; the defaults are those that
    benchmarks/onnx_options.py measured.

    spinning: threads that wait for work keep their cores busy, which stalls other processes;
    memory_pattern: memory of a call is planned from the one before of the same shapes.
    """

    optimisation: Literal["all", "extended", "basic", "off"] = "all"
    spinning: bool = False
    arena: bool = True
    memory_pattern: bool = True
    prepacking: bool = True

    def options(self, threads: int) -> onnxruntime.SessionOptions:
        """As onnxruntime takes them; threads: of the CPU, inside an operation."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = _LEVELS[self.optimisation]
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL
        options.enable_cpu_mem_arena = self.arena
        options.enable_mem_pattern = self.memory_pattern
        entries = {
            "session.intra_op.allow_spinning": self.spinning,
            "session.disable_prepacking": not self.prepacking,
        }
        for name, value in entries.items():
            options.add_session_config_entry(name, str(int(value)))
        return options


class GraphSession:
    """A loaded graph; called from one thread at a time."""

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        threads: int = 1,
        tensorrt: TensorRTOptions | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        """`threads`: of the CPU, for this graph; `tensorrt`: run it on that provider.

        Raises:
            BundleError: the file is no graph that this onnxruntime runs, or it lacks the device.
        """
        self.device = torch.device(device)
        providers = providers_for(path, self.device, tensorrt)
        options = (tuning or Tuning()).options(threads)
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # its exceptions share no other base
            raise BundleError(f"onnxruntime cannot load {path}: {_first_line(error)}") from error
        if self._session.get_providers()[0] != providers[0][0]:
            raise BundleError(f"onnxruntime could not start {providers[0][0]}")
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
