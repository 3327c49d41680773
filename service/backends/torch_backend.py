"""The PyTorch runtime: a bundle's own modules, on the CPU or on a CUDA device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from models.bridge import Posterior
from models.bundle import Bundle, load_bundle
from models.class_denoiser import ClassContext, ClassDenoiser, autoguided_velocity
from models.context import Context
from models.packed_linear import packed_bytes
from models.text_context import TextContext
from models.text_denoiser import TextDenoiser
from service.backends.base import Call, Cost, Limits
from service.backends.measuring import MAX_IMAGES, MAX_ROWS, example, seconds_of
from service.errors import BackendError, OutOfMemory

_CPU_OUT_OF_MEMORY = "can't allocate memory"  # DefaultCPUAllocator's words; it has no own type


class TorchBackend:
    """A loaded bundle; see `Backend` for its calls."""

    name = "torch"

    def __init__(self, bundle: Bundle, *, device: str = "cpu", max_rows: int | None = None) -> None:
        """`max_rows` replaces the most rows that the device is tried with."""
        self._bundle = bundle
        self._device = torch.device(device)
        kind = self._device.type
        self.limits = Limits(
            image_size=bundle.manifest.image_size,
            latent_shape=bundle.manifest.latent_shape,
            max_rows=max_rows or MAX_ROWS.get(kind, MAX_ROWS["cpu"]),
            max_images=MAX_IMAGES.get(kind, MAX_IMAGES["cpu"]),
            other_sizes=bundle.manifest.other_sizes,
            padded=kind == "cuda",
        )

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        max_rows: int | None = None,
    ) -> "TorchBackend":
        """Load a bundle. `threads` sets PyTorch's CPU threads for the whole process.

        Raises:
            BundleError: the bundle is incomplete, altered or does not fit its manifest.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(load_bundle(directory, device).pack(), device=device, max_rows=max_rows)

    def encode(self, images: Tensor) -> Posterior:
        (image_height, image_width), (_, height, width) = (
            self.limits.image_size,
            self.limits.latent_shape,
        )
        grid = (
            images.shape[-2] * height // image_height,
            images.shape[-1] * width // image_width,
        )
        with self._guarded():
            return self._bundle.autoencoder.encode(images.to(self._device), grid=grid).latent_dist

    def decode(self, latents: Tensor) -> Tensor:
        with self._guarded():
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
                    return denoiser.velocity(x, t, context)
                case ClassDenoiser(), ClassContext():
                    return autoguided_velocity(denoiser, guide, x, t, context)
        raise BackendError(f"a {type(context).__name__} is not this model's")

    def warm_up(self, sizes: Sequence[int]) -> None:
        # A CPU compiles nothing that depends on the batch, and large batches take it long.
        for size in (1,) if self._device.type == "cpu" else sizes:
            images = min(size, self.limits.max_images)
            latents = self.encode(torch.zeros(images, 3, *self.limits.image_size)).mean
            self.decode(latents)
            if self._bundle.denoiser is not None:
                context = self.prefill([""] * size, None)
                x = torch.zeros(size, *self.limits.latent_shape)
                self.velocity(x, torch.ones(size), context)

    def measure(self, call: Call, size: int) -> Cost:
        held = self._forget_peak()
        seconds = seconds_of(example(self, call, size), self._device)
        return Cost(seconds, self._peak_bytes() - held)

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
