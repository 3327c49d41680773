"""The samples that a config's `data` names: pictures alone, with captions, or pairs of an edit."""

from pathlib import Path

from training.config import DataConfig
from training.datasets import Collection, DataError
from training.edit_pairs import EditLines, PairPictures
from training.image_folder import ClassFolder, ImageFolder
from training.shards import Shards


def image_collection(data: DataConfig) -> Collection:
    """Pictures without texts, of any kind.

    Raises:
        DataError: there are none.
    """
    _check_path(data)
    if data.kind == "folder":
        return ImageFolder(Path(data.path))
    if data.kind == "shards":
        return Shards(data.path, num_workers=data.num_workers)
    return PairPictures(edit_collection(data))


def class_collection(data: DataConfig) -> ClassFolder:
    """Pictures with the number of their class, of a folder of folders.

    Raises:
        DataError: there are none, or the kind has no classes.
    """
    _check_path(data)
    if data.kind == "folder":
        return ClassFolder(Path(data.path))
    raise DataError(f"data.kind {data.kind} has no classes; they are the folders of a folder")


def captioned_collection(data: DataConfig) -> Collection:
    """Pictures with a caption each, of shards.

    Raises:
        DataError: there are none, or the kind has no captions.
    """
    _check_path(data)
    if data.kind == "shards":
        return Shards(data.path, caption=data.caption, num_workers=data.num_workers)
    raise DataError(f"data.kind {data.kind} has no captions; they come from shards")


def edit_collection(data: DataConfig) -> Collection:
    """Source and target pictures with an instruction, of JSON lines or parquet.

    Raises:
        DataError: there are none, the kind holds no edits, or pyarrow is missing.
    """
    _check_path(data)
    if data.kind == "jsonl":
        return EditLines(data.path)
    if data.kind != "parquet":
        raise DataError(f"data.kind {data.kind} holds no edits; they come from jsonl or parquet")
    try:
        from training.edit_tables import EditTables
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise DataError(
            "pyarrow is missing; parquet needs the extra: pip install 'rpiae[train]'"
        ) from None
    return EditTables(data.path, data.columns, num_workers=data.num_workers)


def _check_path(data: DataConfig) -> None:
    if not data.path:
        raise DataError(f"data.kind is {data.kind} and data.path is empty: set data.path=...")
