"""From finished runs to a bundle: the step after the stages.

Takes the averaged denoiser and the latent statistics of a diffusion run, and the pixel decoder of
the decoder run that trained beside it on the same frozen latents. Run: rpiae train stickers-bundle
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.autoencoder import RPiAE, RPiAEConfig
from models.bundle import Bundle, save_bundle
from models.manifest import MANIFEST_NAME, Manifest, read_manifest
from models.transport import default_shift
from models.weights import load_weights
from training.bundled_denoiser import bundled_denoiser
from training.checkpoint import CheckpointError, latest_checkpoint, read_state
from training.ema import weights_file
from training.provenance import git_revision, hardware, versions


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """Which runs a bundle is made of, and what it does when a request does not say."""

    name: str
    bundle: str
    """Name in the manifest."""
    directory: str
    diffusion: str
    """Name of the diffusion run."""
    decoder: str | None = None
    """Name of a decoder run; None, or a run without a checkpoint, keeps the older pixel decoder."""
    description: str = ""
    default_steps: int = 20
    guidance_scale: float = 3.0
    image_guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.default_steps < 1:
            raise ValueError(f"default_steps must be at least 1, got {self.default_steps}")
        for field in ("guidance_scale", "image_guidance_scale"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, got {getattr(self, field)}")


BUNDLES = {
    "stickers-bundle": BundleConfig(
        name="stickers-bundle",
        bundle="stickers",
        directory="bundles/stickers",
        diffusion="stickers-terse",
        decoder="stickers-decoder",
        description="Sticker scenes from words, and edits of them; trained by this repository.",
    )
}


def _autoencoder(checkpoint: Path) -> RPiAE:
    """The checkpoint's autoencoder with its weights, averaged where the run averaged them."""
    model = RPiAE(RPiAEConfig.from_fields(read_state(checkpoint)["config"]["model"]))
    averaged = (checkpoint / weights_file("autoencoder", averaged=True)).exists()
    load_weights(model, checkpoint / weights_file("autoencoder", averaged))
    return model


def need_checkpoint(root: Path, name: str) -> Path:
    """Newest checkpoint of a run.

    Raises:
        CheckpointError: it has none.
    """
    checkpoint = latest_checkpoint(root / name)
    if checkpoint is None:
        raise CheckpointError(
            f"run {name} has no checkpoint in {root}: run `rpiae train {name}` first"
        )
    return checkpoint


def _frozen_tensors(model: RPiAE) -> dict[str, torch.Tensor]:
    parts: dict[str, nn.Module] = {
        "encoder": model.encoder,
        "bridge_encoder": model.bridge_encoder,
        "bridge_decoder": model.bridge_decoder,
    }
    return {
        f"{part}.{key}": tensor
        for part, module in parts.items()
        for key, tensor in module.state_dict().items()
    }


def with_decoder_of(model: RPiAE, other: RPiAE, name: str) -> RPiAE:
    """`model` with the pixel decoder of `other`, which must have the same encoder and bridge.

    Raises:
        CheckpointError: encoder or bridge differ, so that the decoder learned other latents.
    """
    ours, theirs = _frozen_tensors(model), _frozen_tensors(other)
    different = [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if key not in ours or key not in theirs or not torch.equal(ours[key], theirs[key])
    ]
    if different:
        raise CheckpointError(
            f"run {name} painted other latents: {len(different)} tensors of encoder or bridge "
            f"differ, first {different[0]}; train it after the same bridge run"
        )
    other.set_normalization(model.latents_mean.tolist(), model.latents_std.tolist())
    return other


def training_seconds(directory: Path, batch_size: int) -> float:
    """Time that a run's steps took, from its curves; steps that a restart repeated count once."""
    rates: dict[int, float] = {}
    with (directory / "curves.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            values = json.loads(line)
            rates[values["step"]] = values["samples_per_s"]
    seconds, before = 0.0, 0
    for step in sorted(rates):
        seconds += (step - before) * batch_size / rates[step]
        before = step
    return seconds


def _last_values(directory: Path) -> dict[str, float]:
    """The means that a run logged last."""
    last: dict[str, float] = {}
    with (directory / "curves.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            last = json.loads(line)
    return {key: value for key, value in last.items() if key not in ("step", "samples_per_s")}


def _used(extra: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What a run's losses looked through, as far as its checkpoint says so."""
    used = {key: extra[key] for key in ("perceptual", "discriminator") if key in extra}
    return {"used": used} if used else {}


def stage_records(root: Path, name: str | None) -> list[dict[str, Any]]:
    """What was run, first stage first, following each config's `after` from the run `name`, and
    where it has one the run that it started from. A bundle brings its own records.
    """
    found: list[dict[str, Any]] = []
    while name is not None:
        state = read_state(need_checkpoint(root, name))
        config, step = state["config"], state["step"]
        found.insert(
            0,
            {
                "name": name,
                "steps": step,
                "samples": step * config["batch_size"],
                "seconds": round(training_seconds(root / name, config["batch_size"])),
                "last": _last_values(root / name),
                "config": config,
                **_used(state["extra"]),
            },
        )
        started = config.get("start_from")
        name = started if started and latest_checkpoint(root / started) else config["after"]
        if name is not None and (Path(name) / MANIFEST_NAME).is_file():
            return [*read_manifest(Path(name)).training.get("stages", []), *found]
    return found


def assemble_bundle(config: BundleConfig, root: Path) -> Bundle:
    """The bundle of the runs in `root`, which need not be finished; nothing is written.

    Sizes and statistics of its manifest are not filled in.

    Raises:
        CheckpointError: a run is missing, or the two runs do not share encoder and bridge.
        BundleError: a checkpoint's weights do not fit its config.
    """
    checkpoint = need_checkpoint(root, config.diffusion)
    autoencoder = _autoencoder(checkpoint)
    stages = stage_records(root, config.diffusion)
    decoder = latest_checkpoint(root / config.decoder) if config.decoder else None
    if decoder is not None and config.decoder is not None:
        autoencoder = with_decoder_of(autoencoder, _autoencoder(decoder), config.decoder)
        stages += stage_records(root, config.decoder)[-1:]
    drawing = bundled_denoiser(checkpoint)
    shape = autoencoder.latent_shape
    draft = Manifest(
        name=config.bundle,
        description=config.description,
        tasks=drawing.tasks,
        image_size=(1, 1),  # the three sizes and the statistics are filled in from the modules
        latent_shape=shape,
        latents_mean=[0.0],
        latents_std=[1.0],
        timestep_shift=read_state(checkpoint)["config"].get("timestep_shift")
        or default_shift(shape),
        default_steps=config.default_steps,
        default_guidance_scale=config.guidance_scale,
        default_image_guidance_scale=config.image_guidance_scale,
        training={
            "revision": git_revision(),
            "hardware": hardware(),
            "versions": versions(),
            "stages": stages,
        },
        **drawing.fields,
    )
    return Bundle(draft, autoencoder.eval(), drawing.denoiser.eval(), drawing.tokenizer)


def make_bundle(config: BundleConfig, root: Path) -> Manifest:
    """Writes the bundle of the runs in `root`; they need not be finished.

    Raises:
        CheckpointError, BundleError: as `assemble_bundle`.
    """
    made = assemble_bundle(config, root)
    assert made.denoiser is not None
    assert made.tokenizer is not None
    return save_bundle(
        Path(config.directory), made.manifest, made.autoencoder, made.denoiser, made.tokenizer
    )
