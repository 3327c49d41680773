"""Published encoders from a folder on disk, as the Hugging Face hub keeps them."""

import pickle
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from models.weights import check_tensors
from training.checkpoint import CheckpointError

# Norms with affine and pooling heads, which RPiAE does without.
_LEFT_OUT = ("layernorm.", "post_layernorm.", "pooler.", "head.")


def load_pretrained_encoder(encoder: nn.Module, folder: Path) -> None:
    """Fill a `PretrainedEncoder` from a folder with config.json and its weights.

    Nothing is downloaded. The folder's last norm is not used: tokens are normed without affine.

    Raises:
        CheckpointError: no such folder, or what it holds cannot be read.
        BundleError: missing or misshaped tensors; all are listed.
    """
    from models.pretrained_encoder import PretrainedEncoder

    if not isinstance(encoder, PretrainedEncoder):
        raise CheckpointError(
            f"encoder_folder {folder} is for published encoders, and model.encoder.kind is "
            f"{getattr(encoder.config, 'kind', 'unknown')}"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"encoder_folder: there is no {folder}/config.json; download the encoder into that "
            "folder, or give another with encoder_folder=PATH"
        )
    try:
        # transformers knows the older names of its own checkpoints.
        found, report = type(encoder.model).from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"encoder_folder: {folder} cannot be read: {reason}") from None
    expected = encoder.model.state_dict()
    # What the file lacks, transformers draws at random.
    drawn = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    state = {
        name: value
        for name, value in found.state_dict().items()
        if name not in drawn and not name.startswith(_LEFT_OUT)
    }
    check_tensors(expected, state, f"encoder_folder: {folder}")
    encoder.model.load_state_dict({name: value.float() for name, value in state.items()})
