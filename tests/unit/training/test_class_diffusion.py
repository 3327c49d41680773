"""The class-conditional denoiser on folders of classes: labels, dropout, resume, its bundle."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.autoencoder import RPiAE
from models.bundle import load_bundle
from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig
from models.transport import default_shift
from models.weights import load_weights
from tests.unit.training.conftest import MODEL, TINY_STAGES, StageRunner
from tests.unit.training.sample_files import encoded, picture
from training import class_diffusion
from training.batches import torch_generator
from training.bundled_denoiser import class_names
from training.bundling import BundleConfig, make_bundle
from training.class_diffusion import class_step, drop_classes, open_classes, open_rows
from training.config import ClassDiffusionConfig, ComputeConfig
from training.data_config import DataConfig
from training.data_files import class_collection
from training.datasets import DataError
from training.denoiser_presets import DENOISERS
from training.optim import learning_rate
from training.painting import BundlePainter
from training.processes import Processes
from training.run import Run

CLASSES = ("cat", "dog", "left hand")


@pytest.fixture
def root(tmp_path: Path, tiny_runs: Path) -> Path:
    shutil.copytree(tiny_runs, tmp_path / "runs", ignore=shutil.ignore_patterns("latents"))
    return tmp_path / "runs"


@pytest.fixture
def config(tmp_path: Path) -> ClassDiffusionConfig:
    """Classes whose pictures' red tells the class: 10, 20, 30; one picture has none."""
    for number, name in enumerate(CLASSES, start=1):
        for index in range(2 * number):
            path = tmp_path / "images" / name / f"{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(10 * number)))
    (tmp_path / "images" / "stray.png").write_bytes(encoded(picture(90)))
    return ClassDiffusionConfig(
        name="tiny-class",
        after="tiny-bridge",
        steps=3,
        batch_size=4,
        optim=TINY_STAGES[-1].optim,
        model=MODEL,
        denoiser=ClassDenoiserConfig(
            latent_channels=8, latent_side=8, width=32, depth=1, num_heads=2, num_classes=3
        ),
        data=DataConfig(kind="folder", path=str(tmp_path / "images"), crop="center", num_workers=0),
        statistics_images=8,
        checkpoint_every_s=0,
    )


def test_folders_are_classes_in_the_order_of_their_names(config: ClassDiffusionConfig) -> None:
    collection = class_collection(config.data)
    assert collection.classes == list(CLASSES)
    assert [(skip.name, skip.reason) for skip in collection.problems] == [
        ("stray.png", "in no class")
    ]
    rng = np.random.default_rng(0)
    samples = [collection.read(0, index, rng) for index in range(collection.lengths[0])]
    reds = [sample.pictures[0].getpixel((0, 0))[0] for sample in samples]
    assert [10 * (int(sample.text) + 1) for sample in samples] == reds
    assert sorted(reds) == [10] * 2 + [20] * 4 + [30] * 6


def test_it_trains_and_resumes_bit_for_bit(
    root: Path,
    config: ClassDiffusionConfig,
    run_stage: StageRunner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_stage(config, root)
    killed = replace(config, name="killed")
    update = class_diffusion.update
    with monkeypatch.context() as patch:
        calls = iter(range(2))

        def limited(*arguments: object) -> float:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return update(*arguments)

        patch.setattr(class_diffusion, "update", limited)
        with pytest.raises(KeyboardInterrupt):
            run_stage(killed, root)
    run_stage(killed, root)
    for name in ("denoiser", "ema", "optimizer", "autoencoder"):
        whole, resumed = (
            load_file(root / run / "checkpoint" / f"{name}.safetensors")
            for run in ("tiny-class", "killed")
        )
        assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())
    skipped = (root / "killed" / "skipped-data-0.jsonl").read_text()
    assert skipped.count("in no class") == 1


def test_classes_that_do_not_fit_are_named(
    root: Path, config: ClassDiffusionConfig, run_stage: StageRunner
) -> None:
    other = replace(config.denoiser, num_classes=4)
    with pytest.raises(DataError, match=r"holds 3 classes .* set denoiser\.num_classes=3"):
        run_stage(replace(config, denoiser=other), root)
    run_stage(config, root)
    folder = Path(config.data.path)
    (folder / "cat").rename(folder / "cow")
    with pytest.raises(DataError, match="has a class cow where the run began with cat"):
        run_stage(replace(config, steps=3), root)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="is not a folder"):
        run_stage(config, root)
    with pytest.raises(ValueError, match="classes are the folders of data"):
        replace(config, data=DataConfig(kind="shards"))


def test_pictures_without_folders_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encoded(picture(1)))
    with pytest.raises(DataError, match="holds images and no folders"):
        class_collection(DataConfig(kind="folder", path=str(tmp_path)))


def test_the_share_of_dropped_classes_is_the_one_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = drop_classes(torch.arange(5).repeat(2000), 7, 0.1, generator)
    assert float((labels == 7).float().mean()) == pytest.approx(0.1, abs=0.01)
    kept = labels != 7
    assert torch.equal(labels[kept], torch.arange(5).repeat(2000)[kept])


def test_micro_batches_are_one_batch(config: ClassDiffusionConfig) -> None:
    torch.manual_seed(0)
    latents, labels = torch.randn(5, 8, 8, 8), torch.randint(3, (5,))
    found = []
    for compute in (ComputeConfig(), ComputeConfig(micro_batches=2)):
        torch.manual_seed(1)
        denoiser = ClassDenoiser(config.denoiser)
        for parameter in denoiser.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
        generator = torch_generator(0, "noise", 0)
        loss = class_step(config, denoiser, latents, labels, 1.5, generator, Processes(compute))
        found.append((loss, [p.grad for p in denoiser.parameters()]))
    (whole, grads), (split, split_grads) = found
    assert split == pytest.approx(whole, rel=1e-5)
    for one, two in zip(grads, split_grads, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def test_processes_read_their_own_rows(root: Path, config: ClassDiffusionConfig) -> None:
    model = RPiAE(config.model)
    load_weights(model, root / "tiny-bridge" / "checkpoint" / "autoencoder.safetensors")

    def batch(rank: int, num_processes: int) -> tuple[torch.Tensor, torch.Tensor]:
        processes = Processes(config.compute)
        processes.rank, processes.num_processes = rank, num_processes
        run = Run(root, replace(config, name=f"rank-{rank}-of-{num_processes}"))
        plain = replace(config, statistics_images=0)
        collection = open_classes(plain, run)
        return open_rows(plain, run, collection, model, None, processes).batch(2)

    latents, labels = batch(0, 1)
    assert latents.any((1, 2, 3)).all()
    for rank in range(2):
        own_latents, own_labels = batch(rank, 2)
        own, others = slice(rank, None, 2), slice(1 - rank, None, 2)
        torch.testing.assert_close(own_latents[own], latents[own])
        assert torch.equal(own_labels[own], labels[own])
        assert not own_latents[others].any()


def test_its_bundle_draws_classes_by_name(
    root: Path, tmp_path: Path, config: ClassDiffusionConfig, run_stage: StageRunner
) -> None:
    run_stage(config, root)
    manifest = make_bundle(
        BundleConfig(
            name="b",
            bundle="classes",
            directory=str(tmp_path / "bundle"),
            diffusion="tiny-class",
            default_steps=2,
            guidance_scale=1.5,
        ),
        root,
    )
    assert manifest.tasks == ["generate", "encode", "decode"]
    assert manifest.class_names == list(CLASSES)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.tokenizer is not None
    assert bundle.tokenizer.encode(["Left hand", ""]).tolist() == [2, 3]
    pictures = BundlePainter.of(bundle).paint(["cat", "dog"], [1, 2])
    assert [image.shape for image in pictures] == [(128, 128, 3)] * 2


def test_imagenets_folders_get_its_names() -> None:
    folders = [f"n{number:08d}" for number in range(1000)]
    assert class_names(folders)[0].startswith("tench")
    assert class_names(["b", "a"]) == ["b", "a"]


def test_the_preset_is_the_published_schedule() -> None:
    config = DENOISERS["rpiae-class"]
    assert isinstance(config, ClassDiffusionConfig)
    epoch = config.steps // 800
    assert epoch == 1_281_167 // config.batch_size
    assert default_shift(config.denoiser.latent_shape) == 2

    def rate(step: int) -> float:
        return learning_rate(step, config.steps, config.optim)

    assert rate(0) == rate(40 * epoch - 1) == 2e-4
    assert rate(420 * epoch) == pytest.approx(1.1e-4)  # half-way down
    assert rate(config.steps - 1) == pytest.approx(2e-5, rel=1e-3)
