"""Folders of image files, with folders inside, which may be classes."""

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


def image_names(folder: Path) -> list[str]:
    """Paths below the folder of every file whose suffix is an image's, sorted.

    Raises:
        DataError: the folder is not there or holds no such file.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; data.path names the folder of images")
    names = sorted(
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )
    if not names:
        raise DataError(
            f"{folder} holds no image file; suffixes are {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return names


class ImageFolder:
    """Every image below a folder, in any order; names and folders inside carry no meaning.

    Raises:
        DataError: the folder is not there or holds no such file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = image_names(folder)
        self.units = [str(folder)]
        self.lengths = self.blocks = [len(self._names)]
        self.problems: list[Skip] = []

    def read(self, unit: int, index: int, rng: np.random.Generator) -> Sample:
        """The picture, without a text."""
        return Sample((read_picture(read_file(self._folder / self._names[index])),))

    def sample_name(self, unit: int, index: int) -> str:
        """Path below the folder."""
        return self._names[index]


class ClassFolder:
    """Images in folders that are their classes; what is deeper inside belongs to the class.

    classes: names of the folders that hold images, sorted; a sample's text is the number of its
    class. Images beside the folders have none and are skipped.

    Raises:
        DataError: the folder is not there or has no folder with images.
    """

    def __init__(self, folder: Path) -> None:
        names = image_names(folder)
        self._folder = folder
        self._names = [name for name in names if os.sep in name]
        if not self._names:
            raise DataError(
                f"{folder} holds images and no folders; a folder inside for each class is needed"
            )
        of_name = [name.split(os.sep, 1)[0] for name in self._names]
        self.classes = sorted(set(of_name))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._labels = np.array([numbers[name] for name in of_name], dtype=np.int32)
        self.units = [str(folder)]
        self.lengths = self.blocks = [len(self._names)]
        self.problems = [Skip(name, "in no class") for name in names if os.sep not in name]

    def read(self, unit: int, index: int, rng: np.random.Generator) -> Sample:
        """The picture and, as digits, its class."""
        picture = read_picture(read_file(self._folder / self._names[index]))
        return Sample((picture,), str(self._labels[index]))

    def sample_name(self, unit: int, index: int) -> str:
        """Path below the folder."""
        return self._names[index]
