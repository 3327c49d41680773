"""Published files to a bundle: what is found, what is refused, what comes out of the bundle."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from export.dims import PublishedDims
from export.import_published import PublishedFiles, find_files, import_published
from models.autoencoder import RPiAE
from models.bundle import load_bundle
from models.class_denoiser import ClassDenoiser
from models.manifest import GUIDE_FILE, BundleError, read_manifest
from service.cli import app
from tests.published_files import DENOISER_FILE, TOKENIZER_FILE, write_published_files

PARITY = Path(__file__).parents[2] / "data" / "parity"
DIMS_FILE = PARITY / "config.json"
DIMS = PublishedDims.read(DIMS_FILE)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    write_published_files(folder, DIMS)
    return folder


@pytest.fixture(scope="module")
def parity_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the parity weights, imported by the command."""
    output = tmp_path_factory.mktemp("bundles") / "parity"
    arguments = ["import-published", str(PARITY), "-o", str(output), "--dims", str(DIMS_FILE)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "stage1_state.safetensors is a tokenizer of stage 1" in result.output
    return output


def test_the_imported_modules_give_the_published_numbers(parity_bundle: Path) -> None:
    expected = load_file(PARITY / "stage3_io.safetensors")
    tokenizer = RPiAE.from_pretrained(parity_bundle)
    posterior = tokenizer.encode(expected["image"]).latent_dist
    assert torch.allclose(posterior.mean, expected["posterior_mean"], atol=1e-5, rtol=0)
    assert torch.allclose(posterior.logvar, expected["posterior_logvar"], atol=1e-5, rtol=0)
    images = tokenizer.decode(expected["latents"]).sample
    assert torch.allclose(images, expected["reconstruction"], atol=1e-5, rtol=0)
    expected = load_file(PARITY / "dit_io.safetensors")
    denoiser = ClassDenoiser.from_pretrained(parity_bundle)
    velocity = denoiser(expected["latents"], expected["t"], expected["labels"])
    assert torch.allclose(velocity, expected["velocity"], atol=1e-5, rtol=0)


def test_the_manifest_says_how_the_model_is_sampled(parity_bundle: Path) -> None:
    manifest = read_manifest(parity_bundle)
    assert manifest.tasks == ["generate", "encode", "decode"]
    assert manifest.image_size == (64, 64)
    assert manifest.latent_shape == (8, 4, 4)
    assert manifest.timestep_shift == DIMS.time_shift
    assert (manifest.sampler, manifest.guidance) == ("euler-reference", "autoguidance")
    assert manifest.default_guidance_scale == 2.05
    assert manifest.class_names == [f"class {index}" for index in range(10)]
    assert set(manifest.training["imported"]) == {
        "stage3_state.safetensors",
        "dit_state.safetensors",
        "dit_weak_state.safetensors",
    }


def test_the_later_epoch_is_the_model_and_the_earlier_its_guide(published: Path) -> None:
    files = find_files(published)
    assert files.denoiser == published / DENOISER_FILE
    assert files.guide is not None
    assert files.guide.name == "ep-0000020.pt"


def test_the_guide_of_the_bundle_is_the_weak_checkpoint(parity_bundle: Path) -> None:
    weak = load_file(PARITY / "dit_weak_state.safetensors")
    guide = ClassDenoiser.from_pretrained(parity_bundle, file=GUIDE_FILE)
    assert torch.equal(guide.state_dict()["to_velocity.weight"], weak["final_layer.linear.weight"])
    assert load_bundle(parity_bundle).guide is not None


def test_a_tokenizer_alone_encodes_and_decodes(tmp_path: Path) -> None:
    write_published_files(tmp_path / "files", DIMS, denoiser=False, guide=False)
    manifest = import_published(find_files(tmp_path / "files"), tmp_path / "tokenizer", DIMS)
    assert manifest.tasks == ["encode", "decode"]
    assert load_bundle(tmp_path / "tokenizer").denoiser is None


def test_without_a_guide_guidance_starts_from_the_null_class(tmp_path: Path) -> None:
    write_published_files(tmp_path / "files", DIMS, guide=False)
    manifest = import_published(find_files(tmp_path / "files"), tmp_path / "bundle", DIMS)
    assert (manifest.guidance, manifest.default_guidance_scale) == ("classifier-free", 1.0)


def without_a_tensor(tensors: dict[str, Tensor]) -> None:
    del tensors["decoder.decoder_norm.weight"]
    del tensors["encoder.encoder.embeddings.cls_token"]


def with_a_stranger(tensors: dict[str, Tensor]) -> None:
    tensors["decoder.extra"] = torch.ones(1)


def misshaped(tensors: dict[str, Tensor]) -> None:
    tensors["vb_feature_encoder.to_moments.bias"] = torch.ones(3)


def not_finite(tensors: dict[str, Tensor]) -> None:
    tensors["decoder.decoder_pred.bias"][3] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (
            without_a_tensor,
            [
                "missing decoder.decoder_norm.weight",
                "missing encoder.encoder.embeddings.cls_token",
            ],
        ),
        (with_a_stranger, ["unexpected decoder.extra"]),
        (misshaped, ["vb_feature_encoder.to_moments.bias has shape (3,), expected (16,)"]),
        (not_finite, ["not finite: decoder.to_pixels.bias"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_full_list(
    spoil: Callable[[dict[str, Tensor]], None], messages: list[str], published: Path, tmp_path: Path
) -> None:
    tensors = torch.load(published / TOKENIZER_FILE, weights_only=True)
    spoil(tensors)
    torch.save(tensors, published / TOKENIZER_FILE)
    with pytest.raises(BundleError) as error:
        import_published(find_files(published), tmp_path / "bundle", DIMS)
    assert all(message in str(error.value) for message in messages)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_other_rotary_positions_are_refused(published: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(published / DENOISER_FILE, weights_only=True)
    checkpoint["ema"]["feat_rope.freqs_sin"] *= 0.5
    torch.save(checkpoint, published / DENOISER_FILE)
    with pytest.raises(BundleError, match=r"other rotary positions .*: feat_rope\.freqs_sin"):
        import_published(find_files(published), tmp_path / "bundle", DIMS)


def test_published_sizes_refuse_small_files_and_name_every_tensor(
    published: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError) as error:
        import_published(find_files(published), tmp_path / "bundle", PublishedDims())
    message = str(error.value)
    assert "decoder.decoder_embed.weight has shape (48, 64), expected (1152, 768)" in message
    assert "missing decoder.decoder_layers.27.output.dense.weight" in message


def test_denoisers_that_cannot_be_told_apart(published: Path, tmp_path: Path) -> None:
    shutil.copy(published / DENOISER_FILE, published / "ep-0000800.pt")
    with pytest.raises(BundleError, match="do not say which is the guide"):
        find_files(published)


@pytest.mark.parametrize("folder", ["empty", "nowhere"])
def test_a_folder_without_a_tokenizer(folder: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"must hold one tokenizer|is not a folder"):
        find_files(tmp_path / folder)


def test_an_existing_bundle_is_not_overwritten(parity_bundle: Path, published: Path) -> None:
    before = (parity_bundle / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="exists already"):
        import_published(find_files(published), parity_bundle, DIMS)
    assert (parity_bundle / "manifest.json").read_bytes() == before


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["import-published", *map(str, arguments)])
    assert result.exit_code == 2
    return result.output


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ("{", "is not valid JSON"),
        ('{"dit": {"depth": 0}}', "dit.depth: Input should be greater than 0"),
        ('{"dit": {"qk_norm": false}}', "dit.qk_norm"),
        ('{"encoder": {"hiden_size": 3}}', "encoder.hiden_size: Extra inputs"),
        ('{"decoder": {"decoder_hidden_size": 50}}', "the sizes do not fit together"),
        ("[]", "(root)"),
    ],
)
def test_bad_sizes_name_their_field(
    dims: str, message: str, published: Path, tmp_path: Path
) -> None:
    (tmp_path / "dims.json").write_text(dims)
    output = invoke(published, "-o", tmp_path / "bundle", "--dims", tmp_path / "dims.json")
    assert message in output


def test_class_names_of_ones_own(published: Path, tmp_path: Path) -> None:
    names = [f"thing {index}" for index in range(10)]
    (tmp_path / "names.json").write_text(json.dumps(names))
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    options = [published, "-o", tmp_path / "bundle", "--dims", DIMS_FILE, "--class-names"]
    assert "2 class names for 10 classes" in invoke(*options, tmp_path / "few.txt")
    assert "cannot be read" in invoke(*options, tmp_path / "none.json")
    arguments = ["import-published", *map(str, options), str(tmp_path / "names.json")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert read_manifest(tmp_path / "bundle").class_names == names


def test_files_can_be_named_one_by_one(published: Path, tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, published / "other.safetensors")
    named = ["--tokenizer", published / TOKENIZER_FILE, "--denoiser", published / DENOISER_FILE]
    arguments = ["import-published", published, "-o", tmp_path / "bundle", "--dims", DIMS_FILE]
    result = CliRunner().invoke(app, [str(part) for part in (*arguments, *named)])
    assert result.exit_code == 0, result.output
    assert read_manifest(tmp_path / "bundle").guidance == "classifier-free"
    lone = invoke(published, "-o", tmp_path / "b", "--guide", published / DENOISER_FILE)
    assert "give it too" in lone


def test_a_name_that_no_model_can_have(published: Path, tmp_path: Path) -> None:
    files = PublishedFiles(tokenizer=published / TOKENIZER_FILE)
    with pytest.raises(BundleError, match="cannot be called 'my model'"):
        import_published(files, tmp_path / "my model", DIMS)
