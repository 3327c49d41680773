"""Pretrained language models from a folder on disk, as the Hugging Face hub keeps them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from models.pretrained_text import PretrainedTokenizer
from models.text_denoiser import TextDenoiser, TextDenoiserConfig
from models.weights import check_tensors
from training.checkpoint import CheckpointError

# Ours and what a layer of transformers' Qwen2Model calls it.
_LAYER_NAMES = {
    "norm1": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_OWN = "key_norm"  # of the block, and not of the pretrained layer


def load_text_expert(denoiser: TextDenoiser, folder: Path) -> None:
    """Fill the text expert from a Qwen2 or Qwen2.5 model: config.json and its safetensors.

    Nothing is downloaded. The last norm and the head over words are not used.

    Raises:
        CheckpointError: no such folder, it cannot be read, or its sizes are not the denoiser's.
        BundleError: missing or misshaped tensors; all are listed.
    """
    # transformers takes seconds to import; only these runs pay for it.
    from transformers import AutoConfig, Qwen2Model

    _need(folder, "config.json")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        _check_sizes(denoiser.config, config, folder)
        found, report = Qwen2Model.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"text_folder: {folder} cannot be read: {reason}") from None
    # What the file lacks, transformers draws at random.
    drawn = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    theirs = {name: value for name, value in found.state_dict().items() if name not in drawn}
    expected = {
        name: tensor
        for name, tensor in denoiser.state_dict().items()
        if name.startswith(("words.", "text_blocks.")) and f".{_OWN}." not in name
    }
    ours = renamed(theirs)
    check_tensors(expected, ours, f"text_folder: {folder}")
    denoiser.load_state_dict(ours, strict=False)


def read_text_tokenizer(folder: Path, max_tokens: int) -> PretrainedTokenizer:
    """The folder's tokenizer.json, with the end token that tokenizer_config.json names.

    Raises:
        CheckpointError: a file is missing, or names no end token.
        BundleError: the tokenizer cannot be read or lacks that token.
    """
    tokenizer, settings = (_need(folder, f"tokenizer{end}.json") for end in ("", "_config"))
    try:
        end = json.loads(settings.read_text(encoding="utf-8"))["eos_token"]
        end = end["content"] if isinstance(end, dict) else end
    except (OSError, ValueError, LookupError):
        end = None
    if not isinstance(end, str):
        raise CheckpointError(f"text_folder: {settings} names no eos_token")
    return PretrainedTokenizer.with_end(tokenizer, end, max_tokens)


def _need(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise CheckpointError(
            f"text_folder: there is no {path}; download the model into that folder, or give "
            "another with text_folder=PATH"
        )
    return path


def _check_sizes(ours: TextDenoiserConfig, theirs: Any, folder: Path) -> None:
    """Compare sizes and constants, which the tensors' shapes do not all tell.

    Raises:
        CheckpointError: another kind of model, or fields that differ; names all of them.
    """
    if theirs.model_type != "qwen2":
        raise CheckpointError(
            f"text_folder: {folder} is a {theirs.model_type}, denoiser.text_expert a qwen2"
        )
    rope = theirs.rope_parameters
    if rope["rope_type"] != "default" or theirs.use_sliding_window or theirs.hidden_act != "silu":
        raise CheckpointError(
            f"text_folder: {folder} has rope {rope['rope_type']}, sliding window "
            f"{theirs.use_sliding_window} and activation {theirs.hidden_act}: only plain rope, "
            "none and silu can be computed here"
        )
    head_width = theirs.hidden_size // theirs.num_attention_heads
    expected = {
        "num_heads": theirs.num_attention_heads,
        "width": theirs.num_attention_heads * head_width,  # so that heads are as wide
        "depth": theirs.num_hidden_layers,
        "text_width": theirs.hidden_size,
        "text_hidden_width": theirs.intermediate_size,
        "text_key_heads": theirs.num_key_value_heads,
        "text_theta": float(rope["rope_theta"]),
        "text_eps": theirs.rms_norm_eps,
        "vocabulary_size": theirs.vocab_size,
    }
    different = [
        f"denoiser.{name}={value}"
        for name, value in expected.items()
        if getattr(ours, name) != value
    ]
    if different:
        raise CheckpointError(f"text_folder: {folder} needs {' '.join(different)}")


def renamed(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a Qwen2Model under our names, without its last norm."""
    names = {theirs: ours for ours, theirs in _LAYER_NAMES.items()}
    ours = {}
    for name, tensor in theirs.items():
        if name == "embed_tokens.weight":
            ours["words.weight"] = tensor
        elif name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            part, _, kind = rest.rpartition(".")
            ours[f"text_blocks.{layer}.{names.get(part, part)}.{kind}"] = tensor
    return ours
