"""Captions to the words that caption metrics count: the Penn Treebank's as published, or our own where Java is absent."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pycocoevalcap.tokenizer import ptbtokenizer

_DROPPED = frozenset([*ptbtokenizer.PUNCTUATIONS, '"'])
# The published list of what is dropped has brackets in capitals, so that these lower-case ones stay.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_JAR = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
_CONTRACTION = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)|(?<=\bcan)(?=not\b)")
# An abbreviation, a number with its separators, a contracted ending, a word with inner hyphens, or one other character.
_TOKEN = re.compile(
    r"(?:mr|mrs|ms|dr|st|(?:\b\w\.)+\w)\.|\d+(?:[.,]\d+)*(?!\w)|'(?:s|m|d|re|ve|ll)(?!\w)|\w+(?:[-'&/]\w+)*|\S"
)


@functools.cache
def java() -> str | None:
    """The ``java`` program, if there is one."""
    return shutil.which("java")


def treebank_words(captions: Sequence[str]) -> list[str]:
    """Lower-case words of captions, joined by spaces, as published: Stanford's tokenizer, punctuation dropped.

    Raises RuntimeError where Java is absent or fails.
    """
    program = java()
    if program is None:
        raise RuntimeError("the Penn Treebank tokenizer needs Java, which is not on the PATH")
    command = [program, "-Dfile.encoding=UTF-8", "-cp", str(_JAR), "edu.stanford.nlp.process.PTBTokenizer"]
    # The wrapper in pycocoevalcap writes into its own package's folder, which may be read-only, and ignores failures.
    run = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        input="".join(f"{_one_line(caption)}\n" for caption in captions),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    lines = run.stdout.split("\n")[: len(captions)]
    if run.returncode or len(lines) != len(captions):
        raise RuntimeError(f"the Penn Treebank tokenizer failed: {run.stderr.strip()[-200:]}")
    return [_join(line.split()) for line in lines]


def own_words(captions: Sequence[str]) -> list[str]:
    """The same without Java: equal to :func:`treebank_words` but for rare abbreviations and symbols."""
    return [_join(_TOKEN.findall(_CONTRACTION.sub(r" \1", _one_line(caption).lower()))) for caption in captions]


def _one_line(caption: str) -> str:
    return " ".join(caption.split())


def _join(words: Sequence[str]) -> str:
    return " ".join(_BRACKETS.get(word, word) for word in words if word not in _DROPPED)
