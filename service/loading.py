"""A bundle as a loaded, warm and measured model: what a worker runs, and the offline commands."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from models.manifest import BundleError, Manifest
from service.backends.base import Backend, Call, Limits
from service.backends.fake_backend import FakeBackend
from service.backends.torch_backend import TorchBackend
from service.choosing import Candidate, Choice, choose
from service.cpu_count import cpu_count
from service.engine.calibration import Calibration, calibrate
from service.log import get_logger
from service.served_model import ServedModel
from service.settings import Settings

log = get_logger(__name__)

_CALIBRATION_S = 0.6
_FAKE_ROWS, _FAKE_IMAGES = 16, 4


@dataclass(frozen=True)
class LoadedModel:
    """A bundle in the runtime that serves it; `unusable`: see `Choice`."""

    directory: Path
    served: ServedModel
    backend: Backend
    calibration: Calibration
    unusable: Mapping[str, str]

    @property
    def manifest(self) -> Manifest:
        return self.served.manifest


def load_model(
    settings: Settings, directory: Path, index: int = 0, *, before: LoadedModel | None = None
) -> LoadedModel:
    """Load a bundle, warm it up and measure it.

    Args:
        settings: which runtime, how many threads and rows.
        directory: the bundle, whatever the settings name.
        index: of this worker among those of this machine; chooses the GPU.
        before: a model whose measurements hold if the new one is of its kind: it may be computing
            meanwhile, which would spoil those of the new one.

    Raises:
        BundleError: see `load_backend`.
    """
    served = ServedModel.read(directory)
    manifest = served.manifest
    choice = load_backend(settings, directory, manifest, index)
    backend = choice.backend
    backend.warm_up((1,))
    if before is not None and _alike(before, manifest, backend):
        calibration = before.calibration
    else:
        calibration = calibrate(backend, max_rows=settings.max_rows, limit_s=_CALIBRATION_S)
        log.info("backend measured", **asdict(calibration))
    if calibration.buckets:
        backend.warm_up(calibration.buckets)
    return LoadedModel(directory, served, backend, calibration, choice.unusable)


def load_backend(settings: Settings, directory: Path, manifest: Manifest, index: int = 0) -> Choice:
    """The runtime that the settings ask for, or the fastest, with the bundle's model.

    Raises:
        BundleError: the bundle is incomplete, altered or does not fit its manifest; or the runtime
            that is asked for cannot serve it.
    """
    if settings.backend == "fake":
        return Choice(_fake(settings, manifest))
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{index % torch.cuda.device_count()}"
    runtimes = _Runtimes(settings, directory, manifest, device)
    call: Call = "velocity" if "denoiser" in manifest.model else "decode"
    return choose(runtimes.candidates(), call)


@dataclass(frozen=True)
class _Runtimes:
    """How each runtime loads a bundle on a device."""

    settings: Settings
    directory: Path
    manifest: Manifest
    device: str

    def candidates(self) -> list[Candidate]:
        """The runtime that the settings name; else all that could serve, the likely fastest last.

        Exports and engines that the bundle has count even if they cannot be used in the end: that
        is to be told.
        """
        load = {"torch": self._torch, "onnxruntime": self._onnx, "tensorrt": self._tensorrt}
        precision, manifest = self.settings.precision, self.manifest
        names = [self.settings.backend]
        if self.settings.backend == "auto":
            exports = [export for export in manifest.exports if export.precision == precision]
            names = [] if precision == "fp16" else ["torch"]
            if any(export.proven_by == "onnxruntime" for export in exports):
                names.append("onnxruntime")
            if self.device != "cpu" and any(e.precision == precision for e in manifest.engines):
                names.append("tensorrt")
        # With none of them the error of this one tells how to make an export.
        return [Candidate(name, load[name]) for name in names or ["onnxruntime"]]

    @property
    def _threads(self) -> int:
        return self.settings.threads or max(1, cpu_count() // self.settings.workers)

    def _torch(self) -> Backend:
        precision = self.settings.precision
        assert precision != "fp16"  # the settings refuse it, and it is no candidate
        return TorchBackend.load(
            self.directory,
            device=self.device,
            threads=self._threads,
            max_rows=self.settings.max_rows,
            precision=precision,
            compile=self.settings.compile,
            compile_cache=self.settings.compile_cache,
        )

    def _onnx(self) -> Backend:
        if find_spec("onnxruntime") is None:
            raise BundleError("onnxruntime is not installed: install rpiae[onnxruntime]")
        # Not everybody has it.
        from service.backends.onnx_backend import OnnxBackend

        if self.settings.onnx_provider == "tensorrt":
            return OnnxBackend.load_on_tensorrt(
                self.directory, self.manifest, cache=self.settings.compile_cache, **self._options()
            )
        return OnnxBackend.load(self.directory, self.manifest, **self._options())

    def _tensorrt(self) -> Backend:
        from service.backends.tensorrt_backend import TensorRTBackend

        return TensorRTBackend.load(self.directory, self.manifest, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "precision": self.settings.precision,
            "device": self.device,
            "threads": self._threads,
            "max_rows": self.settings.max_rows,
        }


def _fake(settings: Settings, manifest: Manifest) -> Backend:
    limits = Limits(
        image_size=manifest.image_size,
        latent_shape=manifest.latent_shape,
        max_rows=settings.max_rows or _FAKE_ROWS,
        max_images=_FAKE_IMAGES,
        other_sizes=manifest.other_sizes,
    )
    return FakeBackend(
        limits, step_seconds={1: settings.fake_step_s}, fatal=settings.fake_fatal_prompt
    )


def _alike(before: LoadedModel, manifest: Manifest, backend: Backend) -> bool:
    """The same runtime and the same sizes of everything: only the weights' values differ."""
    same_runtime = before.backend.name == backend.name and before.backend.limits == backend.limits
    return same_runtime and before.manifest.model == manifest.model
