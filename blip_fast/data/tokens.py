"""Texts to token ids, padded and cut as the published program for each use does."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Use = Literal["pretrain", "retrieval", "itm", "caption", "question", "answer", "nlvr", "features", "dialogue"]
PROMPT = "a picture of "  # in front of every caption that is trained on or generated


@dataclass(frozen=True)
class Rule:
    """How long texts may be, in tokens with [CLS] and [SEP]: None cuts nothing; ``fixed`` pads to that length."""

    max_length: int | None = None
    fixed: bool = False


RULES: dict[Use, Rule] = {
    "pretrain": Rule(30, fixed=True),
    "retrieval": Rule(35, fixed=True),
    "itm": Rule(35, fixed=True),
    "caption": Rule(40),
    "question": Rule(35),
    "answer": Rule(),
    "nlvr": Rule(),
    "features": Rule(),  # published without padding, which serves one text or texts of equal length
    "dialogue": Rule(),
}


def tokenize(texts: Sequence[str], use: Use, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (S, N) int64 of texts, [CLS] first, [SEP] last, right-padded with 0.

    ``tokenizer`` is BLIP's unless another is given. Raises what :func:`strings_of` raises.
    """
    rule = RULES[use]
    tokens = (tokenizer or cached_tokenizer())(
        strings_of(texts),
        padding="max_length" if rule.fixed else "longest",
        truncation=rule.max_length is not None,
        max_length=rule.max_length,
        return_tensors="pt",
    )
    return tokens.input_ids, tokens.attention_mask


@dataclass(frozen=True)
class TextEncoder:
    """Turns one text into a list of token ids, [CLS] first and [SEP] last, cut as published for its use.

    Attributes:
        use: what the text is for.
        tokenizer: None for BLIP's own.
        max_tokens: None for the published length.
    """

    use: Use
    tokenizer: PreTrainedTokenizerBase | None = None
    max_tokens: int | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of a text, or None."""
        return RULES[self.use].max_length if self.max_tokens is None else self.max_tokens

    @property
    def width(self) -> int:
        """What texts are padded to; ValueError where the length is not fixed."""
        if self.limit is None:
            raise ValueError(f"texts for {self.use!r} have no greatest length; expected max_tokens")
        return self.limit

    def __call__(self, text: str) -> list[int]:
        return self.encode([text])[0]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts."""
        tokenizer = self.tokenizer or cached_tokenizer()
        tokens = tokenizer(
            list(texts),
            truncation=self.limit is not None,
            max_length=self.limit,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids: list[list[int]] = tokens["input_ids"]
        return ids


def dialogue_text(utterances: Sequence[str]) -> str:
    """A dialogue's utterances, oldest first, as one text; the tokenizer puts the last [SEP]."""
    return f" {cached_tokenizer().sep_token} ".join(strings_of(utterances))


def strings_of(texts: Sequence[str]) -> list[str]:
    """The texts in a list. TypeError unless they are a sequence of strings, ValueError where there are none, or no Unicode."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"texts is {texts!r:.80}; expected a list of strings")
    if not texts:
        raise ValueError("texts is empty; expected at least one string")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # such as bytes of Latin-1 on the command line; tokenizers refuse it
            raise ValueError(
                f"texts has {text!r:.80}; expected text without halves of characters (lone surrogates)"
            ) from error
    return list(texts)


@functools.cache
def cached_tokenizer() -> PreTrainedTokenizerBase:
    """BLIP's tokenizer, built once."""
    from blip_fast.data.tokenizer import load_tokenizer

    return load_tokenizer()
