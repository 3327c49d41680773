"""The commands that need no server: pictures and latents from files to files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from models.manifest import Sampler
from service.console import draw_with_progress, plain_errors, show_decoded, show_encoded

if TYPE_CHECKING:
    from service.offline import OfflineModel

_VARIATION_STRENGTH = 0.8  # as of the HTTP interface

Runtime: TypeAlias = Literal["auto", "torch", "onnxruntime", "tensorrt"]

BundleOption = Annotated[
    Path | None, typer.Option(help="The model's directory; default: bundles/stickers.")
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="PNG, JPEG or WebP file; several are numbered.")
]
CountOption = Annotated[int, typer.Option("--n", "-n", min=1, max=1000, help="Pictures to make.")]
SeedOption = Annotated[
    int | None, typer.Option(min=0, help="The same seed, the same picture; default: at random.")
]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Denoising steps; default: the bundle's.")
]
GuidanceOption = Annotated[
    float | None, typer.Option(min=0, help="How closely to follow the prompt; 1 is off.")
]
SamplerOption = Annotated[
    Sampler | None,
    typer.Option(help="Solver; heun runs the model twice in a step; default: the bundle's."),
]
MinTOption = Annotated[
    float | None,
    typer.Option("--guidance-min-t", min=0, max=1, help="Guidance acts from this t (1 is noise)"),
]
MaxTOption = Annotated[
    float | None, typer.Option("--guidance-max-t", min=0, max=1, help="... to this t.")
]
NegativeOption = Annotated[str, typer.Option(help="What to stay away from.")]
BackendOption = Annotated[
    Runtime | None,
    typer.Option(help="Runtime; auto measures and takes the fastest; default: RPIAE_BACKEND."),
]
ImageGuidanceOption = Annotated[
    float | None, typer.Option(min=0, help="How closely to keep to the picture; 1 is off.")
]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw; to a class model, a class.")],
    output: OutputOption = Path("out.png"),
    n: CountOption = 1,
    seed: SeedOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    sampler: SamplerOption = None,
    guidance_min_t: MinTOption = None,
    guidance_max_t: MaxTOption = None,
    negative_prompt: NegativeOption = "",
    bundle: BundleOption = None,
    backend: BackendOption = None,
) -> None:
    """Draw a prompt, without a server."""
    with plain_errors():
        model = _model(bundle, backend)
        from service.offline import PictureOptions

        options = PictureOptions(
            count=n,
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            guidance_min_t=guidance_min_t,
            guidance_max_t=guidance_max_t,
            negative_prompt=negative_prompt,
        )
        draw_with_progress(model, "generate", prompt, output, options)


def edit(
    image: Annotated[Path, typer.Argument(help="The picture to change.")],
    instruction: Annotated[str, typer.Argument(help="What to change.")],
    output: OutputOption = Path("out.png"),
    mask: Annotated[
        Path | None,
        typer.Option(help="PNG or WebP of the picture's size: only what is transparent changes."),
    ] = None,
    n: CountOption = 1,
    seed: SeedOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    image_guidance_scale: ImageGuidanceOption = None,
    strength: Annotated[
        float, typer.Option(min=0.01, max=1, help="Below 1 the run starts from the picture.")
    ] = 1.0,
    sampler: SamplerOption = None,
    guidance_min_t: MinTOption = None,
    guidance_max_t: MaxTOption = None,
    negative_prompt: NegativeOption = "",
    bundle: BundleOption = None,
    backend: BackendOption = None,
) -> None:
    """Change a picture by an instruction, without a server."""
    with plain_errors():
        model = _model(bundle, backend)
        from service.offline import PictureOptions, Source

        options = PictureOptions(
            count=n,
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            strength=strength,
            sampler=sampler,
            guidance_min_t=guidance_min_t,
            guidance_max_t=guidance_max_t,
            negative_prompt=negative_prompt,
        )
        source = Source(image, mask)
        draw_with_progress(model, "edit", instruction, output, options, source=source)


def variation(
    image: Annotated[Path, typer.Argument(help="The picture to vary.")],
    output: OutputOption = Path("out.png"),
    n: CountOption = 1,
    seed: SeedOption = None,
    steps: StepsOption = None,
    image_guidance_scale: ImageGuidanceOption = None,
    strength: Annotated[
        float, typer.Option(min=0.01, max=1, help="Near 0 repeats the picture; 1 starts anew.")
    ] = _VARIATION_STRENGTH,
    sampler: SamplerOption = None,
    bundle: BundleOption = None,
    backend: BackendOption = None,
) -> None:
    """Vary a picture, without a server."""
    with plain_errors():
        model = _model(bundle, backend)
        from service.offline import PictureOptions, Source

        options = PictureOptions(
            count=n,
            seed=seed,
            steps=steps,
            image_guidance_scale=image_guidance_scale,
            strength=strength,
            sampler=sampler,
        )
        draw_with_progress(model, "variation", "", output, options, source=Source(image))


def encode(
    images: Annotated[list[Path], typer.Argument(help="Pictures; padded to the size.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .safetensors file.")] = Path(
        "latents.safetensors"
    ),
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw from the posterior instead of its mean.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    size: Annotated[
        str,
        typer.Option(help="auto: the model's own; or WIDTHxHEIGHT; or native: each picture's own."),
    ] = "auto",
    bundle: BundleOption = None,
    backend: BackendOption = None,
) -> None:
    """Turn pictures into latents: tensors `latents`, `mean` and `logvar`, one row per picture.

    `boxes` holds where each lies in its frame, so that `decode` can cut off the bars beside it.
    """
    with plain_errors():
        model = _model(bundle, backend)
        from service.offline_latents import encode_files

        encoded = encode_files(model, images, output, size=size, sample=sample, seed=seed)
        show_encoded(images, output, encoded)


def decode(
    latents: Annotated[Path, typer.Argument(help="A .safetensors file (`latents`) or .npy file.")],
    output: OutputOption = Path("out.png"),
    box: Annotated[
        str,
        typer.Option(
            help="What to keep: auto, the file's boxes; none, the whole frame; or "
            "left,top,width,height in pixels, one for each picture, separated by ;"
        ),
    ] = "auto",
    bundle: BundleOption = None,
    backend: BackendOption = None,
) -> None:
    """Turn latents back into pictures."""
    with plain_errors():
        model = _model(bundle, backend)
        from service.offline_latents import decode_file

        show_decoded(decode_file(model, latents, output, box=box))


def quiet_threads() -> None:
    """OpenMP threads that spin while they wait stall each other on a busy machine.

    OpenMP reads this when torch is imported, so it comes before that.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _model(bundle: Path | None, backend: Runtime | None) -> "OfflineModel":
    quiet_threads()
    from service.log import configure_logging
    from service.offline import OfflineModel
    from service.settings import load_settings

    settings = load_settings(bundle=bundle, backend=backend)
    configure_logging("warning", settings.log_format)
    return OfflineModel(settings)
