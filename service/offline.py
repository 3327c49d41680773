"""The commands `generate` and `edit` without a server: a bundle, files in, files out."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.bridge import Posterior
from models.bundle import Bundle, Denoiser, Tokenizer, load_bundle
from models.class_labels import ClassEncoder
from models.manifest import BundleError, Sampler, Task
from models.sampler import SamplingOptions, generate_latents
from service.api.images.prompts import check_readable
from service.api.images.sampling import sampling_params
from service.api.new_jobs import require_task
from service.api.uploads import Upload, decode_image, decode_native_image
from service.backends.torch_backend import TorchBackend
from service.engine.images import picture_text, to_float, to_uint8
from service.errors import InvalidRequest
from service.jobs.job import MAX_SEED
from service.offline_files import format_of, numbered, read_file, write_image
from service.outputs import crop
from service.sizes import Size, Sizes

_MAX_PIXELS = 2**27
_MAX_SIDE = 4096  # of other sizes than the model's own
_BATCH = 8  # pictures that are computed together

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What `generate` and `edit` share; None takes the bundle's default, or a seed at random."""

    count: int = 1
    seed: int | None = None
    steps: int | None = None
    sampler: Sampler | None = None
    guidance_scale: float | None = None
    guidance_min_t: float | None = None
    guidance_max_t: float | None = None
    negative_prompt: str = ""
    image_guidance_scale: float | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Made:
    """A picture's file and its seed; how its source came to the model's size, if it had to."""

    path: Path
    seed: int
    fitted: str | None = None


class OfflineModel:
    """A bundle on this machine's device, for the commands that need no server.

    Raises:
        BundleError: the bundle is missing, incomplete or altered.
    """

    def __init__(self, bundle: Path) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.bundle: Bundle = load_bundle(bundle, self._device).pack()
        self.sizes = Sizes.of(self.bundle.manifest, _MAX_SIDE)
        self._backend = TorchBackend(self.bundle, device=self._device)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the model never saw."""
        tokenizer = self.bundle.tokenizer
        return [] if tokenizer is None else tokenizer.unknown_words(prompt)

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
            InvalidRequest: the model has no such task or no such class, an option is out of its
                range, or a file cannot be used.
        """
        task: Task = "generate" if source is None else "edit"
        denoiser, tokenizer = self._check_request(task, prompt, options)
        seed = secrets.randbelow(2**32) if options.seed is None else options.seed
        _check_range("seed", seed, 0, MAX_SEED - options.count)
        seeds = range(seed, seed + options.count)
        sampling = self._sampling(options)
        paths = numbered(output, options.count)
        format_of(output)  # refuses other formats before anything is computed
        upload, source_latents = None, None
        if source is not None:
            upload = self.read_image(source, self.sizes.own)
            source_latents = self.encode(torch.from_numpy(upload.pixels)[None]).mean
        made = []
        steps = sampling.plan(from_source=source is not None).num_evaluations
        batches = [
            range(i, min(i + _BATCH, options.count)) for i in range(0, options.count, _BATCH)
        ]
        for number, batch in enumerate(batches):
            latents = generate_latents(
                denoiser,
                tokenizer,
                [prompt] * len(batch),
                [seeds[index] for index in batch],
                sampling,
                negative_prompts=[options.negative_prompt] * len(batch),
                source_latents=_repeat(source_latents, len(batch)),
                guide=self.bundle.guide,
                on_step=_shifted(on_step, number * steps, len(batches) * steps),
            )
            for index, image in zip(batch, self.decode(latents), strict=True):
                text = picture_text(
                    prompt=prompt,
                    seed=seeds[index],
                    num_steps=sampling.num_steps,
                    sampler=sampling.sampler,
                    guidance_scale=sampling.guidance_scale,
                    model=self.bundle.manifest.name,
                )
                kept = image if upload is None else crop(image, upload.box)
                write_image(paths[index], kept, text)
                made.append(Made(paths[index], seeds[index], _what_was_done(upload)))
        return made

    def read_image(self, path: Path, size: Size) -> Upload:
        """A picture file in a frame of that size, padded where its aspect ratio differs.

        Raises:
            InvalidRequest: it cannot be read, is no usable picture, or is too large.
        """
        data, param = read_file(path), str(path)
        if size == "native":
            return decode_native_image(data, sizes=self.sizes, max_pixels=_MAX_PIXELS, param=param)
        return decode_image(data, size=size, fit="pad", max_pixels=_MAX_PIXELS, param=param)

    def encode(self, pixels: Tensor) -> Posterior:
        """Posterior over latents (B, C, h, w) of images (B, 3, H, W) uint8."""
        return self._backend.encode(to_float(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 of latents (B, C, h, w)."""
        return to_uint8(self._backend.decode(latents))

    def _check_request(
        self, task: Task, prompt: str, options: PictureOptions
    ) -> tuple[Denoiser, Tokenizer]:
        """What draws, once it is known to have the task and to read the prompts."""
        manifest = self.bundle.manifest
        require_task(manifest, task)
        denoiser, tokenizer = self.bundle.denoiser, self.bundle.tokenizer
        if denoiser is None or tokenizer is None:
            raise BundleError(f"manifest: tasks names {task}, but model has no denoiser for it")
        class_names = tokenizer.names if isinstance(tokenizer, ClassEncoder) else None
        check_readable(manifest, class_names, prompt, options.negative_prompt)
        return denoiser, tokenizer

    def _sampling(self, options: PictureOptions) -> SamplingOptions:
        manifest = self.bundle.manifest
        params = sampling_params(options, manifest)
        image_guidance_scale = options.image_guidance_scale
        if image_guidance_scale is None:
            image_guidance_scale = manifest.default_image_guidance_scale
        return SamplingOptions(
            num_steps=params["steps"],
            shift=manifest.timestep_shift,
            sampler=params["sampler"],
            guidance_scale=params["guidance_scale"],
            image_guidance_scale=image_guidance_scale,
            guidance_interval=(params["guidance_min_t"], params["guidance_max_t"]),
            strength=options.strength,
        )


def _repeat(latents: Tensor | None, count: int) -> Tensor | None:
    return None if latents is None else latents.expand(count, *latents.shape[1:])


def _shifted(on_step: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one batch as that of all batches."""
    if on_step is None:
        return None
    return lambda done, _: on_step(before + done, total)


def _what_was_done(source: Upload | None) -> str | None:
    if source is None or source.fitted == "none":
        return None
    return f"{source.fitted} and cropped back"


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be {low} to {high}, got {value}", param=name)
