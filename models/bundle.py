"""Bundles on disk: safetensors weights, a vocabulary or class names, and the manifest over them."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from torch import nn

from models.autoencoder import RPiAE
from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig
from models.class_labels import ClassEncoder
from models.low_precision import LowPrecision, lower_precision
from models.manifest import (
    AUTOENCODER_FILE,
    DENOISER_FILE,
    GUIDE_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    BundleError,
    Manifest,
    list_files,
    read_manifest,
    verify_files,
    write_manifest,
)
from models.packed_linear import pack_linears
from models.pretrained_text import PretrainedTokenizer
from models.text import PromptTokenizer
from models.text_denoiser import TextDenoiser, TextDenoiserConfig
from models.weights import load_weights, save_weights, without_weights

Denoiser: TypeAlias = TextDenoiser | ClassDenoiser
DenoiserConfig: TypeAlias = TextDenoiserConfig | ClassDenoiserConfig
Tokenizer: TypeAlias = PromptTokenizer | PretrainedTokenizer | ClassEncoder
"""What reads prompts: `encode` gives what the denoiser's `prefill` takes."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: modules in eval mode, without gradients.

    `denoiser` and `tokenizer` are None where the bundle only encodes and decodes; `guide` is the
    weaker model of autoguidance.
    """

    manifest: Manifest
    autoencoder: RPiAE
    denoiser: Denoiser | None = None
    tokenizer: Tokenizer | None = None
    guide: ClassDenoiser | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """Those it has of autoencoder, denoiser and guide."""
        modules = (self.autoencoder, self.denoiser, self.guide)
        return [module for module in modules if module is not None]

    def to(self, device: str) -> Self:
        """Move the modules to a device."""
        for module in self.modules:
            module.to(device)
        return self

    def lower(self, precision: LowPrecision, compute: torch.dtype) -> Self:
        """Hold weights in fewer bits and multiply in `compute`; the modules only infer then.

        bf16: of everything. int8 and fp8: of what draws, which is denoiser, guide and decoder; the
        latents of a picture stay what they are.
        """
        autoencoder: list[nn.Module] = [self.autoencoder]
        if precision != "bf16":
            autoencoder = [self.autoencoder.bridge_decoder, self.autoencoder.decoder]
        for module in (*autoencoder, *self.modules[1:]):
            lower_precision(module, precision, compute)
        return self

    def pack(self) -> Self:
        """Make the modules fast where they are on a CPU; there they only infer from then on."""
        if self.autoencoder.device.type == "cpu":
            for module in self.modules:
                pack_linears(module)
        return self


def denoiser_config(manifest: Manifest) -> DenoiserConfig:
    """Sizes of the denoiser that the manifest states.

    Raises:
        BundleError: the config is missing or does not fit.
    """
    fields = manifest.module_fields("denoiser")
    try:
        if fields.get("kind") == "class":
            return ClassDenoiserConfig(**fields)
        return TextDenoiserConfig(**fields)
    except (TypeError, ValueError) as error:
        raise BundleError(f"manifest: model.denoiser: {error}") from None


def build_denoiser(manifest: Manifest) -> Denoiser:
    """The denoiser with the sizes that the manifest states, weights not loaded.

    Raises:
        BundleError: its config is missing or does not fit.
    """
    config = denoiser_config(manifest)
    try:
        if isinstance(config, ClassDenoiserConfig):
            return without_weights(lambda: ClassDenoiser(config))
        return without_weights(lambda: TextDenoiser(config))
    except (TypeError, ValueError) as error:
        raise BundleError(f"manifest: model.denoiser: {error}") from None


def load_bundle(directory: Path, device: str = "cpu") -> Bundle:
    """Load a bundle, weights as float32, after checking every file's SHA-256.

    Raises:
        BundleError: files are missing or altered, or weights and manifest do not fit together.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    bundle = Bundle(manifest, RPiAE.from_pretrained(directory))
    if "denoiser" in manifest.model:
        denoiser = build_denoiser(manifest)
        load_weights(denoiser, directory / DENOISER_FILE)
        guide = None
        if manifest.guidance == "autoguidance":
            guide = ClassDenoiser.from_pretrained(directory, file=GUIDE_FILE)
        bundle = Bundle(
            manifest,
            bundle.autoencoder,
            denoiser.eval().requires_grad_(False),
            load_tokenizer(directory, manifest, denoiser.config),
            guide,
        )
    return bundle.to(device)


def load_tokenizer(directory: Path, manifest: Manifest, config: DenoiserConfig) -> Tokenizer:
    """What reads a bundle's prompts.

    Raises:
        BundleError: its file does not fit, or the class names do not fit the denoiser.
    """
    if isinstance(config, TextDenoiserConfig):
        if manifest.tokenizer_file is not None:
            path = directory / manifest.tokenizer_file
            return PretrainedTokenizer.read(path, manifest.max_prompt_tokens)
        words = json.loads((directory / VOCABULARY_FILE).read_text(encoding="utf-8"))
        return PromptTokenizer(words, manifest.max_prompt_tokens)
    names, num_classes = manifest.class_names, config.num_classes
    if names is None or len(names) != num_classes:
        raise BundleError(
            f"manifest: class_names must hold {num_classes} names, one per class of the denoiser"
        )
    return ClassEncoder(names)


def save_bundle(
    directory: Path,
    manifest: Manifest,
    autoencoder: RPiAE,
    denoiser: Denoiser,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> Manifest:
    """Write a bundle; sizes, configs and hashes of the manifest are filled in here.

    Of a class-conditional denoiser, `manifest` holds the class names.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(autoencoder, directory / AUTOENCODER_FILE, dtype)
    save_weights(denoiser, directory / DENOISER_FILE, dtype)
    names, reads = [AUTOENCODER_FILE, DENOISER_FILE], _save_tokenizer(directory, tokenizer)
    names += [reads[name] for name in ("vocabulary_file", "tokenizer_file") if name in reads]
    fields = autoencoder.manifest_fields()
    manifest = manifest.model_copy(
        update={
            **fields,
            **reads,
            "model": fields["model"] | {"denoiser": dataclasses.asdict(denoiser.config)},
            "files": list_files(directory, names),
        }
    )
    write_manifest(directory, manifest)
    return manifest


def _save_tokenizer(directory: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write its file, if it has one; what the manifest says of it."""
    if isinstance(tokenizer, ClassEncoder):
        return {"max_prompt_tokens": 1}
    if isinstance(tokenizer, PretrainedTokenizer):
        tokenizer.save(directory / TOKENIZER_FILE)
        file = {"tokenizer_file": TOKENIZER_FILE}
    else:
        text = json.dumps(tokenizer.words, indent=0) + "\n"
        (directory / VOCABULARY_FILE).write_text(text, encoding="utf-8")
        file = {"vocabulary_file": VOCABULARY_FILE}
    return {"max_prompt_tokens": tokenizer.max_tokens, **file}
