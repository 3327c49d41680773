"""The commands `generate`, `edit` and `variation` without a server: files in, files out.

They run what a worker runs, a backend under an engine, so that the same options give the same
pictures.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.bridge import Posterior
from models.manifest import BundleError, Manifest, Sampler, Task
from service.api.images.prompts import check_readable
from service.api.images.sampling import sampling_params
from service.api.images.sources import decode_mask
from service.api.new_jobs import require_task
from service.api.uploads import Upload, decode_image, decode_native_image
from service.engine.calibration import Calibration
from service.engine.engine import Engine
from service.engine.images import picture_text, to_float, to_uint8
from service.engine.work import Failed, Finished, PictureWork, Stepped
from service.errors import InvalidRequest
from service.jobs.job import MAX_SEED
from service.loading import load_backend
from service.offline_files import format_of, numbered, read_file, write_image
from service.outputs import crop, keep_unmasked
from service.served_model import ServedModel
from service.settings import Settings
from service.sizes import Size, Sizes

_MAX_PIXELS = 2**27
_MAX_SIDE = 4096  # of other sizes than the model's own
_MAX_ROWS, _MAX_IMAGES = 24, 8  # eight pictures side by side

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What the commands share; None takes the bundle's default, or a seed at random.

    image_guidance_scale and strength count only where there is a source.
    """

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
class Source:
    """The picture that an edit or a variation starts from, and a mask: what may change of it."""

    image: Path
    mask: Path | None = None


@dataclass(frozen=True)
class Made:
    """A picture's file and its seed; how its source came to the model's size, if it had to."""

    path: Path
    seed: int
    fitted: str | None = None


class OfflineModel:
    """The settings' bundle in the settings' runtime, for the commands that need no server.

    Raises:
        BundleError: the bundle is missing, incomplete or altered, or the runtime cannot serve it.
    """

    def __init__(self, settings: Settings) -> None:
        directory = settings.bundle
        self._served = ServedModel.read(directory)
        self.sizes = Sizes.of(self.manifest, _MAX_SIDE)
        # One picture is made before anything is compiled.
        settings = settings.model_copy(update={"compile": "off"})
        self._backend = load_backend(settings, directory, self.manifest).backend

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self._served.manifest

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the model never saw."""
        vocabulary = self._served.vocabulary
        return [] if vocabulary is None else vocabulary.unknown_words(prompt)

    def draw(
        self,
        task: Task,
        prompt: str,
        output: Path,
        options: PictureOptions,
        *,
        source: Source | None = None,
        on_step: Progress | None = None,
    ) -> list[Made]:
        """Draw pictures of a prompt, or of `source` and a prompt or without one, and write them.

        Several pictures of out.png become out-1.png, out-2.png and so on, with seeds that follow
        each other.

        Raises:
            InvalidRequest: the model has no such task or no such class, an option is out of its
                range, or a file cannot be used.
        """
        self._check_request(task, prompt, options)
        seed = secrets.randbelow(2**32) if options.seed is None else options.seed
        _check_range("seed", seed, 0, MAX_SEED - options.count)
        paths = numbered(output, options.count)
        format_of(output)  # refuses other formats before anything is computed
        upload, mask = None, None
        if source is not None:
            upload, mask = self._read_source(source)
        seeds = range(seed, seed + options.count)
        works = [self._work(prompt, seed, options, upload, mask) for seed in seeds]
        made = {}
        for work, images in self._pictures(works, on_step):
            (image,) = keep_unmasked(images, work)
            path = paths[seeds.index(work.seed)]
            kept = image if upload is None else crop(image, upload.box)
            write_image(path, kept, _text(work, self.manifest))
            made[work.seed] = Made(path, work.seed, _what_was_done(upload))
        return [made[seed] for seed in seeds]

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

    def _check_request(self, task: Task, prompt: str, options: PictureOptions) -> None:
        """Whether the model has the task and reads the prompts."""
        manifest = self.manifest
        require_task(manifest, task)
        if "denoiser" not in manifest.model:
            raise BundleError(f"manifest: tasks names {task}, but model has no denoiser for it")
        check_readable(manifest, self._served.class_names, prompt, options.negative_prompt)

    def _read_source(self, source: Source) -> tuple[Upload, Tensor | None]:
        """The picture in the model's frame, and where it may change, (H, W) bool."""
        upload = self.read_image(source.image, self.sizes.own)
        if source.mask is None:
            return upload, None
        data = read_file(source.mask)
        mask = decode_mask(data, upload, fit="pad", max_pixels=_MAX_PIXELS)
        return upload, torch.from_numpy(mask)

    def _work(
        self,
        prompt: str,
        seed: int,
        options: PictureOptions,
        upload: Upload | None,
        mask: Tensor | None,
    ) -> PictureWork:
        manifest = self.manifest
        params = sampling_params(options, manifest)
        image_guidance_scale = options.image_guidance_scale
        if image_guidance_scale is None:
            image_guidance_scale = manifest.default_image_guidance_scale
        return PictureWork(
            id=str(seed),
            prompt=prompt,
            negative_prompt=options.negative_prompt,
            seed=seed,
            num_steps=params["steps"],
            sampler=params["sampler"],
            guidance_scale=params["guidance_scale"],
            guidance_interval=(params["guidance_min_t"], params["guidance_max_t"]),
            image_guidance_scale=image_guidance_scale,
            strength=options.strength,
            autoguided=manifest.guidance == "autoguidance",
            source=None if upload is None else torch.from_numpy(upload.pixels),
            mask=mask,
        )

    def _pictures(
        self, works: Sequence[PictureWork], on_step: Progress | None
    ) -> Iterator[tuple[PictureWork, Tensor]]:
        """Each work with its picture (1, 3, H, W) uint8, as they become ready."""
        engine = Engine(self._backend, shift=self.manifest.timestep_shift, calibration=self._sizes)
        waiting = {work.id: work for work in works}
        for work in works:
            engine.add(work)
        done, total = 0, 0
        while waiting:
            for event in engine.tick().events:
                match event:
                    case Stepped():
                        done, total = done + 1, event.num_steps * len(works)
                    case Finished():
                        yield waiting.pop(event.job_id), event.tensors["images"]
                    case Failed():
                        raise event.error
            if on_step is not None and total:
                on_step(done, total)

    @property
    def _sizes(self) -> Calibration:
        """Batches that are large enough to be fast, and take no more memory than they need."""
        limits = self._backend.limits
        return Calibration(
            max_rows=min(_MAX_ROWS, limits.max_rows), max_images=min(_MAX_IMAGES, limits.max_images)
        )


def _text(work: PictureWork, manifest: Manifest) -> dict[str, str]:
    edited = work.source is not None
    return picture_text(
        prompt=work.prompt,
        seed=work.seed,
        num_steps=work.num_steps,
        sampler=work.sampler,
        guidance_scale=work.guidance_scale,
        image_guidance_scale=work.image_guidance_scale if edited else None,
        strength=work.strength if edited else None,
        model=manifest.name,
    )


def _what_was_done(source: Upload | None) -> str | None:
    if source is None or source.fitted == "none":
        return None
    return f"{source.fitted} and cropped back"


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be {low} to {high}, got {value}", param=name)
