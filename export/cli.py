"""The commands `rpiae import-published` and `rpiae export`.

What needs torch is imported inside the command: a help text should not wait for it.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

_USAGE_ERROR = 2
_NOT_PASSED = 1
_EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def import_published_command(
    folder: Annotated[Path, typer.Argument(help="Holds the published files, also in subfolders.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The bundle: a folder that does not exist yet.")
    ],
    dims: Annotated[
        Path | None, typer.Option(help="JSON with the sizes of files that have other ones.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the model; default: the bundle folder's.")
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(help="JSON list or text file, a class a line; default: ImageNet's."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The tokenizer's file; then only files that are named are read."),
    ] = None,
    denoiser: Annotated[
        Path | None, typer.Option(help="The denoiser's file, with --tokenizer.")
    ] = None,
    guide: Annotated[
        Path | None, typer.Option(help="The weaker denoiser's, for autoguidance.")
    ] = None,
) -> None:
    """Turn the published RPiAE checkpoints into a bundle that `rpiae serve` serves.

    Reads .pt and .safetensors; the files' own code is never run.
    """
    from export.dims import PublishedDims
    from export.import_published import (
        PublishedFiles,
        find_files,
        import_published,
        read_class_names,
    )
    from models.manifest import BundleError

    try:
        sizes = PublishedDims() if dims is None else PublishedDims.read(dims)
        names = None if class_names is None else read_class_names(class_names)
        if tokenizer is not None:
            files = PublishedFiles(tokenizer=tokenizer, denoiser=denoiser, guide=guide)
        elif denoiser is not None or guide is not None:
            raise BundleError("--denoiser and --guide name files beside --tokenizer: give it too")
        else:
            files = find_files(folder, typer.echo)
        manifest = import_published(
            files, output, sizes, name=name, class_names=names, report=typer.echo
        )
    except (BundleError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_USAGE_ERROR) from None
    typer.echo(f"{output}: {manifest.name}, for {', '.join(manifest.tasks)}")


def export_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write ONNX graphs, for onnxruntime and others.")
    ] = False,
    precision: Annotated[
        Literal["fp32", "int8"],
        typer.Option(help="int8: faster on a CPU, but it draws other pictures than fp32."),
    ] = "fp32",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: as many as torch takes.")
    ] = None,
) -> None:
    """Turn a bundle into files for other runtimes, inside the bundle.

    Each graph is compared with PyTorch, and so are pictures. The result is written into the
    bundle's manifest; only what passed is served.
    """
    from models.manifest import BundleError

    if not onnx:
        typer.echo("error: say what to export to: --onnx", err=True)
        raise typer.Exit(_USAGE_ERROR)
    missing = [name for name in _EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        typer.echo(
            f"error: {', '.join(missing)} not installed: pip install -c constraints.txt -e "
            "'.[export]'",
            err=True,
        )
        raise typer.Exit(_USAGE_ERROR)
    import torch

    from export.onnx_export import export_onnx
    from export.onnx_files import ExportError
    from models.exports import describe_parity

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        made = export_onnx(bundle, precision, typer.echo)
    except (BundleError, ExportError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_USAGE_ERROR) from None
    if not made.passed:
        typer.echo(f"error: it is not served: {describe_parity(made)}", err=True)
        raise typer.Exit(_NOT_PASSED)
    typer.echo(f"{bundle}/onnx/{precision}: passed")
