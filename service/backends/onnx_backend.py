"""The onnxruntime runtime: a bundle's exported graphs, on the CPU or on a CUDA device."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from models.bridge import Posterior
from models.bundle import Tokenizer, denoiser_config, load_tokenizer
from models.class_denoiser import ClassContext, ClassDenoiserConfig, autoguided_velocity
from models.context import Context
from models.exports import usable_export
from models.manifest import BundleError, Manifest, Precision, file_problems
from models.onnx_model import (
    OnnxClassDenoiser,
    OnnxModel,
    OnnxTextDenoiser,
    TensorRTOptions,
    load_export,
)
from models.sessions import GraphError
from models.text_context import TextContext
from service.backends.base import Backend, Call, Cost, Limits
from service.backends.measuring import MAX_IMAGES, MAX_ROWS, example, seconds_of
from service.backends.torch_backend import TorchBackend
from service.errors import BackendError, OutOfMemory

_TENSORRT_ROWS = 64  # that engines are built for, unless told otherwise
# onnxruntime has one kind of error for everything that fails while it runs.
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad allocation", "bad_alloc")


class OnnxBackend:
    """A loaded export; see `Backend` for its calls.

    Its graphs have the model's own size. Other sizes of encode and decode run on PyTorch, which
    loads the weights when the first of them comes.
    """

    def __init__(
        self,
        model: OnnxModel,
        tokenizer: Tokenizer | None,
        load_other_sizes: Callable[[], Backend],
        *,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_rows: int | None = None,
    ) -> None:
        """`max_rows` replaces the most rows that the device is tried with."""
        self.name = "onnxruntime" if precision == "fp32" else f"onnxruntime-{precision}"
        self._model = model
        self._tokenizer = tokenizer
        self._load_other_sizes = load_other_sizes
        self._device = torch.device(device)
        kind, manifest = self._device.type, model.manifest
        self.limits = Limits(
            image_size=manifest.image_size,
            latent_shape=manifest.latent_shape,
            max_rows=max_rows or MAX_ROWS[kind],
            max_images=MAX_IMAGES[kind],
            other_sizes=manifest.other_sizes,
        )

    @classmethod
    def load(
        cls,
        directory: Path,
        manifest: Manifest,
        *,
        precision: Precision = "fp32",
        device: str = "cpu",
        threads: int = 1,
        max_rows: int | None = None,
    ) -> "OnnxBackend":
        """Load a bundle's export of that precision.

        Raises:
            BundleError: there is none, or it is damaged, of other weights, or did not pass parity.
        """
        export = usable_export(directory, manifest, precision)
        model = load_export(directory, manifest, export, device=device, threads=threads)
        return cls._of(directory, model, precision, device, threads, max_rows)

    @classmethod
    def load_on_tensorrt(
        cls,
        directory: Path,
        manifest: Manifest,
        *,
        precision: Precision = "fp32",
        device: str = "cuda:0",
        threads: int = 1,
        max_rows: int | None = None,
        cache: Path | None = None,
    ) -> "OnnxBackend":
        """Load it on onnxruntime's TensorRT provider, which builds its engines then, for minutes.

        Args:
            cache: folder in which they stay for the next start.

        Raises:
            BundleError: as of `load`; or there is no such provider.
        """
        export = usable_export(directory, manifest, precision)
        max_rows = max_rows or _TENSORRT_ROWS
        options = TensorRTOptions(max_rows, _longest_axes(manifest), precision, cache)
        model = load_export(
            directory, manifest, export, device=device, threads=threads, tensorrt=options
        )
        backend = cls._of(directory, model, precision, device, threads, max_rows)
        backend.name = backend.name.replace("onnxruntime", "onnxruntime-tensorrt")
        backend.limits = replace(backend.limits, max_images=min(max_rows, MAX_IMAGES["cuda"]))
        return backend

    @staticmethod
    def _of(
        directory: Path,
        model: OnnxModel,
        precision: Precision,
        device: str,
        threads: int,
        max_rows: int | None,
    ) -> "OnnxBackend":
        manifest = model.manifest
        others = [file for file in manifest.files if not file.path.endswith(".safetensors")]
        if problems := file_problems(directory, others):
            raise BundleError(f"bundle {directory}: " + "; ".join(problems))
        torch.set_num_threads(threads)
        tokenizer = None
        if "denoiser" in manifest.model:
            tokenizer = load_tokenizer(directory, manifest, denoiser_config(manifest))
        return OnnxBackend(
            model,
            tokenizer,
            lambda: TorchBackend.load(directory, device=device),
            precision=precision,
            device=device,
            max_rows=max_rows,
        )

    @cached_property
    def _other_sizes(self) -> Backend:
        try:
            return self._load_other_sizes()
        except BundleError as error:
            raise BackendError(f"other sizes need the bundle's weights: {error}") from error

    def encode(self, images: Tensor) -> Posterior:
        if tuple(images.shape[-2:]) != self.limits.image_size:
            return self._other_sizes.encode(images)
        with self._guarded():
            return self._model.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        if tuple(latents.shape[1:]) != self.limits.latent_shape:
            return self._other_sizes.decode(latents)
        with self._guarded():
            return self._model.decode(latents)

    def prefill(
        self, prompts: Sequence[str], source_latents: Tensor | None, *, guide: bool = False
    ) -> Context:
        denoiser, tokenizer = self._model.denoiser, self._tokenizer
        if denoiser is None or tokenizer is None:
            raise BackendError(f"{self._model.manifest.name} has no denoiser: it draws nothing")
        with self._guarded():
            context = denoiser.prefill(tokenizer.encode(prompts), source_latents)
        if not guide:
            return context
        if self._model.guide is None or not isinstance(context, ClassContext):
            raise BackendError(f"{self._model.manifest.name} has no guide model")
        return context.of_guide()

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        x, t = x.to(self._device), t.to(self._device)
        with self._guarded():
            match self._model.denoiser, context:
                case OnnxTextDenoiser() as denoiser, TextContext():
                    return denoiser.velocity(x, t, context)
                case OnnxClassDenoiser() as denoiser, ClassContext():
                    return autoguided_velocity(denoiser, self._model.guide, x, t, context)
        raise BackendError(f"a {type(context).__name__} is not this model's")

    def warm_up(self, sizes: Sequence[int]) -> None:
        # Nothing is compiled for a batch size, and large batches take a CPU long.
        for size in (1,) if self._device.type == "cpu" else sizes:
            images = min(size, self.limits.max_images)
            for call in ("encode", "decode"):
                example(self, call, images)()
            if self._model.denoiser is not None:
                example(self, "velocity", size)()

    def measure(self, call: Call, size: int) -> Cost:
        return Cost(seconds_of(example(self, call, size), self._device))

    def memory_bytes(self) -> int:
        return self._model.num_bytes

    def free_bytes(self) -> int | None:
        if self._device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self._device)
        return free

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """The runtime's errors as ours."""
        try:
            with torch.inference_mode():
                yield
        except GraphError as error:
            if any(words in str(error) for words in _OUT_OF_MEMORY):
                raise OutOfMemory(str(error)) from error
            raise BackendError(f"the model failed: {error}") from error


def _longest_axes(manifest: Manifest) -> dict[str, int]:
    """The dynamic axes of the graphs beside their rows."""
    if "denoiser" not in manifest.model:
        return {}
    config = denoiser_config(manifest)
    if isinstance(config, ClassDenoiserConfig):
        return {}
    longest = config.max_prompt_tokens
    return {"prompt_length": longest, "context_length": config.num_image_tokens + longest}
