"""The text denoiser on files: captions, edits and both, with statistics and exact resume."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.autoencoder import RPiAE
from models.text import SPECIAL_TOKENS, UNKNOWN_ID
from models.weights import load_weights
from tests.unit.training.conftest import TINY_STAGES, StageRunner
from tests.unit.training.sample_files import (
    captioned_files,
    write_folder,
    write_lines,
    write_shard,
    write_table,
)
from tests.unit.training.test_processes import (
    SCRIPTS,
    TRAIN,
    ends_with_gloo,
    finish,
    last_terms,
)
from training import diffusion
from training.checkpoint import read_state
from training.config import DiffusionConfig
from training.data_config import DataConfig
from training.data_files import captioned_collection, edit_collection
from training.datasets import Batch, DataError
from training.file_rows import BatchPlan, FileRows, FileSources
from training.files import Files
from training.latent_facts import Facts, encode_images, latent_statistics, measure, measure_files
from training.processes import Processes
from training.prompts import make_tokenizer
from training.rows import Rows, noise_rows, own_rows
from training.run import Run

DIFFUSION = TINY_STAGES[-1]
assert isinstance(DIFFUSION, DiffusionConfig)


@pytest.fixture
def root(tmp_path: Path, tiny_runs: Path) -> Path:
    """Runs in which a bridge is all there is."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny-bridge").symlink_to(tiny_runs / "tiny-bridge")
    return tmp_path / "runs"


def data(kind: str, path: Path) -> DataConfig:
    return DataConfig(kind=kind, path=str(path), crop="center", num_workers=0)


def config_for(folder: Path, kind: str, **changes: object) -> DiffusionConfig:
    """A run of three steps of four rows on a data set that is made in `folder`."""
    share = {"shards": 0.0, "both": 0.5}.get(kind, 1.0)
    sources = {"data": data("shards" if kind == "both" else kind, folder / "a")}
    if kind in ("shards", "both"):
        write_shard(folder / "a" / "0.tar", captioned_files(range(6)))
    if kind == "jsonl":
        write_lines(folder / "a" / "0.jsonl", range(5))
    if kind == "parquet":
        write_table(folder / "a" / "0.parquet", range(5))
    if kind == "both":
        write_table(folder / "b" / "0.parquet", range(5))
        sources["edit_data"] = data("parquet", folder / "b")
    fields = {"edit_share": share, "steps": 3, "batch_size": 4, "statistics_images": 8}
    return replace(DIFFUSION, name=f"files-{kind}", **sources, **{**fields, **changes})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.stem}/{key}": tensor
        for path in sorted((run / "checkpoint").glob("*.safetensors"))
        for key, tensor in load_file(path).items()
    }


def stop_after(updates: int, update: Callable) -> Callable:
    """`update`, which a signal interrupts after so many calls."""
    calls = iter(range(updates))

    def limited(*arguments: object) -> float:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return update(*arguments)

    return limited


@pytest.mark.parametrize("kind", ["shards", "jsonl", "parquet", "both"])
def test_it_trains_on_every_layout_and_resumes_bit_for_bit(
    root: Path, tmp_path: Path, run_stage: StageRunner, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = config_for(tmp_path, kind)
    run_stage(config, root)
    whole = weights(root / config.name)
    assert (whole["autoencoder/latents_std"] != 1).all()
    killed = replace(config, name="killed")
    with monkeypatch.context() as patch:
        patch.setattr(diffusion, "update", stop_after(2, diffusion.update))
        with pytest.raises(KeyboardInterrupt):
            run_stage(killed, root)
    assert read_state(root / "killed" / "checkpoint")["step"] == 2
    run_stage(killed, root)
    resumed = weights(root / "killed")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    words = read_state(root / "killed" / "checkpoint")["extra"]["words"]
    assert words[: len(SPECIAL_TOKENS)] == list(SPECIAL_TOKENS)
    assert {"change", "4"} & set(words) or {"long", "short"} & set(words)


def test_other_data_are_refused_at_resume(
    root: Path, tmp_path: Path, run_stage: StageRunner
) -> None:
    config = config_for(tmp_path, "both")
    run_stage(config, root)
    write_table(tmp_path / "b" / "0.parquet", range(4))
    with pytest.raises(DataError, match=r"0\.parquet holds 4 samples now, 5 when the run began"):
        run_stage(config, root)


@pytest.fixture
def model(root: Path) -> RPiAE:
    model = RPiAE(DIFFUSION.model)
    load_weights(model, root / "tiny-bridge" / "checkpoint" / "autoencoder.safetensors")
    return model


@pytest.mark.parametrize("per_channel", [False, True])
def test_statistics_are_those_of_all_latents(per_channel: bool) -> None:
    latents = 3 + 2 * torch.randn(24, 5, 4, 4) * torch.tensor([1.0, 2, 3, 4, 5])[:, None, None]
    batches = [Batch((part, part), [], []) for part in latents.split(7)]
    facts = measure(batches, lambda x: x, per_channel=per_channel, num_words=None)
    mean, std = latent_statistics(latents, per_channel)
    torch.testing.assert_close(torch.tensor(facts.mean), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(facts.std), std, rtol=1e-5, atol=1e-5)
    assert facts.words is None


def test_normalized_latents_have_the_measured_statistics(tmp_path: Path, model: RPiAE) -> None:
    write_shard(tmp_path / "a" / "0.tar", captioned_files(range(6)))
    source = data("shards", tmp_path / "a")
    files = Files(
        captioned_collection(source), source, 128, directory=tmp_path / "run", name="data", rank=0
    )
    facts = measure_files(
        files,
        model,
        Processes(DIFFUSION.compute),
        seed=0,
        num_images=32,
        per_channel=True,
        num_words=5,
    )
    assert facts.words is not None
    assert len(facts.words) == 5
    read = files.reader(seed=0, stream="statistics", batch_size=32, num_steps=1)
    model.set_normalization(facts.mean, facts.std)
    latents = encode_images(model, read(0).pictures[0], Processes(DIFFUSION.compute))
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(8), rtol=1e-3, atol=1e-3)


def test_the_commonest_words_are_kept() -> None:
    texts = ["A red cat", "a red dog", "a cat; blue"]
    batch = Batch((torch.randn(3, 2, 2, 2),), texts, [])
    facts = measure([batch], lambda x: x, per_channel=False, num_words=6)
    assert facts.words == [*SPECIAL_TOKENS, "a", "cat", "red"]


def rows_of(
    root: Path, config: DiffusionConfig, model: RPiAE, rank: int, num_processes: int
) -> FileRows:
    """The rows of one process of several, without starting any."""
    processes = Processes(config.compute)
    processes.rank, processes.num_processes = rank, num_processes
    run = Run(root, replace(config, name=f"rank-{rank}-of-{num_processes}"))
    tokenizer = make_tokenizer(config.denoiser, [*SPECIAL_TOKENS, "change", "0", "1"], None)
    return FileRows(config, FileSources(config, run, rank), model, tokenizer, processes)


def test_processes_read_their_own_rows_of_the_same_batch(
    root: Path, tmp_path: Path, model: RPiAE
) -> None:
    config = config_for(tmp_path, "both", batch_size=7, source_dropout=0.4)
    whole = [rows_of(root, config, model, 0, 1).batch(step) for step in range(3)]
    for rank in range(2):
        source = rows_of(root, config, model, rank, 2)
        for step, expected in enumerate(whole):
            for found, all_rows in zip(source.batch(step), expected, strict=True):
                own = slice(rank, None, 2)
                others = slice(1 - rank, None, 2)
                assert found.latents.shape == all_rows.latents.shape
                torch.testing.assert_close(found.latents[own], all_rows.latents[own])
                assert torch.equal(found.prompts[own], all_rows.prompts[own])
                assert not found.latents[others].any()
                assert (found.source is None) == (all_rows.source is None)
                if found.source is not None:
                    torch.testing.assert_close(found.source[own], all_rows.source[own])


def test_rows_are_encoded_pictures_with_their_texts(
    root: Path, tmp_path: Path, model: RPiAE
) -> None:
    """Source and target of the same pair, with its instruction: red tells which is which."""
    config = config_for(tmp_path, "jsonl", source_dropout=0.0)
    (rows,) = rows_of(root, config, model, 0, 1).batch(0)
    source = config.data
    files = Files(edit_collection(source), source, 128, directory=tmp_path, name="x", rank=0)
    batch = files.reader(seed=0, stream="diffusion-edits", batch_size=4, num_steps=1)(0)
    before, after = batch.pictures
    red_before, red_after = (255 * images[:, 0].mean((1, 2)) for images in (before, after))
    torch.testing.assert_close(red_after - red_before, torch.full((4,), 100.0), rtol=0, atol=2)
    encode = Processes(config.compute)
    torch.testing.assert_close(rows.latents, encode_images(model, after, encode))
    torch.testing.assert_close(rows.source, encode_images(model, before, encode))
    assert [text.split()[0] for text in batch.texts] == ["change"] * 4
    assert (rows.prompts[:, 0] == len(SPECIAL_TOKENS)).all()
    known = {"0": 4, "1": 5}
    expected = [known.get(text.split()[1], UNKNOWN_ID) for text in batch.texts]
    assert rows.prompts[:, 1].tolist() == expected


def test_a_plan_deals_every_row_once() -> None:
    parts = [[slice(2 * rank + index, None, 4) for index in range(2)] for rank in range(2)]
    plans = [BatchPlan(3, 5, 6, 0.3, tuple(own)) for own in parts]
    dropped = [plans[0].num_dropped(step) for step in range(400)]
    assert np.mean(dropped) == pytest.approx(6 * 0.3, abs=0.2)
    for step in range(20):
        assert sorted(row for plan in plans for row in plan.captions(step)) == list(range(5))
        assert sorted(row for plan in plans for row in plan.edits(step)) == list(range(6))
        for plan, own in zip(plans, parts, strict=True):
            num_bare = sum(row < dropped[step] for row in plan.edits(step))
            assert plan.edits(step)[num_bare:] == [
                dropped[step] + row for row in own_rows(own, 6 - dropped[step])
            ]


def test_text_and_source_are_dropped_independently(root: Path, tmp_path: Path) -> None:
    """So all four forms of context come up, in the shares that the config says."""
    config = replace(DIFFUSION, text_dropout=0.3, source_dropout=0.2, unknown_share=0.0)
    plan = BatchPlan(0, 0, 50, config.source_dropout, (slice(None),))
    prompts = torch.full((50, 4), 7)
    counts = torch.zeros(2, 2)
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        num_bare = plan.num_dropped(step)
        for index, count in enumerate((num_bare, 50 - num_bare)):
            latents = torch.zeros(count, 1, 1, 1)
            rows = Rows(latents, prompts[:count], torch.zeros(count, 1, 1), None)
            noised = noise_rows(config, rows, 1.0, generator)
            kept = int((noised.prompts[:, 0] == 7).sum())
            counts[index] += torch.tensor([count - kept, kept])
    shares = counts / counts.sum()
    expected = torch.outer(torch.tensor([0.2, 0.8]), torch.tensor([0.3, 0.7]))
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.03)


def test_a_pretrained_null_prompt_takes_the_place_of_dropped_ones() -> None:
    config = replace(DIFFUSION, text_dropout=0.5, unknown_share=1.0)
    null = torch.tensor([9, -1, -1])
    latents = torch.zeros(64, 1, 1, 1)
    rows = Rows(latents, torch.full((64, 3), 7), torch.zeros(64, 1, 1), None, null)
    prompts = noise_rows(config, rows, 1.0, torch.Generator().manual_seed(0)).prompts
    dropped = (prompts == null).all(1)
    assert 16 < dropped.sum() < 48
    assert (prompts[~dropped] == 7).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataConfig(kind="folder")}, "has no texts"),
        ({"data": DataConfig(kind="shards")}, "set edit_share=0"),
        ({"data": DataConfig(kind="jsonl")}, "set edit_share=1"),
        ({"edit_data": DataConfig(kind="jsonl")}, "goes beside captions of shards, not beside st"),
        ({"edit_data": DataConfig(kind="folder")}, "edit_data.kind folder holds no edits"),
        ({"text_dropout": 1.5}, r"text_dropout must be in \[0, 1\]"),
        ({"statistics_images": -1}, "statistics_images must be >= 0"),
        (
            {"data": DataConfig(kind="shards"), "edit_share": 0.0, "statistics_images": 0},
            "takes its vocabulary from statistics_images",
        ),
        ({"text_folder": "qwen"}, "text_folder names a pretrained text expert"),
        (
            {"denoiser": replace(DIFFUSION.denoiser, latent_channels=4)},
            r"latents \(4, 8, 8\), the tokenizer gives \(8, 8, 8\)",
        ),
    ],
)
def test_sources_that_do_not_fit_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(DIFFUSION, **changes)


def test_pictures_that_are_all_alike_are_refused(tmp_path: Path, model: RPiAE) -> None:
    write_folder(tmp_path / "images", 1)
    with torch.no_grad():
        model.bridge_encoder.to_moments.weight.zero_()
        model.bridge_encoder.to_moments.bias.zero_()
    write_shard(tmp_path / "a" / "0.tar", captioned_files([1]))
    source = data("shards", tmp_path / "a")
    files = Files(captioned_collection(source), source, 128, directory=tmp_path, name="d", rank=0)
    with pytest.raises(DataError, match="standard deviation of 0"):
        measure_files(
            files,
            model,
            Processes(DIFFUSION.compute),
            seed=0,
            num_images=1,
            per_channel=False,
            num_words=None,
        )


def test_facts_survive_the_way_through_a_file(tmp_path: Path) -> None:
    facts = Facts([0.1, 1 / 3], [1e-7, 2.0], ["<pad>", "é"])
    facts.write(tmp_path)
    assert Facts.read(tmp_path) == facts


@ends_with_gloo
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_processes_train_on_files_as_one(tmp_path: Path, tiny_runs: Path) -> None:
    config = config_for(tmp_path, "both")
    settings = {
        "data.kind": "shards",
        "data.path": config.data.path,
        "edit_data.kind": "parquet",
        "edit_data.path": config.edit_data.path,
        "edit_share": 0.5,
        "source_dropout": 0.4,
        "statistics_images": 8,
        "compute.micro_batches": 2,
        "name": "files",
    }
    changes = [f"--set={name}={value}" for name, value in settings.items()]
    found = []
    for number, launcher in enumerate(((), ("torchrun", "--standalone", "--nproc-per-node=2"))):
        root = tmp_path / f"runs-{number}"
        root.mkdir()
        shutil.copytree(tiny_runs / "tiny-bridge", root / "tiny-bridge")
        program = [str(SCRIPTS / launcher[0]), *launcher[1:]] if launcher else [sys.executable]
        finish(*program, *TRAIN, "tiny-diffusion", "--root", str(root), *changes)
        found.append((last_terms(root / "files"), weights(root / "files")))
    (one_terms, one), (two_terms, two) = found
    assert two_terms == pytest.approx(one_terms, abs=1e-5)
    for name, tensor in one.items():
        if not name.startswith("optimizer/"):
            torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)
