"""A bundle of named classes away from HTTP: the engine's jobs and the offline commands."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig
from models.class_names import UnknownClass
from models.manifest import (
    AUTOENCODER_FILE,
    DENOISER_FILE,
    list_files,
    read_manifest,
    write_manifest,
)
from models.weights import save_weights
from service.backends.torch_backend import TorchBackend
from service.engine.engine import Engine
from service.engine.work import Failed, Finished, PictureWork
from service.errors import InvalidRequest
from service.offline import OfflineModel, PictureOptions, Source
from service.settings import load_settings

NAMES = ["golden retriever", "tench, Tinca tinca", "crane", "crane"]


@pytest.fixture(scope="module")
def class_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle's autoencoder with a denoiser of four classes, of random weights."""
    directory = tmp_path_factory.mktemp("classes") / "tiny"
    directory.mkdir()
    shutil.copy(tiny_bundle / AUTOENCODER_FILE, directory)
    config = ClassDenoiserConfig(
        latent_channels=8, latent_side=4, width=32, depth=1, num_heads=2, num_classes=len(NAMES)
    )
    save_weights(ClassDenoiser(config), directory / DENOISER_FILE, torch.float32)
    manifest = read_manifest(tiny_bundle)
    manifest = manifest.model_copy(
        update={
            "tasks": ["generate", "encode", "decode"],
            "vocabulary_file": None,
            "class_names": NAMES,
            "model": manifest.model | {"denoiser": dataclasses.asdict(config)},
            "files": list_files(directory, [AUTOENCODER_FILE, DENOISER_FILE]),
        }
    )
    write_manifest(directory, manifest)
    return directory


@pytest.fixture(scope="module")
def offline(class_bundle: Path) -> OfflineModel:
    return OfflineModel(load_settings(bundle=class_bundle))


def test_a_job_whose_prompt_is_no_class_fails_alone(class_bundle: Path):
    engine = Engine(TorchBackend.load(class_bundle), shift=1.5)
    prompts = {"a": "golden retriever", "b": "golden retreiver", "c": "1", "d": "crane"}
    for seed, (name, prompt) in enumerate(prompts.items()):
        engine.add(PictureWork(id=name, prompt=prompt, seed=seed, num_steps=2, guidance_scale=2.0))
    events = []
    while engine.has_work:
        events += engine.tick().events
    assert {event.job_id for event in events if isinstance(event, Finished)} == {"a", "c"}
    errors = {event.job_id: event.error for event in events if isinstance(event, Failed)}
    assert {name: type(error) for name, error in errors.items()} == {
        "b": UnknownClass,
        "d": UnknownClass,
    }
    assert "the nearest names are golden retriever (0)" in str(errors["b"])
    assert "2 (crane) or 3 (crane)" in str(errors["d"])


@pytest.mark.parametrize(
    ("prompt", "negative", "param", "text"),
    [
        ("golden retreiver", "", "prompt", "the nearest names are golden retriever (0)"),
        ("crane", "", "prompt", "send 2 (crane) or 3 (crane)"),
        ("4", "", "prompt", 'prompt "4" is out of range: send an index from 0 to 3'),
        ("tench", "trench", "negative_prompt", 'negative_prompt "trench" is no class'),
    ],
)
def test_offline_refuses_what_is_no_class(
    offline: OfflineModel, tmp_path: Path, prompt, negative, param, text
):
    options = PictureOptions(negative_prompt=negative)
    with pytest.raises(InvalidRequest) as caught:
        offline.draw("generate", prompt, tmp_path / "out.png", options)
    assert (caught.value.status, caught.value.code) == (422, "unknown_class")
    assert caught.value.param == param
    assert text in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_offline_has_no_edits_of_a_class_model(offline: OfflineModel, tmp_path: Path):
    with pytest.raises(InvalidRequest, match="tiny has no task edit") as caught:
        offline.draw(
            "edit",
            "make it blue",
            tmp_path / "out.png",
            PictureOptions(),
            source=Source(Path("a.png")),
        )
    assert caught.value.code == "unsupported_task"


def test_a_class_prompt_has_no_unknown_words(offline: OfflineModel):
    assert offline.unknown_words("golden retriever") == []
