"""The tokenizer that belongs to a model: BLIP's own, or for another vocabulary the one saved beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from blip_fast.checkpoints.huggingface import TOKENIZER_CONFIG
from blip_fast.config import BlipConfig
from blip_fast.data.tokens import cached_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in this folder."""
    return (folder / TOKENIZER_CONFIG).is_file()


def tokenizer_for(config: BlipConfig, folder: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model with this configuration, whose weights came from ``folder``.

    Raises ValueError where the vocabulary is not BLIP's and no tokenizer of that size lies in the folder.
    """
    if config.vocab_size == BlipConfig.vocab_size:
        return cached_tokenizer()
    if folder is None:
        raise ValueError(f"the model has vocab_size={config.vocab_size} and no tokenizer; strings are tokenised for "
                         f"models with {BlipConfig.vocab_size} entries, or set model.tokenizer")  # fmt: skip
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever transformers stumbles over in a damaged file
        raise ValueError(f"the tokenizer in {folder} is damaged or incomplete: {type(error).__name__}") from error
    if len(tokenizer) != config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} entries; expected vocab_size={config.vocab_size}"
        )
    return tokenizer
