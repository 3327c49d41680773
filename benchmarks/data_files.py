"""How fast pictures are read from disk, cropped and batched, on one core and with workers.

    python -m benchmarks.data_files [--workers 0 1 2] [--seconds 5]

Pictures are noise on a blurred ground, JPEG, so about as large as photographs: 500 x 375 for folder
and shards, 1024 x 1024 for edits, which count as pairs. Files are in the disk's cache.
"""

import argparse
import io
import json
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from training.config import DataConfig
from training.data_files import captioned_collection, edit_collection, image_collection
from training.datasets import Batches, BatchLoader
from training.transforms import Framing

BATCH_SIZE = 32
IMAGE_SIZE = 256
LAYOUTS = {
    "folder": ("random", image_collection),
    "shards": ("center", captioned_collection),
    "parquet": ("center", edit_collection),
}


def photograph(seed: int, width: int, height: int) -> bytes:
    """A JPEG file."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    ground = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(ground, dtype=int) + rng.integers(-12, 13, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_layouts(root: Path) -> None:
    """512 files, 4 shards of 1000 samples, 256 pairs in row groups of 64."""
    photographs = [photograph(seed, 500, 375) for seed in range(32)]
    for name in LAYOUTS:
        (root / name).mkdir()
    for number in range(512):
        (root / "folder" / f"{number}.jpg").write_bytes(photographs[number % 32])
    captions = json.dumps({"caption_llava": "a long one", "caption_llava_short": "one"}).encode()
    for shard in range(4):
        with tarfile.open(root / "shards" / f"{shard}.tar", "w") as archive:
            for number in range(1000 * shard, 1000 * (shard + 1)):
                for suffix, data in (("jpg", photographs[number % 32]), ("json", captions)):
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    large = [{"bytes": photograph(seed, 1024, 1024)} for seed in range(16)]
    rows = [
        {"src_img": large[n % 16], "edited_img": large[n % 15], "edited_prompt_list": ["change"]}
        for n in range(256)
    ]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, root / "parquet" / "0.parquet", row_group_size=64)


def samples_per_s(folder: Path, layout: str, num_workers: int, seconds: float) -> float:
    """Of batches that the training process takes one after another, the first ones left out."""
    crop, opened = LAYOUTS[layout]
    data = DataConfig(kind=layout, path=str(folder), crop=crop, num_workers=num_workers)
    framing = Framing(rule=crop, image_size=IMAGE_SIZE)
    batches = Batches(opened(data), framing, seed=0, stream="bench", batch_size=BATCH_SIZE)
    loader = BatchLoader(batches, num_steps=1_000_000, num_workers=num_workers)
    step = 0
    while step <= 2 * num_workers:  # what was read ahead
        loader.batch(step)
        step += 1
    first, start = step, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        loader.batch(step)
        step += 1
    return (step - first) * BATCH_SIZE / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_layouts(Path(folder))
        print("layout    " + "".join(f"{n:>4} workers" for n in arguments.workers))
        for layout in LAYOUTS:
            rates = [
                samples_per_s(Path(folder, layout), layout, num_workers, arguments.seconds)
                for num_workers in arguments.workers
            ]
            print(f"{layout:10}" + "".join(f"{rate:>10.0f}/s" for rate in rates))


if __name__ == "__main__":
    main()
