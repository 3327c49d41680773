"""The comparison of tokenizers: its variants, their chains end to end, results, table and plot."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from tests.unit.training.conftest import MODEL, TINY_STAGES, StageRunner
from training import joint
from training.batches import WORLDS
from training.cli import evaluate_command, train_command
from training.comparison import measure, report
from training.comparison.measure import PRETRAINED, Samples, evaluate_comparison, result_path
from training.comparison.plot import Panel, draw_plot, value_range
from training.comparison.variants import VARIANTS, Recipe, Variant, all_runs, variants
from training.config import AutoencoderConfig, DiffusionConfig, PretrainConfig
from training.plans import PLANS, find_plan
from training.readme import fill
from training.stickers import SHAPES_WORLD

ROOT = Path(__file__).parents[3]
PRETRAIN, PIVOT, *_, DIFFUSION = TINY_STAGES
assert isinstance(PRETRAIN, PretrainConfig)
assert isinstance(PIVOT, AutoencoderConfig)
assert isinstance(DIFFUSION, DiffusionConfig)
TINY = Recipe(
    pretrain=replace(PRETRAIN, steps=2, reconstruction_weight=0.0, checkpoint_every_s=60),
    tokenizer=replace(PIVOT, steps=2, num_components=16, checkpoint_every_s=60),
    diffusion=replace(DIFFUSION, steps=2, checkpoint_every_s=60),
    stage_steps=(2, 2, 2),
    latent_width=8,
    widths=(4,),
)
FEW = Samples(prompts=1, scenes=2, edits=1, steps=2)
SMALL_WORLD = replace(SHAPES_WORLD, edit_kinds=("recolour",))


def all_chains(test: Callable[..., None]) -> Callable[..., None]:
    """Marks of a test that needs every variant trained and measured; the first one waits."""
    return pytest.mark.slow(pytest.mark.timeout(200)(test))


@pytest.fixture(scope="module")
def small_things() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "INIT_IMAGES", 16)
        patch.setitem(WORLDS, "shapes", SMALL_WORLD)  # the judge takes its time with bad pictures
        yield


@pytest.fixture(scope="module")
def tiny_variants() -> dict[str, Variant]:
    return variants(TINY)


def command(name: Callable[..., None], *arguments: str) -> str:
    app = typer.Typer()
    app.command()(name)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def comparison(
    tmp_path_factory: pytest.TempPathFactory,
    run_stage: StageRunner,
    small_things: None,
    tiny_variants: dict[str, Variant],
) -> tuple[Path, Path]:
    """Finished runs of every variant, of seed 3 for one of them, and all their results."""
    root, results = (tmp_path_factory.mktemp(name) for name in ("compared", "results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PLANS, "compare", all_runs(list(tiny_variants.values())))
        patch.setitem(PLANS, "compare-rae", tiny_variants["rae"].runs)
        patch.setattr(measure, "VARIANTS", tiny_variants)
        patch.setattr(measure, "RESULTS", results)
        where = ("--root", str(root))
        command(train_command, "compare", *where)
        command(train_command, "compare-rae", *where, "--seed", "3")
        few = ("--prompts=1", "--scenes=2", "--edits=1", "--steps=2")
        shown = command(evaluate_command, "compare", *where, *few)
    assert "rae-seed3.json written" in "".join(shown.split("\n"))
    return root, results


def test_every_variant_has_the_same_budget_and_sizes() -> None:
    pretrained = 0
    for variant in VARIANTS.values():
        tokenizer = [run for run in variant.runs if isinstance(run, AutoencoderConfig)]
        assert sum(run.steps for run in tokenizer) == 1000, variant.name
        assert {run.batch_size for run in tokenizer} == {16}
        assert len({run.model.decoder for run in tokenizer}) == 1
        diffusion = variant.runs[-1]
        assert isinstance(diffusion, DiffusionConfig)
        assert diffusion.denoiser.latent_channels == diffusion.model.bridge.latent_width
        pretrained += variant.runs[0].name == "compare-pretrain"
        for before, run in zip(variant.runs, variant.runs[1:], strict=False):
            assert run.after == before.name
    assert pretrained == len(VARIANTS) - 1
    denoisers = [replace(v.runs[-1].denoiser, latent_channels=1) for v in VARIANTS.values()]
    assert all(denoiser == denoisers[0] for denoiser in denoisers)


def test_variants_differ_in_what_they_are_named_after() -> None:
    last = {name: variant.runs[-2] for name, variant in VARIANTS.items()}
    assert {name for name, run in last.items() if run.model.bridge.kind == "identity"} == {
        "rae",
        "no-bridge",
    }
    assert {name for name, run in last.items() if run.stage == "joint"} == {"kl", "end-to-end"}
    widths = {name: run.model.bridge.latent_width for name, run in last.items()}
    assert widths | {"full-8": 8, "full-16": 16, "full": 32, "full-64": 64} == widths
    assert VARIANTS["full-8"].runs[1] is VARIANTS["no-bridge"].runs[1]
    weights = {
        name: [run.pivot_weight for run in VARIANTS[name].runs if run.stage in ("pivot", "joint")]
        for name in VARIANTS
    }
    assert weights["no-pivot"] == weights["kl"] == [0.0]
    assert weights["full"] == weights["no-bridge"] == weights["end-to-end"] == [0.2]
    assert weights["rae"] == []


def test_a_chain_of_all_runs_each_run_once() -> None:
    names = [step.name for step in PLANS["compare"]]
    assert len(names) == len(set(names))
    for variant in VARIANTS.values():
        assert PLANS[f"compare-{variant.name}"] == variant.runs
        assert set(run.name for run in variant.runs) <= set(names)
    seen: set[str] = set()
    for step in PLANS["compare"]:
        assert step.after is None or step.after in seen
        seen.add(step.name)


def test_seeds_do_not_collide() -> None:
    chains = [find_plan("compare", [], seed) for seed in (None, 1, 11)]
    names = [step.name for chain in chains for step in chain]
    assert len(names) == len(set(names))
    assert find_plan("compare", [], 0) == find_plan("compare", [])
    full = find_plan("compare-full", [], 1)
    assert [step.seed for step in full] == [1] * 5
    assert [step.name for step in full[:2]] == [
        "compare-pretrain-seed1",
        "compare-full-pivot-seed1",
    ]
    assert full[1].after == "compare-pretrain-seed1"
    *stickers, bundle = find_plan("stickers", [], 2)
    assert bundle.directory == "bundles/stickers-seed2"
    names = [step.name for step in stickers]
    assert {bundle.diffusion, bundle.decoder} < set(names)
    assert all(name.endswith("-seed2") for name in names)
    assert {step.after for step in stickers} - {None} < set(names)


@all_chains
def test_every_chain_trains_and_is_measured(
    comparison: tuple[Path, Path], tiny_variants: dict[str, Variant]
) -> None:
    _, results = comparison
    expected = {result_path(results, name, 0) for name in (*tiny_variants, PRETRAINED)}
    expected |= {result_path(results, name, 3) for name in ("rae", PRETRAINED)}
    assert set(results.iterdir()) == expected
    for name, variant in tiny_variants.items():
        found = json.loads(result_path(results, name, 0).read_text())
        assert found["latent_shape"] == [variant.runs[-1].model.bridge.latent_width, 8, 8]
        assert [run["name"] for run in found["runs"]] == [run.name for run in variant.runs]
        assert 0 < found["reconstruction"]["psnr_db"] < 100
        assert set(found["prompts"]) == {"one_shape", "two_shapes"}
        assert set(found["probe"]) == {"tokens", "latents"}
        assert found["frechet"]["distance"] > 0
        assert {"revision", "hardware", "versions", "samples", "seconds"} <= found.keys()
    frozen, pretrained = (
        json.loads(result_path(results, name, 0).read_text()) for name in ("rae", PRETRAINED)
    )
    assert frozen["probe"]["tokens"] == pretrained["probe"]["tokens"]
    assert frozen["probe"]["latents"] == frozen["probe"]["tokens"]


@all_chains
def test_what_has_a_result_or_is_not_finished_is_left_alone(
    comparison: tuple[Path, Path], tiny_variants: dict[str, Variant], tmp_path: Path
) -> None:
    root, results = comparison
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert evaluate_comparison(root, results, FEW, tiny_variants) == []
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before

    (root / "compare-rae-diffusion-seedy").mkdir()
    longer = variants(replace(TINY, diffusion=replace(TINY.diffusion, steps=9)))
    assert evaluate_comparison(root, tmp_path, FEW, longer) == []


@all_chains
def test_tables_and_plot_show_the_results(
    comparison: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = comparison
    results = report.read_results(folder)
    assert next(iter(results)) == PRETRAINED
    block = report.comparison_block(results)
    row = next(line for line in block.splitlines() if line.startswith("| rae "))
    assert row.split("|")[2:4] == [" 32 ", " 2 "]
    assert " ± " in row
    readme, plot = tmp_path / "README.md", tmp_path / "plot.png"
    readme.write_text(f"a\n{report.START}\n{report.END}\nb\n")
    arguments = ["report", "--results", str(folder), "--readme", str(readme), "--plot", str(plot)]
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    assert report.main() == 1
    monkeypatch.setattr("sys.argv", arguments)
    assert report.main() == 0
    assert block in readme.read_text()
    assert plot.stat().st_size > 1000
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    assert report.main() == 0
    assert len(report.terminal_tables(folder)) == 2


def test_readme_shows_the_committed_results() -> None:
    results = report.read_results(ROOT / measure.RESULTS)
    if results:
        text = (ROOT / report.README).read_text(encoding="utf-8")
        assert fill(text, report.comparison_block(results), report.START, report.END) == text
        assert (ROOT / report.PLOT).exists()


def test_a_cell_is_the_mean_and_the_spread_over_seeds() -> None:
    reports = [{"reconstruction": {"psnr_db": value}} for value in (20.0, 22.0, 24.0)]
    metric = report.TOKENIZER_METRICS[0]
    assert report.cell(metric, reports) == "22.0 ± 2.0"
    assert report.cell(metric, reports[:1]) == "20.0"
    assert report.cell(metric, [{}]) == "-"


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(ValueError, match=r"odd\.json"):
        report.read_results(tmp_path)


def test_a_plot_shows_a_dot_where_its_value_is() -> None:
    panel = Panel(title="PSNR", digits=1, rows={"low": [10.0], "high": [30.0], "none": []})
    assert value_range(panel) == (8.0, 32.0)
    assert value_range(replace(panel, from_zero=True)) == pytest.approx((0.0, 33.0))
    low, high = (
        torch.tensor([x for x in range(image.width) if image.getpixel((x, y)) == (22, 92, 168)])
        for image, y in ((draw_plot([panel]), 102), (draw_plot([panel]), 146))
    )
    assert len(low) > 3
    assert len(high) > 3
    assert low.float().mean() < high.float().mean()
    with pytest.raises(ValueError, match="same rows"):
        draw_plot([panel, replace(panel, rows={"low": [1.0]})])
    assert MODEL.bridge.latent_width == TINY.latent_width
