"""BERT's WordPiece tokenizer from the bundled vocabulary, with BLIP's two tokens; never touches the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

VOCABULARY_FILE = "bert-base-uncased-vocab.txt"
# BERT numbers its special tokens 0 and 100-103, with unused entries between: a vocabulary keeps this head unchanged,
# so that [PAD] = 0, [CLS] = 101 and [SEP] = 102 hold for every model.
_HEAD_SIZE = 104
_DEC, _ENC = "[DEC]", "[ENC]"


def load_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's uncased tokenizer (30,522 entries) with ``[DEC]`` = 30522 (bos) and ``[ENC]`` = 30523 appended."""
    text = resources.files(__package__).joinpath(VOCABULARY_FILE).read_text(encoding="utf-8")
    return _build_tokenizer(text.splitlines())


def restrict_vocabulary(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with only the entries that ``texts`` need, for small models trained from scratch.

    The texts themselves are split exactly as before; other words fall apart into single letters, which stay in the
    vocabulary. ``[PAD]``, ``[UNK]``, ``[CLS]``, ``[SEP]`` and ``[MASK]`` keep their ids; ``[DEC]`` and ``[ENC]``
    are the last two, as everywhere.
    """
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    used = {token_id for text in texts for token_id in tokenizer(text, add_special_tokens=False)["input_ids"]}
    kept = [
        token
        for token, token_id in entries
        if token not in (_DEC, _ENC) and (token_id < _HEAD_SIZE or token_id in used or _is_character(token))
    ]
    return _build_tokenizer(kept)


def _is_character(token: str) -> bool:
    return token.isascii() and len(token.removeprefix("##")) == 1


def _build_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    # Built from the tokenizers library's parts instead of BertTokenizerFast, whose arguments differ between
    # transformers 4 and 5; the parts are those of BERT.
    ids = {token: number for number, token in enumerate(vocabulary)}
    wordpiece = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    wordpiece.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    wordpiece.add_special_tokens([_DEC, _ENC])
    return PreTrainedTokenizerFast(
        tokenizer_object=wordpiece,
        bos_token=_DEC,
        additional_special_tokens=[_ENC],
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        padding_side="right",
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
    )
