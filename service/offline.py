"""The commands that need no server: a bundle, files in, files out."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.bridge import Posterior
from models.bundle import Bundle, load_bundle
from models.sampler import SamplingOptions, generate_latents
from models.transport import start_step
from service.api.latents.formats import NPY_TYPE, SAFETENSORS_TYPE, read_latents
from service.api.uploads import decode_image
from service.engine.images import ImageFormat, encode_file, picture_text, to_float, to_uint8
from service.errors import InvalidRequest
from service.jobs.job import MAX_SEED

_FORMATS: dict[str, ImageFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
_QUALITY = 95
_MAX_PIXELS = 2**27
_BATCH = 8  # pictures that are computed together
_MAX_LATENTS = 4096

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What `generate` and `edit` share; None takes the bundle's default, or a seed at random."""

    count: int = 1
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    image_guidance_scale: float | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Made:
    """A picture's file and its seed."""

    path: Path
    seed: int


class OfflineModel:
    """A bundle on this machine's device, for the commands of this module.

    Raises:
        BundleError: the bundle is missing, incomplete or altered.
    """

    def __init__(self, bundle: Path) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.bundle: Bundle = load_bundle(bundle, self._device)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the model never saw."""
        return self.bundle.tokenizer.unknown_words(prompt)

    def draw(
        self,
        prompt: str,
        output: Path,
        options: PictureOptions,
        *,
        source: Path | None = None,
        on_step: Progress | None = None,
    ) -> list[Made]:
        """Draw pictures of a prompt, or edit `source` by it, and write them.

        Several pictures of out.png become out-1.png, out-2.png and so on, with seeds that follow
        each other.

        Raises:
            InvalidRequest: an option is out of the model's range, or a file cannot be used.
        """
        seed = secrets.randbelow(2**32) if options.seed is None else options.seed
        _check_range("seed", seed, 0, MAX_SEED - options.count)
        seeds = range(seed, seed + options.count)
        sampling = self._sampling(options)
        paths = _numbered(output, options.count)
        image_format = _format_of(output)
        source_latents = None
        if source is not None:
            source_latents = self._latents_of(source)
        made = []
        steps = sampling.num_steps - start_step(sampling.num_steps, sampling.strength)
        batches = [
            range(i, min(i + _BATCH, options.count)) for i in range(0, options.count, _BATCH)
        ]
        for number, batch in enumerate(batches):
            latents = generate_latents(
                self.bundle.denoiser,
                self.bundle.tokenizer,
                [prompt] * len(batch),
                [seeds[index] for index in batch],
                sampling,
                negative_prompts=[options.negative_prompt] * len(batch),
                source_latents=_repeat(source_latents, len(batch)),
                on_step=_shifted(on_step, number * steps, len(batches) * steps),
            )
            for index, image in zip(batch, self._images_of(latents), strict=True):
                text = picture_text(
                    prompt=prompt,
                    seed=seeds[index],
                    num_steps=sampling.num_steps,
                    guidance_scale=sampling.guidance_scale,
                    model=self.bundle.manifest.name,
                )
                _write(paths[index], encode_file(image, image_format, _QUALITY, text))
                made.append(Made(paths[index], seeds[index]))
        return made

    @torch.inference_mode()
    def encode(
        self, images: Sequence[Path], output: Path, *, sample: bool = False, seed: int = 0
    ) -> tuple[int, ...]:
        """Write latents, mean and logvar of pictures as safetensors; the shape of each.

        Raises:
            InvalidRequest: a file is no usable picture, or the output is no .safetensors file.
        """
        if output.suffix != ".safetensors":
            raise InvalidRequest(f"{output} must end in .safetensors", param="output")
        parts = [
            self.bundle.autoencoder.encode(self._read_images(images[first : first + _BATCH]))
            for first in range(0, len(images), _BATCH)
        ]
        posterior = Posterior(
            torch.cat([part.mean for part in parts]), torch.cat([part.logvar for part in parts])
        )
        latents = posterior.mean
        if sample:
            latents = posterior.sample(torch.Generator().manual_seed(seed))
        named = {"latents": latents, "mean": posterior.mean, "logvar": posterior.logvar}
        try:
            # Copies: safetensors refuses tensors that share memory, as `latents` and `mean` may.
            save_file({name: tensor.cpu().clone() for name, tensor in named.items()}, output)
        except OSError as error:
            raise _unwritable(output, error) from None
        return tuple(latents.shape)

    def decode(self, latents: Path, output: Path) -> list[Path]:
        """Write the pictures of latents, a .safetensors or .npy file.

        Raises:
            InvalidRequest: the file holds no latents of this model.
        """
        media_type = NPY_TYPE if latents.suffix == ".npy" else SAFETENSORS_TYPE
        array = read_latents(
            _read(latents),
            media_type,
            shape=self.bundle.manifest.latent_shape,
            max_latents=_MAX_LATENTS,
        )
        paths = _numbered(output, len(array))
        image_format = _format_of(output)
        for first in range(0, len(array), _BATCH):
            batch = torch.from_numpy(array[first : first + _BATCH].copy())
            for path, image in zip(paths[first:], self._images_of(batch), strict=False):
                _write(path, encode_file(image, image_format, _QUALITY))
        return paths

    def _sampling(self, options: PictureOptions) -> SamplingOptions:
        manifest = self.bundle.manifest
        steps = manifest.default_steps if options.steps is None else options.steps
        _check_range("steps", steps, 1, manifest.max_steps)
        guidance_scale = options.guidance_scale
        image_guidance_scale = options.image_guidance_scale
        if guidance_scale is None:
            guidance_scale = manifest.default_guidance_scale
        if image_guidance_scale is None:
            image_guidance_scale = manifest.default_image_guidance_scale
        return SamplingOptions(
            num_steps=steps,
            shift=manifest.timestep_shift,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            strength=options.strength,
        )

    def _read_images(self, paths: Sequence[Path]) -> Tensor:
        """(B, 3, H, W) in [0, 1], fitted to the model's size."""
        uploads = [
            decode_image(
                _read(path),
                size=self.bundle.manifest.image_size,
                fit="pad",
                max_pixels=_MAX_PIXELS,
                param=str(path),
            )
            for path in paths
        ]
        images = torch.stack([torch.from_numpy(upload.pixels) for upload in uploads])
        return to_float(images).to(self._device)

    @torch.inference_mode()
    def _latents_of(self, path: Path) -> Tensor:
        return self.bundle.autoencoder.encode(self._read_images([path])).mean

    @torch.inference_mode()
    def _images_of(self, latents: Tensor) -> Tensor:
        return to_uint8(self.bundle.autoencoder.decode(latents.to(self._device)))


def _repeat(latents: Tensor | None, count: int) -> Tensor | None:
    return None if latents is None else latents.expand(count, *latents.shape[1:])


def _shifted(on_step: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one batch as that of all batches."""
    if on_step is None:
        return None
    return lambda done, _: on_step(before + done, total)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be {low} to {high}, got {value}", param=name)


def _format_of(output: Path) -> ImageFormat:
    image_format = _FORMATS.get(output.suffix.lower())
    if image_format is None:
        raise InvalidRequest(f"{output} must end in one of {', '.join(_FORMATS)}", param="output")
    return image_format


def _numbered(output: Path, count: int) -> list[Path]:
    """`output`, or for several files output-1, output-2, ..."""
    if count == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, count + 1)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> InvalidRequest:
    return InvalidRequest(f"cannot write {path}: {error.strerror or error}", param="output")
