"""Batches from disk: each sample once an epoch, the same for any number of processes."""

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.training.sample_files import captioned_files, damaged, write_folder, write_shard
from training.datasets import NUM_LANES, Batch, Batches, BatchLoader, DataError, epoch_order
from training.image_folder import ImageFolder
from training.shards import Shards
from training.transforms import Framing

# Two or three workers are right for these tests also where there is one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SIZE = 8
FRAMING = Framing(rule="random", image_size=SIZE)


def batches(folder: Path, batch_size: int = 4, rows: Sequence[int] | None = None) -> Batches:
    collection = ImageFolder(folder)
    return Batches(collection, FRAMING, seed=5, stream="test", batch_size=batch_size, rows=rows)


def item(source: Batches, step: int) -> Batch:
    found = source[step]
    assert isinstance(found, Batch)
    return found


def numbers(batch: Batch) -> list[int]:
    """Which pictures a batch holds: each is its number in red."""
    return [round(float(image[0].float().mean())) for image in batch.pictures[0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "images", 12)
    return tmp_path / "images"


@pytest.mark.parametrize("blocks", [[1], [5, 0, 7, 3], [40] * 9, [300]])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_epoch_has_every_sample_once(blocks: list[int], batch_size: int) -> None:
    order = epoch_order(blocks, batch_size, np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(sum(blocks)))


def test_a_batch_comes_from_one_block_and_its_neighbours_from_others() -> None:
    order = epoch_order([40] * NUM_LANES, 4, np.random.default_rng(1)).reshape(-1, 4)
    blocks = order // 40
    assert (blocks == blocks[:, :1]).all()
    assert len(set(blocks[:NUM_LANES, 0].tolist())) == NUM_LANES
    assert (np.diff(order, axis=1) != 1).any(axis=1).all(), "blocks are shuffled inside"


def test_epochs_differ_and_each_is_whole(folder: Path) -> None:
    source = batches(folder)
    seen = [numbers(item(source, step)) for step in range(6)]
    first, second = ([*chain(*epoch)] for epoch in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_processes_share_the_whole_batch(folder: Path) -> None:
    whole = batches(folder)
    parts = [batches(folder, rows=rows) for rows in ((0, 2), (1, 3))]
    for step in range(7):
        together = torch.stack([item(part, step).pictures[0] for part in parts], dim=1)
        assert together.flatten(0, 1).equal(item(whole, step).pictures[0])


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing_and_any_step_can_be_the_first(
    folder: Path, num_workers: int
) -> None:
    alone = BatchLoader(batches(folder), num_steps=9, num_workers=0)
    expected = [alone.batch(step).pictures[0] for step in range(9)]
    for first in (0, 4):
        loader = BatchLoader(batches(folder), num_steps=9, num_workers=num_workers)
        for step in range(first, 9):
            assert loader.batch(step).pictures[0].equal(expected[step])


def test_images_are_floats_from_0_to_1(folder: Path) -> None:
    images = BatchLoader(batches(folder), num_steps=1, num_workers=0).batch(0).pictures[0]
    assert images.shape == (4, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.2
    assert 0.8 < images.max() <= 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_files_are_skipped_and_counted(tmp_path: Path, num_workers: int) -> None:
    write_folder(tmp_path, 8, with_damage=True)
    steps = len(damaged()) + 8
    loader = BatchLoader(batches(tmp_path, 1), num_steps=steps, num_workers=num_workers)
    found = [loader.batch(step) for step in range(steps)]
    skipped = {skip.name: skip.reason for batch in found for skip in batch.skips}
    assert Counter(skipped.values()) == {"broken": 2, "not an image": 1, "empty": 1, "a strip": 1}
    assert all(name == f"c/{reason}.jpg" for name, reason in skipped.items() if "png" not in name)
    reds = {round(float(batch.pictures[0][0, 0].mean()) * 255) for batch in found}
    assert reds == set(range(8)), "every good picture still comes once an epoch"


def test_a_file_that_vanishes_is_skipped_and_a_folder_is_not(folder: Path) -> None:
    source = batches(folder)
    (folder / "a" / "004.png").unlink()
    found = [item(source, step) for step in range(3)]
    assert {skip.reason for batch in found for skip in batch.skips} == {"missing"}
    for path in folder.rglob("*.png"):
        path.unlink()
    error = source[0]
    assert isinstance(error, DataError)
    assert str(folder) in str(error)
    assert "12 missing" in str(error)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_deleted_while_training_is_named_without_a_traceback(
    tmp_path: Path, num_workers: int
) -> None:
    for shard in range(2):
        write_shard(tmp_path / f"{shard}.tar", captioned_files(range(shard * 4, shard * 4 + 4)))
    source = Batches(Shards(str(tmp_path)), FRAMING, seed=0, stream="test", batch_size=8)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(DataError, match=r"1\.tar is gone: put it back$"):
        BatchLoader(source, num_steps=2, num_workers=num_workers).batch(0)


def test_a_shard_of_nothing_but_damage_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "good.tar", captioned_files(range(4)))
    write_shard(tmp_path / "bad.tar", dict.fromkeys(("000000001.jpg", "000000002.jpg"), b"no"))
    source = Batches(Shards(str(tmp_path)), FRAMING, seed=0, stream="test", batch_size=6)
    error = source[0]
    assert isinstance(error, DataError)
    assert "bad.tar: none of 2 samples in a row can be used (2 not an image)" in str(error)


KILLED = """
import sys, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tests.unit.training.test_datasets import BatchLoader, batches
loader = BatchLoader(batches(Path(sys.argv[1])), num_steps=9, num_workers=2)
loader.batch(0)
sys.stdout.write("ready\\n")
sys.stdout.flush()
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_workers_end_with_a_killed_process(folder: Path) -> None:
    """They hold what they inherited: this pipe, and the lock of a run."""
    command = [sys.executable, "-c", KILLED, str(folder)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        process.communicate(timeout=3)  # torch's own watch takes five seconds
