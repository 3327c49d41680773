"""The `rpiae` command.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.manifest import Sampler
from service.command_group import CommandGroup
from service.console import (
    draw_with_progress,
    plain_errors,
    show_address,
    show_decoded,
    show_encoded,
)
from service.jobs_command import app as jobs_app

if TYPE_CHECKING:
    from service.offline import OfflineModel, PictureOptions
    from service.settings import Settings

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pictures from prompts, edits by instruction, and the latents between them.",
    epilog="Every setting also has an environment variable, RPIAE_<NAME>; see service/settings.py.",
)
app.add_typer(jobs_app, name="jobs")

BundleOption = Annotated[
    Path | None, typer.Option(help="The model's directory; default: bundles/stickers.")
]
RedisOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Address of the queue, e.g. redis://host:6379."),
]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")]
PortOption = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Default: 8000; 0 takes a free one.")
]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Worker processes; default: 1.")]
ProcessesOption = Annotated[
    int | None, typer.Option(min=1, help="Gateway processes on one port; default: 1.")
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


@app.command()
def serve(
    host: HostOption = None,
    port: PortOption = None,
    workers: WorkersOption = None,
    processes: ProcessesOption = None,
    bundle: BundleOption = None,
    redis_url: RedisOption = None,
) -> None:
    """Serve over HTTP: gateway, workers, and a private Redis unless one is given."""
    with plain_errors():
        from service import supervisor

        settings = _settings(
            host=host,
            port=port,
            workers=workers,
            gateway_processes=processes,
            bundle=bundle,
            redis_url=redis_url,
        )
        supervisor.serve(settings, lambda address: show_address(address, settings))


@app.command()
def gateway(
    host: HostOption = None,
    port: PortOption = None,
    processes: ProcessesOption = None,
    bundle: BundleOption = None,
    redis_url: RedisOption = None,
    index: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run only the HTTP gateway; workers take its jobs from Redis."""
    with plain_errors():
        from service import gateways
        from service.log import configure_logging

        settings = _settings(
            host=host, port=port, gateway_processes=processes, bundle=bundle, redis_url=redis_url
        )
        configure_logging(settings.log_level)
        gateways.run(settings, typer.echo, index)


@app.command()
def worker(
    bundle: BundleOption = None,
    redis_url: RedisOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers that share this machine's CPU cores.")
    ] = None,
    index: Annotated[
        int, typer.Option(min=0, help="Which of them: chooses its GPU and its metrics port.")
    ] = 0,
) -> None:
    """Run only a worker: it takes jobs from Redis and computes them on this machine's device."""
    with plain_errors():
        _quiet_threads()
        from service.worker_process import run_worker

        run_worker(_settings(bundle=bundle, redis_url=redis_url, workers=workers), index=index)


@app.command()
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
) -> None:
    """Draw a prompt, without a server."""
    with plain_errors():
        model, options = _offline(
            bundle,
            count=n,
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            guidance_min_t=guidance_min_t,
            guidance_max_t=guidance_max_t,
            negative_prompt=negative_prompt,
        )
        draw_with_progress(model, prompt, output, options)


@app.command()
def edit(
    image: Annotated[Path, typer.Argument(help="The picture to change.")],
    instruction: Annotated[str, typer.Argument(help="What to change.")],
    output: OutputOption = Path("out.png"),
    n: CountOption = 1,
    seed: SeedOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option(min=0, help="How closely to keep to the picture; 1 is off.")
    ] = None,
    strength: Annotated[
        float, typer.Option(min=0.01, max=1, help="Below 1 the run starts from the picture.")
    ] = 1.0,
    sampler: SamplerOption = None,
    guidance_min_t: MinTOption = None,
    guidance_max_t: MaxTOption = None,
    negative_prompt: NegativeOption = "",
    bundle: BundleOption = None,
) -> None:
    """Change a picture by an instruction, without a server."""
    with plain_errors():
        model, options = _offline(
            bundle,
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
        draw_with_progress(model, instruction, output, options, source=image)


@app.command()
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
) -> None:
    """Turn pictures into latents: tensors `latents`, `mean` and `logvar`, one row per picture.

    `boxes` holds where each lies in its frame, so that `decode` can cut off the bars beside it.
    """
    with plain_errors():
        model = _model(bundle)
        from service.offline_latents import encode_files

        encoded = encode_files(model, images, output, size=size, sample=sample, seed=seed)
        show_encoded(images, output, encoded)


@app.command()
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
) -> None:
    """Turn latents back into pictures."""
    with plain_errors():
        model = _model(bundle)
        from service.offline_latents import decode_file

        show_decoded(decode_file(model, latents, output, box=box))


def main() -> None:
    """Entry point of the installed `rpiae` command."""
    app()


def _settings(**options: Any) -> "Settings":
    from service.settings import load_settings

    return load_settings(**options)


def _quiet_threads() -> None:
    """OpenMP threads that spin while they wait stall each other on a busy machine.

    OpenMP reads this when torch is imported, so it comes before that.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _model(bundle: Path | None) -> "OfflineModel":
    _quiet_threads()
    from service.offline import OfflineModel

    return OfflineModel(_settings(bundle=bundle).bundle)


def _offline(bundle: Path | None, **options: Any) -> tuple["OfflineModel", "PictureOptions"]:
    model = _model(bundle)
    from service.offline import PictureOptions

    return model, PictureOptions(**options)


if __name__ == "__main__":
    main()
