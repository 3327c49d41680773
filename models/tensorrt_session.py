"""One graph as a TensorRT engine, from torch tensors to torch tensors on one GPU.

An engine has one optimisation profile for each bucket of rows, of fixed shapes. Each bucket has an
execution context, buffers that stay, and a CUDA graph of its run; a batch takes the smallest bucket
that holds it, and what it leaves empty is never looked at. It has not run on a GPU yet: see
`models.tensorrt_library`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.bundle import denoiser_config
from models.engine_bucket import EngineBucket, Shape
from models.manifest import BundleError, Manifest
from models.sessions import GraphError
from models.text_denoiser import TextDenoiserConfig


def load_engine(
    library: Any, plan: Path, manifest: Manifest, *, device: torch.device
) -> "EngineSession":
    """A bundle's engine; prompts that are shorter than its profile are padded as the model's are.

    Raises:
        BundleError: see `EngineSession`.
    """
    fills = {}
    if "denoiser" in manifest.model:
        config = denoiser_config(manifest)
        if isinstance(config, TextDenoiserConfig):
            fills["prompt_tokens"] = config.pad_id
    return EngineSession(library, plan, device=device, fills=fills)


class EngineSession:
    """A loaded engine; called from one thread at a time."""

    def __init__(
        self,
        library: Any,
        plan: Path,
        *,
        device: torch.device,
        fills: Mapping[str, int] | None = None,
    ) -> None:
        """Load a plan; nothing else is allocated until a bucket is used.

        Args:
            library: the module `tensorrt`.
            fills: input -> what pads it along other axes than the rows; absent: 0.

        Raises:
            BundleError: the plan is of another GPU or version, or it is none.
        """
        self.device = device
        self._library = library
        self._fills = dict(fills or {})
        self._logger = library.Logger(library.Logger.WARNING)
        self._runtime = library.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise BundleError(f"TensorRT {library.__version__} cannot load {plan}: see its log")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {
            name: self._engine.get_tensor_mode(name) == library.TensorIOMode.INPUT for name in names
        }
        self.inputs = tuple(name for name in names if is_input[name])
        self.outputs = tuple(name for name in names if not is_input[name])
        self._profiles = {shape[self.inputs[0]][0]: i for i, shape in self._shapes()}
        self._buckets: dict[int, EngineBucket] = {}
        self._scratch: Tensor | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """The sizes of batches that it has profiles for, ascending."""
        return tuple(sorted(self._profiles))

    def _shapes(self) -> list[tuple[int, dict[str, Shape]]]:
        """Each profile's index and the largest shapes of its inputs."""
        return [
            (index, {name: self._largest(name, index) for name in self.inputs})
            for index in range(self._engine.num_optimization_profiles)
        ]

    def _largest(self, name: str, profile: int) -> Shape:
        return tuple(self._engine.get_tensor_profile_shape(name, profile)[2])

    def run(
        self, inputs: Mapping[str, Tensor], shapes: Sequence[Sequence[int]]
    ) -> tuple[Tensor, ...]:
        """The outputs; see `Session`. More rows than the largest bucket run one after another.

        Raises:
            GraphError: inputs do not fit the engine, or it failed.
        """
        if set(inputs) != set(self.inputs):
            raise GraphError(f"inputs {sorted(inputs)}, the engine has {sorted(self.inputs)}")
        num_rows, most = len(inputs[self.inputs[0]]), self.rows[-1]
        try:
            outputs = tuple(torch.empty(*shape, device=self.device) for shape in shapes)
            for start in range(0, num_rows, most):
                count = min(most, num_rows - start)
                bucket = self._bucket(next(rows for rows in self.rows if rows >= count))
                bucket.run(
                    {name: tensor[start : start + count] for name, tensor in inputs.items()},
                    [output[start : start + count] for output in outputs],
                )
        except torch.OutOfMemoryError as error:
            raise GraphError(f"Failed to allocate memory: {error}") from error
        return outputs

    def _bucket(self, rows: int) -> EngineBucket:
        if rows not in self._buckets:
            profile = self._profiles[rows]
            shapes = {name: self._largest(name, profile) for name in self.inputs}
            self._buckets[rows] = EngineBucket(
                self._library,
                self._engine,
                profile,
                shapes,
                self.outputs,
                device=self.device,
                scratch=self._shared_scratch(),
                fills=self._fills,
            )
        return self._buckets[rows]

    def _shared_scratch(self) -> Tensor:
        """Memory for activations, as large as any profile needs: only one bucket runs at a time."""
        if self._scratch is None:
            sizes = [
                self._engine.get_device_memory_size_for_profile_v2(index)
                for index in range(self._engine.num_optimization_profiles)
            ]
            self._scratch = torch.empty(max(sizes), dtype=torch.uint8, device=self.device)
        return self._scratch
