"""The PyTorch runtime: a bundle's own modules, on the CPU or on a CUDA device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from models.bridge import Posterior
from models.bundle import Bundle, load_bundle
from models.context import Context
from models.text_denoiser import TextContext
from service.backends.base import Limits
from service.errors import BackendError, OutOfMemory

# A CPU is busy with 16 rows: more make a step longer without more pictures per second.
_MAX_ROWS = {"cpu": 16, "cuda": 64}
_MAX_IMAGES = {"cpu": 4, "cuda": 16}
_CPU_OUT_OF_MEMORY = "can't allocate memory"  # DefaultCPUAllocator's words; it has no own type


class TorchBackend:
    """A loaded bundle; see `Backend` for its calls."""

    name = "torch"

    def __init__(self, bundle: Bundle, *, device: str = "cpu", max_rows: int | None = None) -> None:
        """`max_rows` replaces the device's usual limit."""
        self._bundle = bundle
        self._device = torch.device(device)
        kind = self._device.type
        self.limits = Limits(
            image_size=bundle.manifest.image_size,
            latent_shape=bundle.manifest.latent_shape,
            max_rows=max_rows or _MAX_ROWS.get(kind, _MAX_ROWS["cpu"]),
            max_images=_MAX_IMAGES.get(kind, _MAX_IMAGES["cpu"]),
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
        return cls(load_bundle(directory, device), device=device, max_rows=max_rows)

    def encode(self, images: Tensor) -> Posterior:
        with self._guarded():
            return self._bundle.autoencoder.encode(images.to(self._device))

    def decode(self, latents: Tensor) -> Tensor:
        with self._guarded():
            return self._bundle.autoencoder.decode(latents.to(self._device))

    def prefill(
        self, prompts: Sequence[str], source_latents: Tensor | None, *, guide: bool = False
    ) -> Context:
        with self._guarded():
            tokens = self._bundle.tokenizer.encode(prompts).to(self._device)
            if source_latents is not None:
                source_latents = source_latents.to(self._device)
            return self._bundle.denoiser.prefill(tokens, source_latents)

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        assert isinstance(context, TextContext)
        with self._guarded():
            return self._bundle.denoiser.velocity(x.to(self._device), t.to(self._device), context)

    def warm_up(self, sizes: Sequence[int]) -> None:
        height, width = self.limits.image_size
        for size in sizes:
            images = min(size, self.limits.max_images)
            latents = self.encode(torch.zeros(images, 3, height, width)).mean
            self.decode(latents)
            context = self.prefill([""] * size, None)
            x = torch.zeros(size, *self.limits.latent_shape)
            self.velocity(x, torch.ones(size), context)

    def memory_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        modules = (self._bundle.autoencoder, self._bundle.denoiser)
        return sum(p.nbytes for module in modules for p in module.parameters())

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
