"""Webdataset shards: tar archives in which the files of a sample share a key and follow each other.

Layout of CC12M-LLaVA-Next: `000000012.jpg`, then `000000012.json` with `caption_llava` and
`caption_llava_short`, or `000000012.txt` with one caption. Archives are listed once, header by
header, and samples then read by their place, so archives must not be compressed.
"""

import functools
import glob
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from training.datasets import DataError, Indices, Sample, Skip, end_with_parent
from training.image_files import IMAGE_SUFFIXES, SkippedError, read_picture

Caption = Literal["none", "long", "short", "either"]

LONG, SHORT, PLAIN = "caption_llava", "caption_llava_short", "caption"

_BLOCK = 512  # bytes of a tar header, right before a member's data


def find_files(pattern: str, suffix: str) -> list[Path]:
    """Files of a folder, a glob, or a range such as `cc12m-{0000..0995}.tar`, sorted.

    Raises:
        DataError: none is found, or one of a range is missing.
    """
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if span:
        first, last = span.groups()
        before, after = pattern[: span.start()], pattern[span.end() :]
        numbers = range(int(first), int(last) + 1)
        paths = [Path(f"{before}{number:0{len(first)}d}{after}") for number in numbers]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise DataError(f"{missing[0]} is missing ({len(missing)} of {pattern} are)")
    elif Path(pattern).is_dir():
        paths = sorted(Path(pattern).glob(f"*{suffix}"))
    else:
        paths = sorted(Path(name) for name in glob.glob(pattern))
    if not paths:
        raise DataError(f"data.path {pattern!r} names no {suffix} file")
    return paths


def list_shard(path: Path, *, captions: bool) -> tuple[Indices, list[Skip]]:
    """Places of a shard's samples, and what is unusable in it.

    Returns:
        (N, 4) int64: offset and size in bytes of the image, then of the caption's file (0, 0 where
        no caption is asked for).

    Raises:
        DataError: no archive, or no sample in it.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        end = path.stat().st_size
        with tarfile.open(path, "r:") as archive:
            for member in _members(archive):
                if not member.isfile() or member.offset_data + member.size > end:
                    continue
                name = PurePosixPath(member.name)
                stem, _, suffix = name.name.partition(".")
                files = samples.setdefault(str(name.parent / stem), {})
                files.setdefault("." + suffix.lower(), (member.offset_data, member.size))
            # tarfile takes a damaged header for the end; the end is a block of zeros.
            with path.open("rb") as file:
                file.seek(archive.offset)
                whole = file.read(_BLOCK) == bytes(_BLOCK)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar archive: {error}") from None
    rows, problems = [], [] if whole else [Skip(str(path), "shard cut short or damaged")]
    for key, files in samples.items():
        image = next((place for suffix, place in files.items() if suffix in IMAGE_SUFFIXES), None)
        text = files.get(".json") or files.get(".txt")
        if image is None or (captions and text is None):
            reason = "no image" if image is None else "no caption"
            problems.append(Skip(f"{path}: {key}", reason))
            continue
        rows.append((*image, *(text if captions and text else (0, 0))))
    if not rows:
        found = f"; {problems[0].reason}" if problems else ""
        raise DataError(f"{path} holds no usable sample{found}: repair or remove it")
    return np.asarray(rows, dtype=np.int64), problems


def list_shards(
    paths: Sequence[Path], *, captions: bool, num_workers: int
) -> list[tuple[Indices, list[Skip]]]:
    """`list_shard` of each; 20,000 headers take a second, so several processes share many."""
    list_one = functools.partial(list_shard, captions=captions)
    if num_workers < 2 or len(paths) < 2:
        return [list_one(path) for path in paths]
    with ProcessPoolExecutor(num_workers, initializer=end_with_parent) as pool:
        return list(pool.map(list_one, paths))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Headers up to the end or to where the archive is damaged, none of them kept."""
    try:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]
            yield member
    except tarfile.ReadError:
        return


class Shards:
    """Samples of tar archives, each an image and, unless `caption` is none, a text.

    Raises:
        DataError: an archive is missing, is none, or holds nothing usable.
    """

    def __init__(self, pattern: str, *, caption: Caption = "none", num_workers: int = 0) -> None:
        self._paths = find_files(pattern, ".tar")
        self._caption = caption
        listed = list_shards(self._paths, captions=caption != "none", num_workers=num_workers)
        self._places = [places for places, _ in listed]
        self.units = [str(path) for path in self._paths]
        self.lengths = self.blocks = [len(places) for places in self._places]
        self.problems = [problem for _, problems in listed for problem in problems]

    def read(self, unit: int, index: int, rng: np.random.Generator) -> Sample:
        """The picture and its caption, or ""."""
        image_at, image_size, text_at, text_size = self._places[unit][index]
        try:
            with self._paths[unit].open("rb") as file:
                file.seek(image_at)
                image = file.read(image_size)
                file.seek(text_at)
                text = file.read(text_size)
        except FileNotFoundError:
            raise DataError(f"{self._paths[unit]} is gone: put it back") from None
        except OSError:
            raise SkippedError("unreadable") from None
        if len(image) < image_size:
            raise SkippedError("broken")
        picture = read_picture(image)
        return Sample((picture,), self._text(text, rng) if self._caption != "none" else "")

    def _text(self, data: bytes, rng: np.random.Generator) -> str:
        """Caption of the asked length; of either by chance; else the only one there is."""
        try:
            text = data.decode()
            fields = json.loads(text) if text.lstrip().startswith("{") else {PLAIN: text}
        except ValueError:
            raise SkippedError("broken caption") from None
        wanted = {"long": LONG, "short": SHORT}.get(self._caption)
        if wanted is None:
            wanted = (LONG, SHORT)[int(rng.integers(2))]
        for name in (wanted, LONG, SHORT, PLAIN):
            caption = fields.get(name)
            if isinstance(caption, str) and caption.strip():
                return caption.strip()
        raise SkippedError("no caption")

    def sample_name(self, unit: int, index: int) -> str:
        """Archive and the name of the image in it."""
        path = self._paths[unit]
        try:
            with path.open("rb") as file:
                file.seek(int(self._places[unit][index][0]) - _BLOCK)
                name = file.read(100).rstrip(b"\0").decode(errors="replace")
        except OSError:
            name = f"sample {index}"
        return f"{path}: {name}"
