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
    tensorrt: Annotated[
        bool,
        typer.Option("--tensorrt", help="Build engines of the ONNX graphs, for this GPU alone."),
    ] = False,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"],
        typer.Option(
            help="fp16, bf16: half the size, for GPUs; bf16 for TensorRT alone. int8: faster on a "
            "CPU. All three draw slightly other pictures than fp32."
        ),
    ] = "fp32",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: as many as torch takes.")
    ] = None,
    max_rows: Annotated[
        int, typer.Option(min=1, help="Of the largest batch that engines take in one run.")
    ] = 32,
    workspace_gib: Annotated[
        float, typer.Option(min=0.125, help="GPU memory for each kernel of an engine, in GiB.")
    ] = 8.0,
    print_trtexec: Annotated[
        bool,
        typer.Option(
            "--print-trtexec",
            help="With --tensorrt: build nothing, print the commands of NVIDIA's trtexec instead.",
        ),
    ] = False,
) -> None:
    """Turn a bundle into files for other runtimes, inside the bundle.

    Each graph is compared with PyTorch, and so are pictures. The result is written into the
    bundle's manifest; only what passed is served.
    """
    _check_request(onnx=onnx, tensorrt=tensorrt, precision=precision, print_trtexec=print_trtexec)
    import torch

    from export.onnx_export import export_onnx
    from export.onnx_files import ExportError
    from export.tensorrt_export import export_tensorrt, trtexec_lines
    from models.exports import describe_parity
    from models.manifest import BundleError, Export

    if threads is not None:
        torch.set_num_threads(threads)
    made: dict[str, Export] = {}
    try:
        if onnx:
            made[f"onnx/{precision}"] = export_onnx(bundle, precision, typer.echo)
        if tensorrt and print_trtexec:
            for line in trtexec_lines(
                bundle,
                precision,
                _echo_aside,
                max_rows=max_rows,
                workspace_gib=workspace_gib,
            ):
                typer.echo(line)
        elif tensorrt:
            made[f"engines, {precision}"] = export_tensorrt(
                bundle, precision, typer.echo, max_rows=max_rows, workspace_gib=workspace_gib
            )
    except (BundleError, ExportError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_USAGE_ERROR) from None
    for name, export in made.items():
        if not export.passed:
            typer.echo(f"error: {name}: it is not served: {describe_parity(export)}", err=True)
            raise typer.Exit(_NOT_PASSED)
        typer.echo(f"{bundle}/{name}: passed")


def _check_request(*, onnx: bool, tensorrt: bool, precision: str, print_trtexec: bool) -> None:
    """End with a message unless that can be made, as far as options and packages tell."""
    problem = None
    missing = [name for name in _EXPORT_PACKAGES if find_spec(name) is None]
    if not onnx and not tensorrt:
        problem = "say what to export to: --onnx, --tensorrt or both"
    elif print_trtexec and not tensorrt:
        problem = "--print-trtexec needs --tensorrt"
    elif tensorrt and precision == "int8":
        problem = "int8 is for onnxruntime alone: take --precision fp16, bf16 or fp32"
    elif missing:
        problem = (
            f"{', '.join(missing)} not installed: pip install -c constraints.txt -e '.[export]'"
        )
    if problem is not None:
        typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(_USAGE_ERROR)


def _echo_aside(text: str) -> None:
    typer.echo(text, err=True)
