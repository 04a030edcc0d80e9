from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib import resources

import pytest
from transformers import BertTokenizerFast, PreTrainedTokenizerFast, __version__

from blip_fast.data.tokenizer import VOCABULARY_FILE, load_tokenizer, restrict_vocabulary

VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
TEXTS = [
    "a picture of a man, medium-dark skin-tone",
    "Café NAÏVE 北京 unaffable \u200b x\ty\r\nz",
    "I'm sure it isn't 3.14 %$#@ ¿?",
    "a" * 120 + " b",
    "",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer()


@pytest.fixture(scope="module")
def captions() -> list[str]:
    folder = resources.files("blip_fast.data") / "demo"
    return [pair["caption"] for pair in json.loads((folder / "train.json").read_text(encoding="utf-8"))]


def test_bundled_vocabulary_is_the_published_one() -> None:
    data = (resources.files("blip_fast.data") / VOCABULARY_FILE).read_bytes()
    assert hashlib.sha256(data).hexdigest() == VOCABULARY_SHA256


def test_special_tokens_have_the_published_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 30524
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 101, 102)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("[DEC]", 30522)
    assert tokenizer.convert_tokens_to_ids("[ENC]") == 30523
    assert tokenizer("a [DEC] b [ENC]").input_ids == [101, 1037, 30522, 1038, 30523, 102]


def test_ids_are_those_of_berts_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = str(resources.files("blip_fast.data") / VOCABULARY_FILE)
    argument = "vocab" if int(__version__.split(".")[0]) >= 5 else "vocab_file"
    bert = BertTokenizerFast(**{argument: vocabulary}, do_lower_case=True)
    for text in TEXTS:
        assert tokenizer(text).input_ids == bert(text).input_ids


def test_padding_is_on_the_right_with_zeros(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = tokenizer(["a cat", "word " * 40], padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    assert texts.input_ids[0].tolist() == [101, 1037, 4937, 102, 0, 0, 0, 0]
    assert texts.attention_mask.sum(1).tolist() == [4, 8]
    assert texts.input_ids[1, -1] == 102


def test_decoding_drops_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [30522, *tokenizer("a man, isn't it?", add_special_tokens=False).input_ids, 102, 0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a man, isn't it?"


def test_restricted_vocabulary_splits_its_texts_as_before(
    tokenizer: PreTrainedTokenizerFast, captions: list[str]
) -> None:
    small = restrict_vocabulary(tokenizer, captions)
    assert len(small) < 500
    for caption in captions:
        assert small.tokenize(caption) == tokenizer.tokenize(caption)


def test_restricted_vocabulary_keeps_the_conventions(tokenizer: PreTrainedTokenizerFast) -> None:
    small = restrict_vocabulary(tokenizer, ["a red cat"])
    assert (small.pad_token_id, small.unk_token_id, small.cls_token_id, small.sep_token_id) == (0, 100, 101, 102)
    assert small.bos_token_id == len(small) - 2
    assert small.convert_tokens_to_ids("[ENC]") == len(small) - 1
    assert small.tokenize("red zebra 7") == ["red", "z", "##e", "##b", "##r", "##a", "7"]
    assert small.unk_token_id not in small("any English words, at all!").input_ids


def test_restricting_twice_changes_nothing(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> None:
    once = restrict_vocabulary(tokenizer, captions)
    assert restrict_vocabulary(once, captions).get_vocab() == once.get_vocab()


def test_no_network_is_used() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*arguments): sys.exit('a connection was attempted')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from blip_fast.data.tokenizer import load_tokenizer\n"
        "print(load_tokenizer()('a cat').input_ids)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "[101, 1037, 4937, 102]"), run.stderr
