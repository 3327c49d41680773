"""Bundles on disk: safetensors weights, a JSON vocabulary and the manifest that binds them."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.autoencoder import RPiAE, RPiAEConfig
from models.bridge import BridgeConfig
from models.decoder import PixelDecoderConfig
from models.encoder import SmallViTConfig
from models.manifest import (
    BundleError,
    Manifest,
    list_files,
    read_manifest,
    verify_files,
    write_manifest,
)
from models.text import PromptTokenizer
from models.text_denoiser import TextDenoiser, TextDenoiserConfig

AUTOENCODER_FILE = "autoencoder.safetensors"
DENOISER_FILE = "denoiser.safetensors"
VOCABULARY_FILE = "vocabulary.json"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: modules in eval mode, without gradients."""

    manifest: Manifest
    autoencoder: RPiAE
    denoiser: TextDenoiser
    tokenizer: PromptTokenizer


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file strictly into `module`, keeping the module's dtype.

    Raises:
        BundleError: unreadable file, or missing, unexpected or misshaped tensors (all are listed).
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read as safetensors: {error}") from None
    check_tensors(module.state_dict(), tensors, str(path))
    module.load_state_dict(tensors)


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    """Compare names and shapes in both directions.

    Raises:
        BundleError: lists every missing, unexpected and misshaped tensor.
    """
    problems = [f"missing {key}" for key in expected if key not in found]
    problems += [f"unexpected {key}" for key in found if key not in expected]
    problems += [
        f"{key} has shape {tuple(found[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    if problems:
        raise BundleError(f"{name} does not fit the model: " + "; ".join(problems))


def _config(cls: type[Any], fields: Mapping[str, Any], name: str) -> Any:
    try:
        return cls(**fields)
    except (TypeError, ValueError) as error:
        raise BundleError(f"manifest: model.{name}: {error}") from None


def build_modules(manifest: Manifest) -> tuple[RPiAE, TextDenoiser]:
    """Modules with the sizes that the manifest states, weights not loaded.

    Raises:
        BundleError: a module's config is missing or does not fit.
    """
    classes: dict[str, type[Any]] = {
        "encoder": SmallViTConfig,
        "bridge": BridgeConfig,
        "decoder": PixelDecoderConfig,
        "denoiser": TextDenoiserConfig,
    }
    missing = [name for name in classes if name not in manifest.model]
    if missing:
        raise BundleError(f"manifest: model lacks {', '.join(missing)}")
    configs = {name: _config(cls, manifest.model[name], name) for name, cls in classes.items()}
    denoiser = TextDenoiser(configs.pop("denoiser"))
    try:
        autoencoder = RPiAE(RPiAEConfig(**configs))
    except ValueError as error:
        raise BundleError(f"manifest: model: {error}") from None
    return autoencoder, denoiser


def load_bundle(directory: Path, device: str = "cpu") -> Bundle:
    """Load a bundle, weights as float32, after checking every file's SHA-256.

    Raises:
        BundleError: files are missing or altered, or weights and manifest do not fit together.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    autoencoder, denoiser = build_modules(manifest)
    load_weights(autoencoder, directory / AUTOENCODER_FILE)
    load_weights(denoiser, directory / DENOISER_FILE)
    words = json.loads((directory / VOCABULARY_FILE).read_text(encoding="utf-8"))
    return Bundle(
        manifest=manifest,
        autoencoder=autoencoder.to(device).eval().requires_grad_(False),
        denoiser=denoiser.to(device).eval().requires_grad_(False),
        tokenizer=PromptTokenizer(words, manifest.max_prompt_tokens),
    )


def save_bundle(
    directory: Path,
    manifest: Manifest,
    autoencoder: RPiAE,
    denoiser: TextDenoiser,
    tokenizer: PromptTokenizer,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> Manifest:
    """Write weights, vocabulary and manifest; sizes, configs and hashes are filled in here.

    The latent statistics stay float32: a rounded scale would shift every latent.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for module, name in ((autoencoder, AUTOENCODER_FILE), (denoiser, DENOISER_FILE)):
        tensors = {
            key: tensor.detach().cpu().to(torch.float32 if "latents_" in key else dtype)
            for key, tensor in module.state_dict().items()
        }
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, directory / name)
        (directory / name).chmod(0o644)  # safetensors writes for its owner alone
    vocabulary = directory / VOCABULARY_FILE
    vocabulary.write_text(json.dumps(tokenizer.words, indent=0) + "\n", encoding="utf-8")
    size = autoencoder.config.encoder.image_size
    parts = {name: getattr(autoencoder.config, name) for name in ("encoder", "bridge", "decoder")}
    manifest = manifest.model_copy(
        update={
            "image_size": (size, size),
            "latent_shape": autoencoder.latent_shape,
            "latents_mean": autoencoder.latents_mean.tolist(),
            "latents_std": autoencoder.latents_std.tolist(),
            "max_prompt_tokens": tokenizer.max_tokens,
            "vocabulary_file": VOCABULARY_FILE,
            "model": {
                name: dataclasses.asdict(config)
                for name, config in (parts | {"denoiser": denoiser.config}).items()
            },
            "files": list_files(directory, [AUTOENCODER_FILE, DENOISER_FILE, VOCABULARY_FILE]),
        }
    )
    write_manifest(directory, manifest)
    return manifest
