"""Small data sets of every layout on disk, made anew for each test."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image


def picture(number: int, width: int = 24, height: int = 20) -> Image.Image:
    """A picture whose red is `number` all over, with noise in the other channels."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[..., 0] = number
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def damaged() -> dict[str, bytes]:
    """Bytes of unusable pictures by the reason that they should be skipped for."""
    jpeg = encoded(picture(1, 200, 200), "JPEG")
    png = bytearray(encoded(picture(2, 64, 64)))
    png[60:90] = bytes(30)
    return {
        "broken": jpeg[: len(jpeg) // 2],
        "broken png": bytes(png),
        "not an image": b"<html>404 not found</html>",
        "empty": b"",
        "a strip": encoded(Image.new("RGB", (400, 4))),
    }


def write_folder(folder: Path, num_good: int, *, with_damage: bool = False) -> None:
    """Pictures 0, 1, ... in two folders, PNG; and one of each damage in a third."""
    for number in range(num_good):
        path = folder / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number)))
    if with_damage:
        (folder / "c").mkdir(parents=True)
        for name, data in damaged().items():
            (folder / "c" / f"{name}.jpg").write_bytes(data)
    (folder / "labels.txt").write_text("not a picture, by its name")


def write_shard(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def captioned_files(numbers: Sequence[int]) -> dict[str, bytes]:
    """CC12M's layout: key.jpg (here with PNG's exact pixels), key.json with both captions."""
    files = {}
    for number in numbers:
        key = f"{number:09d}"
        files[f"{key}.jpg"] = encoded(picture(number))
        captions = {"caption_llava": f"long {number}", "caption_llava_short": f"short {number}"}
        files[f"{key}.json"] = json.dumps({"key": key, **captions}).encode()
    return files


def write_table(
    path: Path, numbers: Sequence[int], rows_per_group: int = 4, targets: Iterable[bytes] = ()
) -> None:
    """OmniEdit's columns; a target's red is the source's plus 100. `targets` gives more rows."""
    edited = [encoded(picture(number + 100)) for number in numbers]
    rows = [
        {
            "omni_edit_id": f"task_{number}",
            "src_img": {"bytes": encoded(picture(number)), "path": None},
            "edited_img": {"bytes": target, "path": None},
            "edited_prompt_list": [f"first {number}", f"second {number}"],
        }
        for number, target in zip(count(min(numbers)), [*edited, *targets], strict=False)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path, row_group_size=rows_per_group)


def write_lines(path: Path, numbers: Sequence[int]) -> None:
    """edits.jsonl beside its pictures; the target's red is the source's plus 100."""
    lines = []
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        names = [f"{number}-before.png", f"{number}-after.png"]
        for name, red in zip(names, (number, number + 100), strict=True):
            (path.parent / name).write_bytes(encoded(picture(red)))
        edit = {"source": names[0], "instruction": f"change {number}", "target": names[1]}
        lines.append(json.dumps(edit) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
