"""Where a run's samples come from."""

from dataclasses import dataclass
from typing import Literal

EDIT_KINDS = ("jsonl", "parquet")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from: stickers drawn while training, or files on disk."""

    kind: Literal["stickers", "folder", "shards", "jsonl", "parquet", "none"] = "stickers"
    """folder: image files. shards: webdataset tar archives. jsonl, parquet: edit pairs.
    none: nothing, where a run may have a second source."""
    path: str = ""
    """Folder; of the other kinds also a glob or a range like `cc12m-{0000..0995}.tar`."""
    crop: Literal["random", "center"] = "random"
    """random for tokenizers, center (with flips) for denoisers: see transforms.py."""
    caption: Literal["long", "short", "either"] = "either"
    """Shards: which caption of each picture; where only one is there, that one."""
    columns: tuple[str, str, str] = ("src_img", "edited_img", "edited_prompt_list")
    """Parquet: source, target, instruction."""
    num_workers: int = 2
    """Processes that read ahead; 0 reads in the training process."""

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}")


def check_edit_share(data: DataConfig, edit_data: DataConfig, edit_share: float) -> None:
    """Whether the sources of a text denoiser give the share of edits that its batches should have.

    Raises:
        ValueError: a source holds what it cannot be used for, or nothing gives edits, or all do.
    """
    if edit_data.kind not in ("none", *EDIT_KINDS):
        raise ValueError(f"edit_data.kind {edit_data.kind} holds no edits: jsonl or parquet do")
    if data.kind in ("none", "folder"):
        raise ValueError(
            f"data.kind {data.kind} has no texts: shards hold captions, jsonl and parquet edits"
        )
    if edit_data.kind != "none" and data.kind != "shards":
        raise ValueError(f"edit_data goes beside captions of shards, not beside {data.kind}")
    if data.kind in EDIT_KINDS and edit_share != 1:
        raise ValueError(f"data.kind {data.kind} holds edits alone: set edit_share=1")
    if data.kind == "shards" and edit_data.kind == "none" and edit_share != 0:
        raise ValueError("captions alone hold no edits: set edit_share=0, or edit_data.kind")
