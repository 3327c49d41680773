"""What the commands write to a terminal: progress, results, addresses, errors."""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from models.manifest import Manifest, Task
    from service.offline import OfflineModel, PictureOptions, Source
    from service.offline_latents import Decoded, Encoded
    from service.settings import Settings

_EXAMPLE_PROMPT = "a red circle in the center on a blue background"
_USAGE_ERROR = 2
_INTERRUPTED = 130


@contextmanager
def plain_errors() -> Iterator[None]:
    """What the user can mend as one line on stderr and exit status 2; the rest is a bug."""
    from models.manifest import BundleError
    from service.errors import ServiceError
    from service.settings import SettingsError

    try:
        yield
    except (BundleError, ServiceError, SettingsError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_USAGE_ERROR) from None
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


def draw_with_progress(
    model: "OfflineModel",
    task: "Task",
    prompt: str,
    output: Path,
    options: "PictureOptions",
    *,
    source: "Source | None" = None,
) -> None:
    """Draw with a progress bar on stderr, then write each file's name and seed to stdout."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    unknown = model.unknown_words(prompt)
    if unknown:
        typer.echo(f"note: the model never saw {', '.join(unknown)}", err=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        steps = bar.add_task("steps")
        made = model.draw(
            task,
            prompt,
            output,
            options,
            source=source,
            on_step=lambda done, total: bar.update(steps, completed=done, total=total),
        )
    for picture in made:
        done = "" if picture.fitted is None else f"  {picture.fitted}"
        typer.echo(f"{picture.path}  seed {picture.seed}{done}")


def show_encoded(images: Sequence[Path], output: Path, encoded: "Encoded") -> None:
    """How each picture was made to fit, then the file of latents and its shape."""
    for path, fitted in zip(images, encoded.fitted, strict=True):
        if fitted != "none":
            typer.echo(f"{path}  {fitted}")
    typer.echo(f"{output}  {' x '.join(map(str, encoded.shape))}")


def show_decoded(pictures: Sequence["Decoded"]) -> None:
    """Each picture's file, its size, and what it was cut from."""
    for picture in pictures:
        cut = "" if picture.size == picture.frame else f", cropped back from {picture.frame}"
        typer.echo(f"{picture.path}  {picture.size}{cut}")


def show_address(address: str, settings: "Settings") -> None:
    """Where the service is, and a line that can be pasted to use it."""
    from models.manifest import read_manifest

    key = "-H 'Authorization: Bearer YOUR_KEY' " if settings.api_keys else ""
    typer.echo(f"rpiae serves {settings.bundle.name} on {address}")
    typer.echo(f"curl -sS {address}{_example(read_manifest(settings.bundle), key)}")


def _example(manifest: "Manifest", key: str) -> str:
    """Path and options of a request that the model can answer; key: the header that it needs."""
    from models.class_names import ClassNames

    if "generate" not in manifest.tasks:
        return (
            f"/v1/latents/encode {key}-H 'Content-Type: image/png' --data-binary @picture.png "
            "-o latents.safetensors"
        )
    class_names = ClassNames.of(manifest)
    prompt = _EXAMPLE_PROMPT if class_names is None else class_names.label(0)
    body = shlex.quote(json.dumps({"prompt": prompt, "seed": 1}))
    return (
        f"/v1/images/generations {key}-H 'Content-Type: application/json' "
        f"-H 'Accept: image/png' -d {body} -o out.png"
    )
