"""Evaluation: the pieces on true pictures, the whole on a bundle of tiny runs, and its records."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from models.manifest import BundleError, read_manifest, write_manifest
from training import perceptual
from training.editing import EditCase, change_reached, held_out_edits
from training.evaluate import evaluate_bundle, summary
from training.following import categories, follow_prompts, held_out_prompts, rates
from training.geneval import CATEGORIES
from training.inception import Inception
from training.judge import Judge
from training.painting import Picture
from training.readme import END, START, fill, outdated
from training.rendering import render
from training.report_tables import tables
from training.scenes import EDIT_KINDS
from training.stickers import FULL_WORLD, SHAPES_WORLD
from training.verdicts import judge_scene

ROOT = Path(__file__).parents[3]
STICKERS = ROOT / "bundles" / "stickers"

WIDE_WORLD = replace(
    SHAPES_WORLD,
    sizes=("small", "large"),
    max_items=3,
    same_kind_counts=True,
    edit_kinds=EDIT_KINDS,
)


def test_categories_are_what_the_world_has() -> None:
    assert [one.name for one in categories(SHAPES_WORLD)] == ["one_shape", "two_shapes"]
    assert [one.name for one in categories(FULL_WORLD)] == [
        "one_shape",
        "two_shapes",
        "count_of_two",
        "count_of_three",
        "one_thing",
    ]


def test_a_painter_that_paints_the_scene_is_always_right(judge: Judge) -> None:
    for category in categories(WIDE_WORLD):
        cases = held_out_prompts(category, 12, seed=1)
        truth = {case.prompt: render(case.scene).image for case in cases}
        done: list[int] = []

        def paint(
            prompts: list[str], seeds: list[int], truth: dict[str, Picture] = truth
        ) -> list[Picture]:
            return [truth[prompt] for prompt in prompts]

        images, verdicts = follow_prompts(paint, judge, cases, batch_size=5, on_done=done.append)
        assert len(images) == 12
        assert done == [5, 5, 2]
        assert rates(verdicts) == dict.fromkeys(
            ("loose", "color", "background", "place", "strict"), 1.0
        )


def test_held_out_samples_depend_on_their_seed_alone() -> None:
    category = categories(SHAPES_WORLD)[0]
    assert held_out_prompts(category, 5, seed=3) == held_out_prompts(category, 9, seed=3)[:5]
    assert held_out_prompts(category, 5, seed=3) != held_out_prompts(category, 5, seed=4)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_the_true_target_reaches_the_change_and_the_source_does_not(
    judge: Judge, kind: str
) -> None:
    for case in held_out_edits(WIDE_WORLD, kind, 12, seed=2):
        assert case.edit.kind == kind
        target, source = judge.read(case.target), judge.read(case.source)
        assert judge_scene(target, case.edit.target).strict
        assert change_reached(target, case.edit)
        assert not judge_scene(source, case.edit.target).strict
        assert not change_reached(source, case.edit)


def test_unchanged_pixels_are_those_of_both_pictures() -> None:
    case: EditCase = held_out_edits(SHAPES_WORLD, "recolour", 1, seed=0)[0]
    assert case.unchanged.any()
    assert not case.unchanged.all()
    np.testing.assert_array_equal(case.source[case.unchanged], case.target[case.unchanged])


@pytest.fixture
def small_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Files of an LPIPS whose VGG has five convolutions of four channels."""
    monkeypatch.setattr(perceptual, "_VGG16", (4, 0, 4, 0, 4, 0, 4, 0, 4))
    monkeypatch.setattr(perceptual, "_WIDTHS", (4, 4, 4, 4, 4))
    torch.manual_seed(0)
    state = perceptual.Lpips().state_dict()
    heads = {
        f"lin{index}.model.1.weight": state.pop(f"heads.{index}.weight").abs() for index in range(5)
    }
    files = tmp_path / "vgg.safetensors", tmp_path / "heads.safetensors"
    for tensors, path in zip((state, heads), files, strict=True):
        save_file(tensors, path)
    return files


def test_a_bundle_is_measured_and_its_records_agree(
    tiny_stickers: Path,
    small_lpips: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = read_manifest(tiny_stickers)
    monkeypatch.setattr(Inception, "load", lambda path: lambda images: images.mean((2, 3)))
    numbers = {"num_prompts": 3, "num_scenes": 3, "num_edits": 2, "num_geneval": 2}
    report = evaluate_bundle(
        tiny_stickers,
        **numbers,
        seed=5,
        lpips_weights=small_lpips,
        inception_weights=Path("inception.pth"),
    )
    assert report["lpips_weights"] == ["vgg.safetensors", "heads.safetensors"]
    assert 0 < report["reconstruction"]["lpips"] < 10
    assert report["prompts"]["one_shape"]["num_prompts"] == 3
    assert report["prompts"]["two_shapes"]["num_prompts"] == 1
    assert set(report["edits"]) == set(SHAPES_WORLD.edit_kinds)
    assert report["options"] == {
        "num_steps": 2,
        "guidance_scale": 2.0,
        "image_guidance_scale": 1.0,
    }
    assert 0 < report["reconstruction"]["psnr_db"] < 100
    strict = report["prompts"]["one_shape"]["strict"]
    assert 0 <= strict["low"] <= strict["rate"] <= strict["high"] <= 1
    assert {"revision", "hardware", "versions", "seed"} <= report.keys()
    found = report["geneval"]
    assert list(found["categories"]) == [name for name in CATEGORIES if name != "counting"]
    assert found["absent"] == ["counting"]
    rates_found = [row["rate"] for row in found["categories"].values()]
    assert found["overall"]["rate"] == pytest.approx(sum(rates_found) / 5)
    assert summary(report)["geneval"]["categories"]["colors"] == rates_found[2]
    assert report["losses"]["tiny-pivot"]["perceptual"].startswith("gradient L1")
    frechet = report["frechet"]
    assert frechet["features"] == "picture_statistics"
    assert (frechet["num_pictures"], frechet["num_references"]) == (4, 12)
    assert frechet["distance"] > frechet["true_pictures"] > 0
    other = report["frechet_inception"]
    assert (other["num_pictures"], other["num_references"]) == (4, 12)
    assert other["distance"] > other["true_pictures"] > 0
    probe = report["linear_probe"]
    assert (probe["num_train_scenes"], probe["num_test_scenes"]) == (3, 1)
    for target in ("kind", "color", "background"):
        assert 0 <= probe[target]["low"] <= probe[target]["rate"] <= probe[target]["high"] <= 1
    titles = [table.title for table in tables(report)]
    assert titles[2] == "GenEval's categories, 2 prompts each"
    assert titles[4:] == [
        "linear probe of the tokens",
        "Frechet distance in picture_statistics",
        "Frechet distance in pool features of Inception, inception.pth",
    ]

    assert json.loads((tiny_stickers / "report.json").read_text()) == report
    after = read_manifest(tiny_stickers)
    assert after.quality == summary(report)
    assert after.model_copy(update={"quality": {}}) == before
    with Image.open(tiny_stickers / "samples.png") as sheet:
        assert sheet.width > 3 * 128

    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{START}\n{END}\n")
    files = outdated(readme, tiny_stickers)
    for path, text in files.items():
        path.write_text(text)
    assert {path.name for path in files} == {"README.md"}
    assert outdated(readme, tiny_stickers) == {}
    assert "| one shape (3) |" in readme.read_text()
    assert "| GenEval's categories (2 prompts each) | right |" in readme.read_text()
    assert "Not among what the model was trained to draw: counting." in readme.read_text()
    assert ", LPIPS 0." in readme.read_text()
    assert "(vgg.safetensors and heads.safetensors)." in readme.read_text()
    card = (tiny_stickers / "README.md").read_text()
    assert "- tiny-decoder: perceptual term: gradient L1, which stands in for LPIPS" in card
    assert "of 4 pictures from 12 true ones" in readme.read_text()
    assert "Linear probe of the encoder's tokens, 3 scenes to learn from" in readme.read_text()


def test_one_picture_has_no_frechet_distance(tiny_stickers: Path) -> None:
    manifest = read_manifest(tiny_stickers)
    draws = manifest.draws | {"max_items": 1}
    write_manifest(tiny_stickers, manifest.model_copy(update={"draws": draws}))
    report = evaluate_bundle(tiny_stickers, num_prompts=1, num_scenes=1, num_edits=1, num_geneval=0)
    assert list(report["prompts"]) == ["one_shape"]
    assert report["frechet"] is None
    assert report["geneval"] is None
    assert report["frechet_inception"] is None
    assert report["lpips_weights"] is None
    assert "lpips" not in report["reconstruction"]
    assert [table.title for table in tables(report)][-1] == "linear probe of the tokens"
    assert read_manifest(tiny_stickers).quality == summary(report)


def test_measuring_may_leave_the_bundle_alone(tiny_stickers: Path) -> None:
    before = {path: path.read_bytes() for path in tiny_stickers.iterdir()}
    options = {"num_steps": 1, "guidance_scale": 1.0, "image_guidance_scale": 2.0}
    report = evaluate_bundle(
        tiny_stickers,
        num_prompts=1,
        num_scenes=1,
        num_edits=1,
        num_geneval=1,
        write=False,
        **options,
    )
    assert report["options"] == options
    assert {path: path.read_bytes() for path in tiny_stickers.iterdir()} == before


def test_the_same_seed_measures_the_same(tiny_stickers: Path) -> None:
    first, second = (
        evaluate_bundle(
            tiny_stickers, num_prompts=2, num_scenes=2, num_edits=1, num_geneval=2, write=False
        )
        for _ in range(2)
    )
    assert first | {"seconds": 0} == second | {"seconds": 0}


def test_a_bundle_that_does_not_say_what_it_draws_is_refused(tiny_stickers: Path) -> None:
    manifest = read_manifest(tiny_stickers)
    write_manifest(tiny_stickers, manifest.model_copy(update={"draws": {}}))
    with pytest.raises(BundleError, match="draws"):
        evaluate_bundle(tiny_stickers, num_prompts=1, num_scenes=1, num_edits=1)


def test_numbers_below_one_are_refused(tiny_stickers: Path) -> None:
    with pytest.raises(ValueError, match="prompts must be at least 1, got 0"):
        evaluate_bundle(tiny_stickers, num_prompts=0)


@pytest.mark.parametrize("text", ["", START, END + START, START + END + START, START + END + END])
def test_a_readme_needs_one_pair_of_markers(text: str) -> None:
    with pytest.raises(ValueError, match="README"):
        fill(text, "block")


@pytest.mark.skipif(
    not (STICKERS / "report.json").exists(), reason="bundles/stickers has no report yet"
)
def test_readme_and_manifest_agree() -> None:
    assert list(outdated(ROOT / "README.md", STICKERS)) == []
