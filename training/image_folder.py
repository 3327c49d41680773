"""A folder of image files, with folders inside; names and folders carry no meaning."""

import os
from pathlib import Path

import numpy as np

from training.datasets import DataError, Sample, Skip
from training.image_files import IMAGE_SUFFIXES, SkippedError, read_picture


def read_file(path: Path) -> bytes:
    """All bytes of a file that holds one picture.

    Raises:
        SkippedError: it is gone or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SkippedError("missing") from None
    except OSError:
        raise SkippedError("unreadable") from None


class ImageFolder:
    """Every file below a folder whose suffix is an image's, in any order.

    Raises:
        DataError: the folder is not there or holds no such file.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; data.path names the folder of images")
        self._folder = folder
        self._names = sorted(
            os.path.relpath(os.path.join(parent, name), folder)
            for parent, _, names in os.walk(folder, followlinks=True)
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
        )
        if not self._names:
            raise DataError(
                f"{folder} holds no image file; suffixes are {' '.join(sorted(IMAGE_SUFFIXES))}"
            )
        self.units = [str(folder)]
        self.lengths = self.blocks = [len(self._names)]
        self.problems: list[Skip] = []

    def read(self, unit: int, index: int, rng: np.random.Generator) -> Sample:
        """The picture, without a text."""
        return Sample((read_picture(read_file(self._folder / self._names[index])),))

    def sample_name(self, unit: int, index: int) -> str:
        """Path below the folder."""
        return self._names[index]
