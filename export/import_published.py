"""The authors' published files to a bundle that `rpiae serve` serves.

Peak memory stays near the largest checkpoint: files are mapped, one after another, and tensors go
from the mapped file to the bundle's.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from export.dims import PublishedDims
from models.autoencoder import RPiAE
from models.class_denoiser import ClassDenoiser
from models.class_names import ClassNames, imagenet_class_names
from models.foreign_files import SUFFIXES, read_names, read_tensors
from models.manifest import (
    AUTOENCODER_FILE,
    DENOISER_FILE,
    GUIDE_FILE,
    BundleError,
    Manifest,
    Task,
    check_name,
    list_files,
    sha256_of,
    write_manifest,
)
from models.published import NameMap, class_denoiser_map, tokenizer_map
from models.weights import without_weights

_DESCRIPTION = "RPiAE (arXiv 2603.19206), imported from published checkpoints."
_LICENCE = "that of the imported checkpoints; the authors' code is Apache-2.0"
# What the published figures were sampled with: 250 grid points, autoguidance by the weak model.
_STEPS, _MAX_STEPS, _AUTOGUIDANCE_SCALE = 250, 1000, 2.05
_IMAGENET_CLASSES = 1000
_EPOCH = re.compile(r"ep-?0*(\d+)")

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PublishedFiles:
    """Which file is which; `denoiser` and `guide` may be missing."""

    tokenizer: Path
    denoiser: Path | None = None
    guide: Path | None = None


def import_published(
    files: PublishedFiles,
    output: Path,
    dims: PublishedDims,
    *,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    report: Report = lambda _: None,
) -> Manifest:
    """Write the bundle `output`; it appears when it is complete, or not at all.

    Args:
        files: see `find_files`.
        output: a folder that does not exist yet; its name becomes the model's, unless `name` says.
        dims: sizes of the networks.
        class_names: of the denoiser's classes; absent: ImageNet's for 1000 classes, else numbers.
        report: called with what was done.

    Raises:
        BundleError: a file is unreadable or does not fit; every tensor in the way is named.
    """
    if output.exists():
        raise BundleError(f"{output} exists already: name another folder, or remove it first")
    name = check_name(name or output.resolve().name)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        manifest = _write(files, partial, dims, name, class_names, report)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def find_files(folder: Path, report: Report = lambda _: None) -> PublishedFiles:
    """The published files in a folder and its subfolders, told apart by their tensors' names.

    Of two denoisers, the one of the later epoch (`ep-0000800`) is the model and the other its
    guide; a name with `weak` or `guide` in it decides as well.

    Raises:
        BundleError: no tokenizer, several, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder")
    found: dict[str, list[Path]] = {"tokenizer": [], "denoiser": []}
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        kind = kind_of(read_names(path))
        if kind in found:
            found[kind].append(path)
        else:
            report(f"{path.name} is {kind}: left out")
    if len(found["tokenizer"]) != 1:
        names = ", ".join(path.name for path in found["tokenizer"]) or "none"
        raise BundleError(
            f"{folder} must hold one tokenizer with its bridge (vb_feature_encoder.*), found: "
            f"{names}. Name the files with --tokenizer, --denoiser and --guide"
        )
    denoisers = sorted(found["denoiser"], key=_strength, reverse=True)
    strengths = {_strength(path) for path in denoisers}
    if len(denoisers) > 2 or len(strengths) < len(denoisers):
        raise BundleError(
            f"{folder} holds {len(denoisers)} denoisers ({', '.join(p.name for p in denoisers)}), "
            "and their names do not say which is the guide: name the files with --tokenizer, "
            "--denoiser and --guide"
        )
    return PublishedFiles(
        tokenizer=found["tokenizer"][0],
        denoiser=denoisers[0] if denoisers else None,
        guide=denoisers[1] if len(denoisers) > 1 else None,
    )


def kind_of(names: Set[str]) -> str:
    """What a checkpoint is: `tokenizer`, `denoiser`, or words for what cannot be imported."""
    if any(name.startswith("vb_feature_encoder.") for name in names):
        return "tokenizer"
    if "x_embedder.proj.weight" in names:
        return "denoiser"
    if any(name.startswith("decoder.decoder_layers.") for name in names):
        return "a tokenizer of stage 1, which has no bridge"
    return "no published RPiAE checkpoint"


def _strength(path: Path) -> tuple[bool, int]:
    weak = any(word in path.stem.lower() for word in ("weak", "guide"))
    epoch = _EPOCH.search(path.stem)
    return (not weak, int(epoch[1]) if epoch else 0)


def _write(
    files: PublishedFiles,
    directory: Path,
    dims: PublishedDims,
    name: str,
    class_names: Sequence[str] | None,
    report: Report,
) -> Manifest:
    autoencoder = _build(lambda: RPiAE(dims.autoencoder()))
    _convert(files.tokenizer, autoencoder, tokenizer_map(autoencoder), directory / AUTOENCODER_FILE)
    report(f"{files.tokenizer.name}: tokenizer, {_num_parameters(autoencoder)} parameters")
    fields: dict[str, Any] = autoencoder.manifest_fields()
    tasks: list[Task] = ["encode", "decode"]
    written, sources = [AUTOENCODER_FILE], [files.tokenizer]
    if files.denoiser is not None:
        denoiser = _build(lambda: ClassDenoiser(dims.denoiser()))
        if denoiser.config.latent_shape != autoencoder.latent_shape:
            raise BundleError(
                f"the denoiser's latents are {denoiser.config.latent_shape}, the tokenizer's "
                f"{autoencoder.latent_shape}: give the sizes of both with --dims"
            )
        names = class_denoiser_map(denoiser)
        for source, target in ((files.denoiser, DENOISER_FILE), (files.guide, GUIDE_FILE)):
            if source is not None:
                _convert(source, denoiser, names, directory / target)
                report(f"{source.name}: {target}, {_num_parameters(denoiser)} parameters")
                written.append(target)
                sources.append(source)
        tasks = ["generate", *tasks]
        fields["model"] = fields["model"] | {"denoiser": dataclasses.asdict(denoiser.config)}
        fields["class_names"] = _class_names(class_names, denoiser.config.num_classes)
    if files.guide is not None:
        fields |= {"guidance": "autoguidance", "default_guidance_scale": _AUTOGUIDANCE_SCALE}
    manifest = Manifest(
        name=name,
        description=_DESCRIPTION,
        licence=_LICENCE,
        tasks=tasks,
        timestep_shift=dims.timestep_shift(),
        sampler="euler-reference",
        default_steps=_STEPS,
        max_steps=_MAX_STEPS,
        max_prompt_tokens=1,
        training={"imported": {path.name: sha256_of(path) for path in sources}},
        files=list_files(directory, written),
        **fields,
    )
    write_manifest(directory, manifest)
    return manifest


def _build(build: Callable[[], Any]) -> Any:
    """A module on the meta device.

    Raises:
        BundleError: sizes that do not fit together.
    """
    try:
        return without_weights(build)
    except ValueError as error:
        raise BundleError(f"the sizes do not fit together: {error}") from None


def _convert(source: Path, module: nn.Module, names: NameMap, target: Path) -> None:
    """Write one published checkpoint as our module's weights, in the type it has."""
    tensors = names.to_ours(read_tensors(source), module.state_dict(), str(source))
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BundleError(f"{source} holds values that are not finite: {', '.join(broken)}")
    # Two names of one storage would be refused by safetensors, and strides are not kept.
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target)
    target.chmod(0o644)  # safetensors writes for its owner alone


def _class_names(names: Sequence[str] | None, num_classes: int) -> list[str]:
    if names is None:
        if num_classes == _IMAGENET_CLASSES:
            return imagenet_class_names()
        return [f"class {index}" for index in range(num_classes)]
    if len(names) != num_classes:
        raise BundleError(f"{len(names)} class names for {num_classes} classes")
    try:
        ClassNames(names)
    except ValueError as error:
        raise BundleError(f"class names: {error}") from None
    return list(names)


def read_class_names(path: Path) -> list[str]:
    """Class names from a JSON list, or from a text file with one per line.

    Raises:
        BundleError: unreadable, or JSON of another form.
    """
    try:
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise BundleError(f"class names {path} cannot be read: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BundleError(f"class names {path} must be a JSON list of texts")
    return names


def _num_parameters(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"
