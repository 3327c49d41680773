"""The TensorRT runtime: a bundle's engines on the GPU that they were built on.

It has not run on a GPU yet: see `models.tensorrt_library`.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from models.bundle import denoiser_config, load_tokenizer
from models.engines import usable_engines
from models.exports import export_files
from models.manifest import (
    BundleError,
    Export,
    GraphName,
    Manifest,
    Precision,
    file_problems,
)
from models.onnx_model import assemble
from models.tensorrt_library import engine_target, load_tensorrt
from models.tensorrt_session import EngineSession, load_engine
from service.backends.base import Call, Cost
from service.backends.measuring import example, seconds_of
from service.backends.onnx_backend import OnnxBackend
from service.backends.torch_backend import TorchBackend

_LEAST_ROWS = 3  # of `Limits`; engines of fewer run such a batch in two pieces


class TensorRTBackend(OnnxBackend):
    """Loaded engines; see `Backend` for its calls, which are those of the same graphs in ONNX."""

    def __init__(
        self,
        sessions: Mapping[GraphName, EngineSession],
        directory: Path,
        manifest: Manifest,
        engines: Export,
        *,
        device: str,
        max_rows: int | None = None,
    ) -> None:
        """`max_rows` replaces the rows of the largest profile."""
        num_bytes = sum(file.bytes for file in export_files(engines))
        tokenizer = None
        if "velocity" in sessions:
            tokenizer = load_tokenizer(directory, manifest, denoiser_config(manifest))
        super().__init__(
            assemble(manifest, sessions, num_bytes),
            tokenizer,
            lambda: TorchBackend.load(directory, device=device),
            precision=engines.precision,
            device=device,
            max_rows=max_rows,
        )
        self.name = "tensorrt" if engines.precision == "fp32" else f"tensorrt-{engines.precision}"
        steps, images = sessions.get("velocity", sessions["decode"]), sessions["decode"]
        self.limits = dataclasses.replace(
            self.limits,
            max_rows=max_rows or max(_LEAST_ROWS, steps.rows[-1]),
            max_images=images.rows[-1],
            padded=True,
        )

    @classmethod
    def load(
        cls,
        directory: Path,
        manifest: Manifest,
        *,
        precision: Precision = "fp32",
        device: str = "cuda:0",
        threads: int = 1,
        max_rows: int | None = None,
    ) -> "TensorRTBackend":
        """Load a bundle's engines of that precision for this GPU and this TensorRT.

        Raises:
            BundleError: TensorRT or a GPU is missing; or there are no such engines, or they are
                damaged, of other weights, or did not pass parity.
        """
        library = load_tensorrt()
        where = torch.device(device)
        engines = usable_engines(directory, manifest, precision, engine_target(library, where))
        others = [file for file in manifest.files if not file.path.endswith(".safetensors")]
        if problems := file_problems(directory, others):
            raise BundleError(f"bundle {directory}: " + "; ".join(problems))
        torch.set_num_threads(threads)
        sessions = {
            artifact.graph: load_engine(
                library, directory / artifact.files[0].path, manifest, device=where
            )
            for artifact in engines.artifacts
        }
        return cls(sessions, directory, manifest, engines, device=device, max_rows=max_rows)

    def measure(self, call: Call, size: int) -> Cost:
        started = time.perf_counter()
        run = example(self, call, size)
        run()  # the first run of a bucket sets it up
        preparing_s = time.perf_counter() - started
        return Cost(seconds_of(run, self._device), preparing_s=preparing_s)

    def memory_bytes(self) -> int:
        held = 0
        if self._device.type == "cuda":
            held = torch.cuda.memory_allocated(self._device)
        return held + super().memory_bytes()
