"""Which tokenizer reads the prompts of a run."""

from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from models.pretrained_text import PretrainedTokenizer
from models.text import PromptTokenizer
from models.text_denoiser import TextDenoiserConfig
from training.checkpoint import CheckpointError
from training.pretrain import prompt_tokenizer
from training.pretrained_text import read_text_tokenizer

Tokenizer: TypeAlias = PromptTokenizer | PretrainedTokenizer


def make_tokenizer(
    config: TextDenoiserConfig, words: list[str] | None, text_folder: str | None
) -> Tokenizer:
    """That of the pretrained text expert, or of a vocabulary; by default the stickers' own.

    Raises:
        CheckpointError: a pretrained tokenizer is missing, or there are more ids than the
            denoiser has.
        BundleError: a pretrained tokenizer cannot be read.
    """
    tokenizer: Tokenizer
    if text_folder is not None:
        tokenizer = read_text_tokenizer(Path(text_folder), config.max_prompt_tokens)
        num_ids = tokenizer.num_ids
    else:
        if words is None:
            tokenizer = prompt_tokenizer(config.max_prompt_tokens)
        else:
            tokenizer = PromptTokenizer(words, config.max_prompt_tokens)
        num_ids = len(tokenizer.words)
    if num_ids > config.vocabulary_size:
        raise CheckpointError(
            f"the tokenizer has {num_ids} ids and the denoiser embeds {config.vocabulary_size}: "
            f"set denoiser.vocabulary_size to {num_ids} or more"
        )
    return tokenizer


def null_prompt(tokenizer: Tokenizer) -> Tensor | None:
    """Ids (T,) of the empty prompt of a pretrained tokenizer; None: END, then padding."""
    return None if isinstance(tokenizer, PromptTokenizer) else tokenizer.encode([""])[0]
