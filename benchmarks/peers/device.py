"""The device that a server runs on: a core with the real model, or one that is emulated.

`cpu` is the bundle on PyTorch with one thread. `emulated` has no model: a step takes 20 ms and
0.2 ms more for each row, as on a GPU, whose steps cost nearly the same with more rows; encode,
prefill and decode cost nothing. `null` costs nothing at all. All of them hold 16 model rows.
"""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.emulation import emulated_backend
from benchmarks.peers.pipeline import Pipeline
from benchmarks.peers.tuning import Device
from models.bridge import Posterior
from models.context import Context
from models.manifest import read_manifest
from service.backends.base import Backend
from service.backends.torch_backend import TorchBackend

MAX_ROWS = 16
STEP_S, ROW_S = 0.02, 0.0002
TASK = "BENCHMARK_SERVER"  # environment variable: what `Start` says, as JSON


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a server process is told: the bundle, the device, its port and its settings; by_steps:
    see `Pipeline`.
    """

    bundle: str
    device: Device
    port: int
    settings: dict[str, Any]
    by_steps: bool = False

    @classmethod
    def read(cls) -> "Start":
        """From the environment, which all processes of a server share."""
        return cls(**json.loads(os.environ[TASK]))

    def pipeline(self, *, shared: bool = False) -> Pipeline:
        """The loaded model; `shared`: other threads of this process use the device as well."""
        manifest = read_manifest(Path(self.bundle))
        backend = load_backend(self.device, Path(self.bundle))
        return Pipeline(
            _OneCallAtATime(backend) if shared else backend, manifest, by_steps=self.by_steps
        )


def load_backend(device: Device, bundle: Path) -> Backend:
    """The backend of a device, warm."""
    if device == "cpu":
        backend: Backend = TorchBackend.load(bundle, threads=1, max_rows=MAX_ROWS)
    else:
        step_s, row_s = (STEP_S, ROW_S) if device == "emulated" else (0.0, 0.0)
        backend = emulated_backend(read_manifest(bundle), MAX_ROWS, step_s, row_s)
    backend.warm_up((1,))
    return backend


class _OneCallAtATime:
    """A device runs one call after another, whichever thread they come from."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self.name = backend.name
        self.limits = backend.limits

    def encode(self, images: Tensor) -> Posterior:
        with self._lock:
            return self._backend.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        with self._lock:
            return self._backend.decode(latents)

    def prefill(
        self, prompts: Sequence[str], source_latents: Tensor | None, *, guide: bool = False
    ) -> Context:
        with self._lock:
            return self._backend.prefill(prompts, source_latents, guide=guide)

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        with self._lock:
            return self._backend.velocity(x, t, context)
