"""The PyTorch runtime: a bundle's own modules, on the CPU or on a CUDA device."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from models.bridge import Posterior
from models.bundle import Bundle, load_bundle
from models.class_denoiser import ClassContext, ClassDenoiser, autoguided_velocity
from models.context import Context
from models.low_precision import LowPrecision
from models.manifest import BundleError
from models.packed_linear import packed_bytes
from models.text_context import TextContext
from models.text_denoiser import TextDenoiser
from service.backends.base import Call, Cost, Limits
from service.backends.compiling import Compile, Compiler, find_compiler
from service.backends.measuring import MAX_IMAGES, MAX_ROWS, example, seconds_of
from service.backends.static_model import StaticAutoencoder, StaticDenoiser
from service.errors import BackendError, OutOfMemory

TorchPrecision: TypeAlias = Literal["fp32"] | LowPrecision

_log = logging.getLogger(__name__)
_COMPILED: tuple[Call, ...] = ("velocity", "decode", "encode")
_FP8_CAPABILITY = (8, 9)  # of the GPUs that compiled kernels read fp8 on
_CPU_OUT_OF_MEMORY = "can't allocate memory"  # DefaultCPUAllocator's words; it has no own type


class TorchBackend:
    """A loaded bundle; see `Backend` for its calls."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        max_rows: int | None = None,
        precision: TorchPrecision = "fp32",
        compiler: Compiler | None = None,
    ) -> None:
        """A bundle that is on its device, in its precision.

        Args:
            max_rows: replaces the most rows that the device is tried with.
            compiler: what makes sizes fast that are warmed up or measured; other sizes run as the
                modules are.
        """
        self.name = "torch" if precision == "fp32" else f"torch-{precision}"
        self._bundle = bundle
        self._device = torch.device(device)
        kind = self._device.type
        self.limits = Limits(
            image_size=bundle.manifest.image_size,
            latent_shape=bundle.manifest.latent_shape,
            max_rows=max_rows or MAX_ROWS.get(kind, MAX_ROWS["cpu"]),
            max_images=MAX_IMAGES.get(kind, MAX_IMAGES["cpu"]),
            other_sizes=bundle.manifest.other_sizes,
            padded=kind == "cuda" or compiler is not None,
        )
        self._compiler = compiler
        self._static: StaticAutoencoder | None = None
        self._static_denoiser: StaticDenoiser | None = None
        self._static_guide: StaticDenoiser | None = None
        if compiler is not None:
            self._static = StaticAutoencoder(bundle.autoencoder, compiler)
            if bundle.denoiser is not None:
                self._static_denoiser = StaticDenoiser(bundle.denoiser, compiler)
            if bundle.guide is not None:
                self._static_guide = StaticDenoiser(bundle.guide, compiler)

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        max_rows: int | None = None,
        precision: TorchPrecision = "fp32",
        compile: Compile = "off",
        compile_cache: Path | None = None,
    ) -> "TorchBackend":
        """Load a bundle.

        Args:
            threads: PyTorch's CPU threads for the whole process.
            precision: of the weights, see `Bundle.lower`. In int8 and fp8 a GPU multiplies in bf16,
                a CPU in float32.
            compile, compile_cache: see `find_compiler`.

        Raises:
            BundleError: the bundle is incomplete, altered or does not fit its manifest; or the
                device cannot be used in this way.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        where = torch.device(device)
        compiler = find_compiler(compile, where, compile_cache)
        bundle = load_bundle(directory)
        if where.type == "cuda":
            # fp32 means fp32, as it already does for products of matrices.
            torch.backends.cudnn.allow_tf32 = False
            # In bf16, partial sums stay float32: a row's sum then hardly depends on the batch.
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            if precision == "fp8" and torch.cuda.get_device_capability(where) < _FP8_CAPABILITY:
                raise BundleError("this GPU has no fp8: set RPIAE_PRECISION to int8 or bf16")
        if precision != "fp32":
            in_bf16 = precision == "bf16" or where.type == "cuda"
            bundle.lower(precision, torch.bfloat16 if in_bf16 else torch.float32)
        bundle.to(device)
        if compiler is None:
            bundle.pack()
        return cls(bundle, device=device, max_rows=max_rows, precision=precision, compiler=compiler)

    def encode(self, images: Tensor) -> Posterior:
        (image_height, image_width), (_, height, width) = (
            self.limits.image_size,
            self.limits.latent_shape,
        )
        with self._guarded():
            if self._static is not None and (posterior := self._static.encode(images)):
                return posterior
            grid = (
                images.shape[-2] * height // image_height,
                images.shape[-1] * width // image_width,
            )
            return self._bundle.autoencoder.encode(images.to(self._device), grid=grid).latent_dist

    def decode(self, latents: Tensor) -> Tensor:
        with self._guarded():
            if self._static is not None:
                decoded = self._static.decode(latents)
                if decoded is not None:
                    return decoded
            return self._bundle.autoencoder.decode(latents.to(self._device)).sample

    def prefill(
        self, prompts: Sequence[str], source_latents: Tensor | None, *, guide: bool = False
    ) -> Context:
        denoiser, tokenizer = self._bundle.denoiser, self._bundle.tokenizer
        if denoiser is None or tokenizer is None:
            raise BackendError(f"{self._bundle.manifest.name} has no denoiser: it draws nothing")
        with self._guarded():
            tokens = tokenizer.encode(prompts).to(self._device)
            if source_latents is not None:
                source_latents = source_latents.to(self._device)
            context = denoiser.prefill(tokens, source_latents)
        if not guide:
            return context
        if self._bundle.guide is None or not isinstance(context, ClassContext):
            raise BackendError(f"{self._bundle.manifest.name} has no guide model")
        return context.of_guide()

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        x, t = x.to(self._device), t.to(self._device)
        denoiser, guide = self._bundle.denoiser, self._bundle.guide
        with self._guarded():
            match denoiser, context:
                case TextDenoiser(), TextContext():
                    return (self._static_denoiser or denoiser).velocity(x, t, context)
                case ClassDenoiser(), ClassContext():
                    models = self._static_denoiser or denoiser, self._static_guide or guide
                    return autoguided_velocity(*models, x, t, context)
        raise BackendError(f"a {type(context).__name__} is not this model's")

    def warm_up(self, sizes: Sequence[int]) -> None:
        if self._static is not None:
            # Graphs share memory, and the first one takes it.
            for size in sorted(sizes, reverse=True):
                for call in _COMPILED:
                    with suppress(OutOfMemory):  # that size then runs as it is, if it fits at all
                        most = size if call == "velocity" else self.limits.max_images
                        self._prepare(call, min(size, most))
            sizes = sizes[:1]  # the rest of the way, once
        elif self._device.type == "cpu":
            sizes = (1,)  # nothing depends on the batch, and large ones take a CPU long
        for size in sizes:
            images = min(size, self.limits.max_images)
            for call in ("encode", "decode"):
                example(self, call, images)()
            if self._bundle.denoiser is not None:
                example(self, "velocity", size)()

    def measure(self, call: Call, size: int) -> Cost:
        held, started = self._forget_peak(), time.perf_counter()
        self._prepare(call, size)
        preparing_s = time.perf_counter() - started
        seconds = seconds_of(example(self, call, size), self._device)
        return Cost(seconds, self._peak_bytes() - held, preparing_s)

    def _prepare(self, call: Call, size: int) -> None:
        """Compile and record a call of that many rows or images, if there is a compiler.

        Raises:
            BundleError: that failed, and was asked for.
        """
        if self._compiler is None or self._static is None:
            return
        try:
            self._make_ready(call, size)
        except OutOfMemory:
            raise
        except BackendError as error:
            if not self._compiler.optional:
                raise BundleError(f"{error}; RPIAE_COMPILE=off serves uncompiled") from error
            _log.warning("compiling failed, the model runs as it is: %s", error)
            self._static = self._static_denoiser = self._static_guide = None

    def _make_ready(self, call: Call, size: int) -> None:
        assert self._static is not None
        with self._guarded():
            if call == "encode":
                self._static.prepare_encode(size, self.limits.image_size)
            elif call == "decode":
                self._static.prepare_decode(size)
            elif call == "velocity" and self._static_denoiser is not None:
                for context in self._example_contexts():
                    self._static_denoiser.prepare(size, context)
                    if self._static_guide is not None:
                        self._static_guide.prepare(size, context)

    def _example_contexts(self) -> Iterator[Context]:
        """One row of each kind that steps are recorded for."""
        yield self.prefill([""], None)
        if {"edit", "variation"} & set(self._bundle.manifest.tasks):
            yield self.prefill([""], torch.zeros(1, *self.limits.latent_shape))

    def _forget_peak(self) -> int:
        """Bytes held now, from where the next peak is measured."""
        if self._device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device)

    def _peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0

    def free_bytes(self) -> int | None:
        if self._device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self._device)
        # What this process keeps but does not use is free for it too.
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return free + kept

    def memory_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return sum(map(packed_bytes, self._bundle.modules))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """No gradients, and the runtime's errors as ours."""
        try:
            with torch.inference_mode():
                yield
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from error
        except RuntimeError as error:
            if _CPU_OUT_OF_MEMORY in str(error):
                raise OutOfMemory(str(error)) from error
            raise BackendError(f"the model failed: {error}") from error
