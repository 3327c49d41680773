"""The commands `rpiae train` and `rpiae evaluate`.

torch takes seconds to import and a help text should not wait for it, so what needs torch is
imported inside the commands.
"""

import errno
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from training.bundling import BundleConfig
    from training.config import RunConfig

_USAGE_ERROR = 2
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(f"[red]error:[/red] {message}", highlight=False, soft_wrap=True)
    raise typer.Exit(_USAGE_ERROR)


def train_command(
    preset: Annotated[
        str | None, typer.Argument(help="A stage, a chain of stages, or a bundle step.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Changes one field, e.g. optim.lr=3e-4."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: the preset's num_threads.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of all stages; from 1 on, names of runs end in it."),
    ] = None,
    list_presets: Annotated[bool, typer.Option("--list", help="Lists the presets.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Shows parameters, FLOPs and memory; trains nothing."),
    ] = False,
) -> None:
    """Train a stage or resume it: the same command goes on where it was stopped.

    `stickers` runs the whole chain and makes the bundle, `compare` trains all tokenizers that are
    compared; finished stages are skipped.
    """
    from models.manifest import BundleError
    from training.checkpoint import CheckpointError
    from training.datasets import DataError
    from training.optim import NotFiniteError
    from training.overrides import OverrideError
    from training.plans import find_plan
    from training.processes import ComputeError, leave

    if list_presets:
        Console().print(_preset_table())
        return
    if preset is None:
        _fail("which preset? `rpiae train --list` shows them")
    try:
        for step in find_plan(preset, overrides or [], seed):
            if dry_run:
                _show_costs(step)
            else:
                _run_step(step, root, threads)
        leave()
    except ModuleNotFoundError as error:
        if error.name != "tensorboard":
            raise
        _fail("tensorboard is missing; training needs the extra: pip install 'rpiae[train]'")
    except (
        CheckpointError,
        BundleError,
        ComputeError,
        DataError,
        NotFiniteError,
        OverrideError,
    ) as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _fail(f"{error}; make room, and the same command goes on from the last checkpoint")


def _run_step(step: "RunConfig | BundleConfig", root: Path, threads: int | None) -> None:
    import torch

    from training.bundling import BundleConfig, make_bundle
    from training.image_source import skip_summary
    from training.plans import check_spread, stage_main
    from training.processes import is_first_process, wait_for_all
    from training.run import Run

    console = Console(quiet=not is_first_process())
    if isinstance(step, BundleConfig):
        if is_first_process():
            manifest = make_bundle(step, root)
            size = sum(file.bytes for file in manifest.files) / 2**20
            console.print(f"{step.directory}: bundle {manifest.name}, {size:.1f} MiB")
        return
    run = Run(root, step)
    if run.finished:
        console.print(f"{step.name} is finished: {step.steps} steps in {run.directory}")
        return
    check_spread(step)
    console.print(_config_table(step))
    torch.set_num_threads(threads or step.num_threads)
    with run.alone() if is_first_process() else nullcontext():
        stage_main(step)(step, run)
    wait_for_all()  # the next stage reads what the first process has just written
    console.print(f"{step.name}: {step.steps} steps done, results in {run.directory}")
    if skipped := skip_summary(run.directory):
        console.print(skipped)


def _show_costs(step: "RunConfig | BundleConfig") -> None:
    from training.bundling import BundleConfig
    from training.dry_run import dry_run_tables

    console = Console()
    if isinstance(step, BundleConfig):
        console.print(f"{step.name}: trains nothing")
        return
    for table in dry_run_tables(step):
        console.print(table)


def _preset_table() -> Table:
    from training.plans import PLANS

    table = Table("preset", "runs")
    for name, steps in PLANS.items():
        table.add_row(name, ", then ".join(step.name for step in steps))
    return table


def _config_table(config: Any) -> Table:
    from training.overrides import flat

    table = Table("field", "value", title=config.name)
    for name, value in flat(config).items():
        table.add_row(name, str(value))
    return table


def evaluate_command(
    bundle: Annotated[
        Path, typer.Argument(help="Folder of the bundle; `compare`: the runs of `train compare`.")
    ],
    prompts: Annotated[
        int, typer.Option(min=1, help="Prompts with one shape; half as many of each other kind.")
    ] = 200,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes to encode and decode.")] = 500,
    edits: Annotated[
        int | None, typer.Option(min=1, help="Edits of each kind; default: 40, of `compare` 20.")
    ] = None,
    geneval: Annotated[
        int, typer.Option(min=0, help="Prompts in each of GenEval's categories; 0: none.")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the held-out samples.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; default: the manifest's.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0, help="Default: the manifest's.")
    ] = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option(min=0, help="For edits. Default: the manifest's.")
    ] = None,
    vgg_weights: Annotated[
        Path | None, typer.Option(help="File of torchvision's vgg16, for LPIPS.")
    ] = None,
    lpips_weights: Annotated[
        Path | None, typer.Option(help="File of LPIPS' linear heads for VGG16.")
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option(help="File of the FID's InceptionV3, for that distance.")
    ] = None,
    write: Annotated[
        bool, typer.Option(help="Write report, samples and the manifest's quality.")
    ] = True,
    root: Annotated[Path, typer.Option(help="`compare`: folder of the runs.")] = Path("runs"),
) -> None:
    """Measure a bundle on held-out scenes, prompts and edits, judged from pixels.

    `compare` measures the compared tokenizers whose runs are finished and not yet measured.
    """
    from models.manifest import BundleError
    from training.checkpoint import CheckpointError
    from training.evaluate import evaluate_bundle
    from training.report_tables import tables

    if bundle == Path("compare") and not bundle.exists():
        numbers = {"prompts": prompts, "scenes": scenes, "edits": edits, "seed": seed}
        scales = {"guidance_scale": guidance_scale, "image_guidance_scale": image_guidance_scale}
        _compare(root, **numbers, steps=steps, **scales)
        return
    if (vgg_weights is None) != (lpips_weights is None):
        _fail("LPIPS needs both --vgg-weights and --lpips-weights")
    try:
        report = evaluate_bundle(
            bundle,
            num_prompts=prompts,
            num_scenes=scenes,
            num_edits=40 if edits is None else edits,
            num_geneval=geneval,
            seed=seed,
            num_steps=steps,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            lpips_weights=(vgg_weights, lpips_weights) if vgg_weights and lpips_weights else None,
            inception_weights=inception_weights,
            write=write,
        )
    except (BundleError, CheckpointError) as error:
        _fail(str(error))
    console = Console()
    for table in tables(report):
        console.print(table)


def _compare(root: Path, **given: float | None) -> None:
    """Measure what is new; numbers of samples that are not given are those of `Samples`."""
    from models.manifest import BundleError
    from training.checkpoint import CheckpointError
    from training.comparison.measure import RESULTS, Samples, evaluate_comparison
    from training.comparison.report import terminal_tables

    console = Console()
    samples = Samples(**{name: value for name, value in given.items() if value is not None})
    try:
        written = evaluate_comparison(
            root, RESULTS, samples, on_result=lambda path: console.print(f"{path} written")
        )
    except (BundleError, CheckpointError) as error:
        _fail(str(error))
    if not written:
        console.print(f"nothing new is finished in {root}: `rpiae train compare` trains, or --root")
    for table in terminal_tables(RESULTS):
        console.print(table)
