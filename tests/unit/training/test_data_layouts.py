"""Each layout on disk gives its pictures and texts; damage is counted, absence is an error."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training.sample_files import (
    captioned_files,
    encoded,
    picture,
    write_lines,
    write_shard,
    write_table,
)
from training.config import DataConfig
from training.data_files import captioned_collection, edit_collection, image_collection
from training.datasets import Batches, Collection, DataError, Sample, Skip
from training.edit_pairs import EditLines
from training.edit_tables import EditTables
from training.image_files import SkippedError
from training.image_folder import ImageFolder
from training.shards import Shards, find_files
from training.transforms import Framing

OMNIEDIT = ("src_img", "edited_img", "edited_prompt_list")
RNG = np.random.default_rng(0)


def samples(collection: Collection) -> list[Sample]:
    return [
        collection.read(unit, index, RNG)
        for unit, length in enumerate(collection.lengths)
        for index in range(length)
    ]


def reds(sample: Sample) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in sample.pictures]


def test_a_shard_gives_images_with_the_asked_caption(tmp_path: Path) -> None:
    for shard in range(2):
        write_shard(tmp_path / f"{shard}.tar", captioned_files(range(shard * 3, shard * 3 + 3)))
    for caption in ("long", "short"):
        found = samples(Shards(str(tmp_path), caption=caption))  # type: ignore[arg-type]
        assert [sample.text for sample in found] == [f"{caption} {n}" for n in range(6)]
        assert [reds(sample) for sample in found] == [[n] for n in range(6)]
    texts = {s.text for _ in range(8) for s in samples(Shards(str(tmp_path), caption="either"))}
    assert texts == {f"{caption} {n}" for caption in ("long", "short") for n in range(6)}
    assert {sample.text for sample in samples(Shards(str(tmp_path)))} == {""}


def test_a_plain_caption_is_taken_from_text(tmp_path: Path) -> None:
    files = {"dir/000000001.jpg": encoded(picture(1)), "dir/000000001.txt": b" a dog\n"}
    files |= {"dir/000000002.png": encoded(picture(2)), "dir/000000002.json": b'{"caption": "x"}'}
    write_shard(tmp_path / "0.tar", files)
    assert [s.text for s in samples(Shards(str(tmp_path), caption="long"))] == ["a dog", "x"]


def test_incomplete_samples_of_a_shard_are_problems(tmp_path: Path) -> None:
    files = captioned_files(range(3))
    del files["000000000.jpg"], files["000000001.json"]
    write_shard(tmp_path / "0.tar", files)
    collection = Shards(str(tmp_path), caption="long")
    assert [s.text for s in samples(collection)] == ["long 2"]
    assert [(skip.name[-9:], skip.reason) for skip in collection.problems] == [
        ("000000000", "no image"),
        ("000000001", "no caption"),
    ]
    assert Shards(str(tmp_path)).lengths == [2], "without captions a picture is enough"


@pytest.mark.parametrize("caption", [b"{broken", b"{}", b'{"caption_llava": 3}', b"\xff\xfe{"])
def test_a_broken_caption_is_skipped(tmp_path: Path, caption: bytes) -> None:
    write_shard(tmp_path / "0.tar", captioned_files([0]) | {"000000000.json": caption})
    with pytest.raises(SkippedError, match="caption"):
        Shards(str(tmp_path), caption="long").read(0, 0, RNG)


@pytest.mark.parametrize("kept", [0.3, 0.45, 0.6, 0.9])
def test_a_shard_cut_short_gives_what_is_whole(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "0.tar"
    write_shard(path, captioned_files(range(6)))
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data[: int(kept * len(data))])
    collection = Shards(str(path))
    found = samples(collection)
    assert 0 < len(found) < 6
    assert [reds(sample) for sample in found] == [[n] for n in range(len(found))]
    assert collection.problems[0] == Skip(str(path), "shard cut short or damaged")


def test_a_shard_damaged_in_the_middle_gives_what_comes_before(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    write_shard(path, captioned_files(range(6)))
    data = bytearray(path.read_bytes())
    header = data.index(b"000000004.jpg")
    data[header : header + 512] = b"x" * 512
    path.write_bytes(data)
    collection = Shards(str(path))
    assert collection.lengths == [4]
    assert collection.problems == [Skip(str(path), "shard cut short or damaged")]


def test_a_whole_shard_has_no_problems(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", captioned_files(range(3)))
    assert Shards(str(tmp_path), caption="long").problems == []


def test_a_skipped_sample_of_a_shard_is_named_by_its_file(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", captioned_files(range(3)))
    assert Shards(str(tmp_path)).sample_name(0, 2) == f"{tmp_path}/0.tar: 000000002.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an uncompressed tar"),
        (b"not an archive" * 100, "cannot be read as an uncompressed tar"),
        (gzip.compress(b"x" * 2000), "cannot be read as an uncompressed tar"),
        (bytes(10240), "holds no usable sample"),
    ],
)
def test_a_shard_without_samples_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "7.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"7\.tar {message}"):
        Shards(str(tmp_path))


def test_shards_are_listed_alike_by_several_processes(tmp_path: Path) -> None:
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", captioned_files(range(shard + 1)))
    alone, together = (Shards(str(tmp_path), num_workers=count) for count in (0, 2))
    assert alone.lengths == together.lengths == [1, 2, 3]
    assert [reds(sample) for sample in samples(together)] == [reds(s) for s in samples(alone)]
    (tmp_path / "1.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.tar cannot be read as an uncompressed tar"):
        Shards(str(tmp_path), num_workers=2)


def open_as(kind: str, path: Path, opener: Callable[[DataConfig], Collection]) -> Collection:
    return opener(DataConfig(kind=kind, path=str(path)))  # type: ignore[arg-type]


def test_a_config_names_its_samples(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", captioned_files([1]))
    write_table(tmp_path / "0.parquet", [2])
    write_lines(tmp_path / "0.jsonl", [3])
    assert open_as("folder", tmp_path, image_collection).lengths == [2]
    assert open_as("shards", tmp_path, captioned_collection).read(0, 0, RNG).text[-1] == "1"
    assert reds(open_as("parquet", tmp_path, edit_collection).read(0, 0, RNG)) == [2, 102]
    assert reds(open_as("jsonl", tmp_path, edit_collection).read(0, 0, RNG)) == [3, 103]
    pictures = open_as("jsonl", tmp_path, image_collection)
    assert [reds(sample) for sample in samples(pictures)] == [[3], [103]]
    for opener in (image_collection, captioned_collection, edit_collection):
        with pytest.raises(DataError, match=r"data\.kind stickers (holds|has) no"):
            open_as("stickers", tmp_path, opener)


def test_files_are_found_by_folder_glob_and_range(tmp_path: Path) -> None:
    paths = [tmp_path / f"s-{number:04d}.tar" for number in range(8, 12)]
    for path in paths:
        path.touch()
    for pattern in ("", "/s-*.tar", "/s-{0008..0011}.tar"):
        assert find_files(f"{tmp_path}{pattern}", ".tar") == paths
    paths[1].unlink()
    with pytest.raises(DataError, match=r"s-0009\.tar is missing \(1 of"):
        find_files(f"{tmp_path}/s-{{0008..0011}}.tar", ".tar")
    with pytest.raises(DataError, match=r"names no \.parquet file"):
        find_files(str(tmp_path), ".parquet")


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="holds no image file"):
        ImageFolder(tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        ImageFolder(tmp_path / "nowhere")


def edits(tmp_path: Path, layout: str) -> Collection:
    """Ten edits in two files."""
    for part, numbers in enumerate((range(6), range(6, 10))):
        if layout == "parquet":
            write_table(tmp_path / f"{part}.parquet", numbers)
        else:
            write_lines(tmp_path / f"{part}.jsonl", numbers)
    return EditTables(str(tmp_path), OMNIEDIT) if layout == "parquet" else EditLines(str(tmp_path))


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_edits_give_source_target_and_instruction(tmp_path: Path, layout: str) -> None:
    collection = edits(tmp_path, layout)
    assert list(collection.lengths) == [6, 4]
    found = samples(collection)
    assert [reds(sample) for sample in found] == [[n, n + 100] for n in range(10)]
    assert all(sample.text.endswith(f" {n}") for n, sample in enumerate(found))


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_batches_of_edits_keep_pairs_and_texts_together(tmp_path: Path, layout: str) -> None:
    framing = Framing(rule="center", image_size=8)
    source = Batches(edits(tmp_path, layout), framing, seed=0, stream="edits", batch_size=5)
    seen = []
    for step in range(2):
        batch = source[step]
        sources, targets = batch.pictures
        for before, after, text in zip(sources, targets, batch.texts, strict=True):
            number = round(float(before[0].float().mean()))
            assert round(float(after[0].float().mean())) == number + 100
            assert text.endswith(f" {number}")
            seen.append(number)
    assert sorted(seen) == list(range(10))


def test_every_wording_of_a_table_is_used(tmp_path: Path) -> None:
    write_table(tmp_path / "0.parquet", [3])
    collection = EditTables(str(tmp_path), OMNIEDIT)
    assert {collection.read(0, 0, RNG).text for _ in range(30)} == {"first 3", "second 3"}


def test_few_row_groups_are_kept(tmp_path: Path) -> None:
    write_table(tmp_path / "0.parquet", range(40), rows_per_group=2)
    collection = EditTables(str(tmp_path), OMNIEDIT, num_workers=4)
    assert len(collection.blocks) == 20
    samples(collection)
    assert len(collection._kept) == 3


def test_a_table_says_what_it_lacks(tmp_path: Path) -> None:
    write_table(tmp_path / "0.parquet", [0])
    with pytest.raises(DataError, match=r"no column target; there are omni_edit_id, src_img"):
        EditTables(str(tmp_path), ("src_img", "target", "edited_prompt_list"))
    (tmp_path / "0.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"0\.parquet cannot be read as a parquet file"):
        EditTables(str(tmp_path), OMNIEDIT)


def test_a_damaged_row_group_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    write_table(path, range(8), rows_per_group=4)
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    collection = EditTables(str(path), OMNIEDIT)
    with pytest.raises(SkippedError, match=r"row group cannot be read|not an image|broken"):
        collection.read(0, 0, RNG)
    assert reds(collection.read(0, 5, RNG)) == [5, 105]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("{not json", "broken line"),
        ('["list"]', "line without"),
        ({"target": None}, "no path"),
        ({"instruction": "  "}, "no instruction"),
        ({"instruction": None}, "no instruction"),
        ({"source": "gone.png"}, "missing"),
    ],
)
def test_an_unusable_line_has_a_reason(tmp_path: Path, change: object, reason: str) -> None:
    path = tmp_path / "0.jsonl"
    write_lines(path, [1, 2])
    first, second = path.read_text().splitlines()
    line = change if isinstance(change, str) else json.dumps(json.loads(first) | change)
    path.write_text(f"{line}\n\n{second}")
    collection = EditLines(str(path))
    assert collection.lengths == [2]
    with pytest.raises(SkippedError, match=reason):
        collection.read(0, 0, RNG)
    assert reds(collection.read(0, 1, RNG)) == [2, 102]


def test_an_empty_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"0\.jsonl holds no edit"):
        EditLines(str(tmp_path))
