"""What a bundle takes from a denoiser's run: averaged weights, a tokenizer, what it can do."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.bundle import Denoiser, Tokenizer
from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig
from models.class_labels import ClassEncoder
from models.class_names import imagenet_class_names
from models.manifest import Task
from models.text_denoiser import TextDenoiser, TextDenoiserConfig
from models.weights import load_weights
from training.batches import WORLDS
from training.checkpoint import CheckpointError, read_state
from training.prompts import make_tokenizer
from training.start import EMA_FILE
from training.stickers import drawable

_IMAGENET_FOLDER = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class BundledDenoiser:
    """fields: of the manifest, besides its own ones of every bundle."""

    denoiser: Denoiser
    tokenizer: Tokenizer
    tasks: list[Task]
    fields: Mapping[str, Any]


def bundled_denoiser(checkpoint: Path) -> BundledDenoiser:
    """The averaged denoiser of a run, of either kind.

    Raises:
        CheckpointError: the run trained no denoiser, or its pretrained tokenizer is gone.
        BundleError: the checkpoint's weights do not fit its config.
    """
    state = read_state(checkpoint)
    settings, extra = state["config"], state["extra"]
    if "denoiser" not in settings:
        raise CheckpointError(f"{checkpoint} is of stage {settings['stage']}: it has no denoiser")
    if settings["stage"] == "class_diffusion":
        denoiser: Denoiser = ClassDenoiser(ClassDenoiserConfig(**settings["denoiser"]))
        names = class_names(extra["classes"])
        made = BundledDenoiser(
            denoiser,
            ClassEncoder(names),
            ["generate", "encode", "decode"],
            {"class_names": names},
        )
    else:
        made = _text_denoiser(settings, extra)
    load_weights(made.denoiser, checkpoint / EMA_FILE)
    return made


def class_names(folders: Sequence[str]) -> list[str]:
    """What people call the classes: names of their folders, or ImageNet-1k's own in their order."""
    names = imagenet_class_names()
    if len(folders) == len(names) and all(map(_IMAGENET_FOLDER.fullmatch, folders)):
        return names
    return list(folders)


def _text_denoiser(settings: Mapping[str, Any], extra: Mapping[str, Any]) -> BundledDenoiser:
    config = TextDenoiserConfig(**settings["denoiser"])
    tokenizer = make_tokenizer(config, extra.get("words"), settings.get("text_folder"))
    tasks: list[Task] = ["generate", "variation", "encode", "decode"]
    if settings["edit_share"] > 0:
        tasks.insert(1, "edit")
    of_stickers = settings.get("data", {}).get("kind", "stickers") == "stickers"
    draws = drawable(WORLDS[settings["world"]]) if of_stickers else {}
    return BundledDenoiser(TextDenoiser(config), tokenizer, tasks, {"draws": draws})
