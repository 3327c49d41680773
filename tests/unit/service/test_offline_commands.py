"""`generate`, `edit` and `variation` from files to files, on any runtime."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from models.bundle import load_bundle
from models.sampler import SamplingOptions, generate_latents
from service.cli import app
from service.engine.images import to_uint8
from service.offline import OfflineModel, PictureOptions
from service.settings import load_settings

OPTIONS = ["--steps", "4", "--seed", "3", "--guidance-scale", "2"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (20, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "source.png")
    return tmp_path / "source.png"


def rpiae(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), int)


def text_of(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        return {str(name): text for name, text in image.info.items()}


def test_pictures_are_those_of_the_plain_sampler(tiny_bundle: Path, tmp_path: Path) -> None:
    """The engine is one way to run the model, `generate_latents` another."""
    steps: list[tuple[int, int]] = []
    model = OfflineModel(load_settings(bundle=tiny_bundle, threads=1))
    made = model.draw(
        "generate",
        "a red circle",
        tmp_path / "out.png",
        PictureOptions(count=3, seed=7, steps=5),
        on_step=lambda *progress: steps.append(progress),
    )
    bundle = load_bundle(tiny_bundle)
    assert bundle.denoiser is not None
    assert bundle.tokenizer is not None
    options = SamplingOptions(num_steps=5, shift=1.5, guidance_scale=2.0)
    latents = generate_latents(
        bundle.denoiser, bundle.tokenizer, ["a red circle"] * 3, [7, 8, 9], options
    )
    with torch.inference_mode():
        expected = to_uint8(bundle.autoencoder.decode(latents).sample)
    assert [(each.path.name, each.seed) for each in made] == [
        ("out-1.png", 7),
        ("out-2.png", 8),
        ("out-3.png", 9),
    ]
    for each, image in zip(made, expected.permute(0, 2, 3, 1).numpy(), strict=True):
        assert np.abs(pixels(each.path) - image).max() <= 1
    assert steps[-1] == (15, 15)
    assert steps == sorted(steps)


@pytest.mark.slow
@pytest.mark.timeout(300)  # the fixture exports a bundle
def test_every_runtime_draws_and_edits_the_same(
    exported_bundle: Path, source: Path, tmp_path: Path
) -> None:
    pictures: dict[str, list[np.ndarray]] = {}
    for backend in ("torch", "onnxruntime", "auto"):
        common = [*OPTIONS, "--bundle", exported_bundle, "--backend", backend]
        drawn, edited = tmp_path / f"{backend}.png", tmp_path / f"{backend}-edit.png"
        for result in (
            rpiae("generate", "a red circle", "-o", drawn, *common),
            rpiae("edit", source, "blue", "-o", edited, *common),
            rpiae("encode", source, "-o", tmp_path / "l.safetensors", *common[-4:]),
            rpiae("decode", tmp_path / "l.safetensors", "-o", tmp_path / "d.png", *common[-4:]),
        ):
            assert result.exit_code == 0, result.output
        files = (drawn, edited, tmp_path / "d.png")
        pictures[backend] = [pixels(file) for file in files]
    for backend in ("onnxruntime", "auto"):
        for ours, expected in zip(pictures[backend], pictures["torch"], strict=True):
            assert np.abs(ours - expected).max() <= 1


def test_a_runtime_that_the_bundle_has_nothing_for(tiny_bundle: Path) -> None:
    result = rpiae("generate", "red", "--bundle", tiny_bundle, "--backend", "onnxruntime")
    assert result.exit_code == 2
    assert "has no fp32 export; `rpiae export" in result.output


def test_a_mask_keeps_the_rest_of_the_picture(
    tiny_bundle: Path, source: Path, tmp_path: Path
) -> None:
    mask = Image.new("RGBA", (32, 20), "white")
    mask.paste((0, 0, 0, 0), (0, 0, 10, 20))
    mask.save(tmp_path / "mask.png")
    out, common = tmp_path / "out.png", [*OPTIONS, "--bundle", tiny_bundle]
    options = ["-o", out, "--mask", tmp_path / "mask.png", "--strength", "0.5"]
    result = rpiae("edit", source, "blue", *options, "--image-guidance-scale", "1.5", *common)
    assert result.exit_code == 0, result.output
    assert "in 32x32 and cropped back" in result.output
    before, after = pixels(source), pixels(out)
    assert before.shape == after.shape
    assert np.array_equal(before[:, 10:], after[:, 10:])
    assert not np.array_equal(before[:, :10], after[:, :10])
    text = text_of(out)
    assert (text["strength"], text["image_guidance_scale"]) == ("0.5", "1.5")
    assert (text["prompt"], text["seed"], text["guidance_scale"]) == ("blue", "3", "2.0")

    Image.new("RGB", (32, 20)).save(tmp_path / "mask.png")
    result = rpiae("edit", source, "blue", *options, *common)
    assert result.exit_code == 2
    assert "mask has no transparency" in result.output


def test_a_variation_needs_no_words(tiny_bundle: Path, source: Path, tmp_path: Path) -> None:
    common = ["-n", "2", "--steps", "4", "--seed", "1", "--bundle", tiny_bundle]
    assert rpiae("variation", source, "-o", tmp_path / "v.png", *common).exit_code == 0
    first, second = pixels(tmp_path / "v-1.png"), pixels(tmp_path / "v-2.png")
    assert not np.array_equal(first, second)
    assert text_of(tmp_path / "v-1.png")["strength"] == "0.8"
    assert text_of(tmp_path / "v-2.png")["seed"] == "2"


def test_pictures_from_words_tell_of_no_source(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert rpiae("generate", "red", "-o", out, *OPTIONS, "--bundle", tiny_bundle).exit_code == 0
    assert text_of(out).keys() == {
        "prompt", "seed", "steps", "sampler", "guidance_scale", "model",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)  # the fixture exports a bundle
def test_classes_are_drawn_with_their_guide(exported_class_bundle: Path, tmp_path: Path) -> None:
    pictures = []
    for backend in ("torch", "onnxruntime"):
        out = tmp_path / f"{backend}.png"
        common = ["--bundle", exported_class_bundle, "--backend", backend, "--seed", "1"]
        scaled = [*common, "--sampler", "euler", "--steps", "3", "--guidance-scale"]
        assert rpiae("generate", "1", "-o", out, *scaled, "1.8").exit_code == 0
        pictures.append(pixels(out))
        plain = tmp_path / "plain.png"
        assert rpiae("generate", "1", "-o", plain, *scaled, "1").exit_code == 0
        assert not np.array_equal(pixels(plain), pictures[-1])
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
