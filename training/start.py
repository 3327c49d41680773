"""What a denoiser starts from: the averaged weights of an earlier run, a bundle, or a file."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from models.autoencoder import RPiAE
from models.manifest import (
    AUTOENCODER_FILE,
    DENOISER_FILE,
    MANIFEST_NAME,
    BundleError,
    read_manifest,
    verify_files,
)
from models.text_denoiser import TextDenoiser
from models.weights import load_weights
from training.checkpoint import CheckpointError, latest_checkpoint, read_state
from training.config import DenoiserRunConfig
from training.ema import weights_file
from training.latent_facts import Facts
from training.run import Run

EMA_FILE = "ema.safetensors"


@dataclass(frozen=True)
class Start:
    """name: as the config has it. weights: file of the denoiser. fields: of its config; facts:
    statistics and vocabulary that it was trained with; autoencoder: file of the one whose
    latents it knows; each None for a bare file.
    """

    name: str
    weights: Path
    fields: Mapping[str, Any] | None = None
    facts: Facts | None = None
    autoencoder: Path | None = None

    def load(self, denoiser: nn.Module) -> None:
        """Fill the denoiser, whose config must be the one that the weights were trained with; only
        a prompt encoder may be new.

        Raises:
            CheckpointError: names the fields of its config that differ.
            BundleError: the file is unreadable or does not fit.
        """
        if self.fields is not None:
            _check_fields(self.name, self.fields, denoiser.config)
        if not self._adds_prompt_encoder(denoiser):
            load_weights(denoiser, self.weights)
            return
        # It starts as identity, so a denoiser that was trained without one can go on with it.
        assert isinstance(denoiser, TextDenoiser)
        plain = TextDenoiser(dataclasses.replace(denoiser.config, prompt_depth=0))
        load_weights(plain, self.weights)
        denoiser.load_state_dict(plain.state_dict(), strict=False)

    def _adds_prompt_encoder(self, denoiser: nn.Module) -> bool:
        """Whether the denoiser has one and the weights do not."""
        if self.fields is None or not isinstance(denoiser, TextDenoiser):
            return False
        return denoiser.config.prompt_depth > 0 and not self.fields.get("prompt_depth")

    def check_latents(self, model: RPiAE) -> None:
        """Whether `model` gives the latents that the weights were trained on.

        Compared as bfloat16, which is what bundles hold.

        Raises:
            CheckpointError: names the first tensor of encoder or bridge that differs.
        """
        if self.autoencoder is None:
            return
        theirs = load_file(self.autoencoder)
        for name, tensor in model.state_dict().items():
            if not name.startswith(("encoder.", "bridge_encoder.")):
                continue
            other = theirs.get(name)
            if other is None or not torch.equal(tensor.cpu().bfloat16(), other.bfloat16()):
                raise CheckpointError(
                    f"start_from {self.name}: it was trained on other latents, {name} differs; "
                    "give this run the same tokenizer run as `after`"
                )


def frozen_tokenizer(config: DenoiserRunConfig, run: Run) -> RPiAE:
    """The tokenizer of the run before, or of a bundle; its latents are not normalized yet.

    Raises:
        CheckpointError: that run has no checkpoint.
        BundleError: its weights are missing or do not fit.
    """
    model = RPiAE(config.model)
    load_weights(model, run.before() / weights_file("autoencoder", config.averaged))
    num_channels = len(model.latents_mean)
    model.set_normalization([0.0] * num_channels, [1.0] * num_channels)
    return model


def find_start(config: DenoiserRunConfig, run: Run) -> Start | None:
    """What `config.start_from` names; None for nothing, and where the run has begun already.

    Raises:
        CheckpointError: it names nothing, or a run that trained no denoiser.
        BundleError: the bundle is altered or has no denoiser.
    """
    name = config.start_from
    if name is None or latest_checkpoint(run.directory) is not None:
        return None
    checkpoint = latest_checkpoint(run.root / name)
    if checkpoint is not None:
        return _of_run(name, checkpoint)
    path = Path(name)
    if (path / MANIFEST_NAME).is_file():
        return _of_bundle(name, path)
    if path.is_file():
        return Start(name, path)
    raise CheckpointError(
        f"start_from {name}: {run.root} holds no run of that name with a checkpoint, and there is "
        f"no such bundle or file; run `rpiae train {name}` first, or give another"
    )


def saved_facts(checkpoint: Path) -> Facts:
    """What a denoiser's checkpoint knows of its data."""
    tensors = load_file(checkpoint / weights_file("autoencoder", averaged=False))
    mean, std = (tensors[key].tolist() for key in ("latents_mean", "latents_std"))
    return Facts(mean, std, read_state(checkpoint)["extra"].get("words"))


def _of_run(name: str, checkpoint: Path) -> Start:
    config = read_state(checkpoint)["config"]
    if not (checkpoint / EMA_FILE).exists() or "denoiser" not in config:
        raise CheckpointError(f"start_from {name}: that run trained no denoiser")
    return Start(
        name,
        checkpoint / EMA_FILE,
        config["denoiser"],
        saved_facts(checkpoint),
        checkpoint / weights_file("autoencoder", averaged=False),
    )


def _of_bundle(name: str, directory: Path) -> Start:
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    if "denoiser" not in manifest.model:
        raise BundleError(f"start_from {name}: the bundle has no denoiser")
    words = None
    if manifest.vocabulary_file is not None:
        words = json.loads((directory / manifest.vocabulary_file).read_text(encoding="utf-8"))
    channels = manifest.latent_shape[0]
    mean, std = (
        values * channels if len(values) == 1 else values
        for values in (manifest.latents_mean, manifest.latents_std)
    )
    return Start(
        name,
        directory / DENOISER_FILE,
        manifest.module_fields("denoiser"),
        Facts(mean, std, words),
        directory / AUTOENCODER_FILE,
    )


def _check_fields(name: str, found: Mapping[str, Any], config: Any) -> None:
    """Compare a stored config with one of now; a field that the stored one lacks had its default.

    Raises:
        CheckpointError: they are of other kinds, or differ in a field; names all of them.
    """
    wanted = dataclasses.asdict(config)
    stored = {field.name: field.default for field in dataclasses.fields(config)} | dict(found)
    if not stored.get("prompt_depth"):
        stored["prompt_depth"] = wanted.get("prompt_depth")  # may be new
    different = [
        f"{field} {stored[field]} there and {value} here"
        for field, value in wanted.items()
        if stored[field] != value
    ]
    if different:
        raise CheckpointError(
            f"start_from {name}: its denoiser has {', '.join(different)}; give this run the same"
        )
