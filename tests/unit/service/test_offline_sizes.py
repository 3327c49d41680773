"""The offline commands on pictures of other sizes, with a real model of random weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from models.manifest import read_manifest, write_manifest
from service.cli import app
from service.errors import InvalidRequest
from service.offline import OfflineModel
from service.offline_latents import decode_file, encode_files
from service.settings import load_settings


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> OfflineModel:
    """32 x 32 pixels, cells of 8, and other sizes."""
    return OfflineModel(load_settings(bundle=tiny_bundle))


@pytest.fixture(scope="module")
def fixed_model(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> OfflineModel:
    """The same, without other sizes."""
    directory = tmp_path_factory.mktemp("bundles") / "fixed"
    shutil.copytree(tiny_bundle, directory)
    manifest = read_manifest(directory).model_copy(update={"other_sizes": False})
    write_manifest(directory, manifest)
    return OfflineModel(load_settings(bundle=directory))


def picture(folder: Path, width: int, height: int) -> Path:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = folder / f"{width}x{height}.png"
    Image.fromarray(values).save(path)
    return path


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


@pytest.mark.parametrize(
    ("size", "latents", "box", "result"),
    [
        ("auto", (1, 8, 4, 4), [0, 8, 32, 16], (32, 16)),
        ("48x40", (1, 8, 5, 6), [0, 8, 48, 24], (48, 24)),
        ("native", (1, 8, 3, 6), [1, 0, 46, 23], (46, 23)),
    ],
)
def test_round_trip(model: OfflineModel, tmp_path: Path, size, latents, box, result) -> None:
    file = tmp_path / "latents.safetensors"
    encoded = encode_files(model, [picture(tmp_path, 46, 23)], file, size=size)
    assert encoded.shape == latents
    assert encoded.fitted[0].startswith("pad 46x23 to ")
    assert load_file(file)["boxes"].tolist() == [box]
    (whole,) = decode_file(model, file, tmp_path / "whole.png", box="none")
    (cut,) = decode_file(model, file, tmp_path / "cut.png")
    assert cut.size == "{}x{}".format(*result)
    assert (cut.frame, whole.frame) == (whole.size, whole.size)
    left, top, width, height = box
    expected = opened(whole.path).crop((left, top, left + width, top + height))
    assert opened(cut.path).size == result
    assert opened(cut.path).tobytes() == expected.tobytes()


def test_pictures_do_not_depend_on_their_batch(model: OfflineModel, tmp_path: Path) -> None:
    paths = [picture(tmp_path, 40 + n, 64) for n in range(1, 7)]
    together, alone = tmp_path / "all.safetensors", tmp_path / "one.safetensors"
    encode_files(model, paths, together, size="64x64")
    latents = load_file(together)["latents"]
    for index, path in enumerate(paths):
        encode_files(model, [path], alone, size="64x64")
        np.testing.assert_allclose(latents[index], load_file(alone)["latents"][0], atol=1e-5)


def test_latents_of_a_file_without_boxes_are_whole(model: OfflineModel, tmp_path: Path) -> None:
    file = tmp_path / "latents.safetensors"
    save_file({"latents": np.zeros((2, 8, 2, 3), np.float32)}, file)
    decoded = decode_file(model, file, tmp_path / "out.png")
    assert [(each.path.name, each.size) for each in decoded] == [
        ("out-1.png", "24x16"),
        ("out-2.png", "24x16"),
    ]
    (first, second) = decode_file(model, file, tmp_path / "o.png", box="0,0,8,4;1,2,3,4")
    assert (opened(first.path).size, opened(second.path).size) == ((8, 4), (3, 4))


def test_what_is_refused(model: OfflineModel, fixed_model: OfflineModel, tmp_path: Path) -> None:
    file, image = tmp_path / "latents.safetensors", picture(tmp_path, 20, 10)
    with pytest.raises(InvalidRequest, match="multiple of 8 pixels"):
        encode_files(model, [image], file, size="33x32")
    with pytest.raises(InvalidRequest, match=r"frames of 24x16, 48x8: send pictures of one size"):
        encode_files(model, [image, picture(tmp_path, 48, 8)], file, size="native")
    with pytest.raises(InvalidRequest, match="tiny encodes at 32x32 only"):
        encode_files(fixed_model, [image], file, size="64x64")
    encode_files(model, [image], file)
    with pytest.raises(InvalidRequest, match="leaves the frame of 32x32"):
        decode_file(model, file, tmp_path / "out.png", box="0,0,33,1")
    with pytest.raises(InvalidRequest, match=r"must end in \.safetensors"):
        encode_files(model, [image], tmp_path / "latents.npy")


def test_commands_say_what_they_did(tiny_bundle: Path, tmp_path: Path) -> None:
    image, file, out = picture(tmp_path, 64, 32), tmp_path / "l.safetensors", tmp_path / "o.png"
    torch.set_num_threads(1)

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments), "--bundle", str(tiny_bundle)])
        assert result.exit_code == 0, result.output
        return result.output

    assert run("encode", image, "-o", file, "--size", "32x32").splitlines() == [
        f"{image}  pad 64x32 to 32x16 in 32x32",
        f"{file}  1 x 8 x 4 x 4",
    ]
    assert run("decode", file, "-o", out) == f"{out}  32x16, cropped back from 32x32\n"
    assert run("decode", file, "-o", out, "--box", "none") == f"{out}  32x32\n"
    edited = run("edit", image, "a red circle", "-o", out, "--seed", 1)
    assert f"{out}  seed 1  pad 64x32 to 32x16 in 32x32 and cropped back" in edited
    assert opened(out).size == (32, 16)
