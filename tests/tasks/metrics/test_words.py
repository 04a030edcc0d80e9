"""Words of captions: our own tokenisation against Stanford's, where Java is."""

from __future__ import annotations

import pytest

from blip_fast.tasks.metrics import words

CAPTIONS = {
    "A man's dog isn't here, (ok) don't!": "a man 's dog is n't here -lrb- ok -rrb- do n't",
    'a photo-realistic "cat" ... 3.5 o\'clock U.S.': "a photo-realistic cat 3.5 o'clock u.s.",
    "two people; one cannot see 1,000 cars/trucks -- really?": "two people one can not see 1,000 cars/trucks really",
    "it's the dogs' bowl & fork": "it 's the dogs bowl & fork",
    "he'll they've i'm we're she'd": "he 'll they 've i 'm we 're she 'd",
    "Mrs. Claus: medium-light\n skin tone, a café": "mrs. claus medium-light skin tone a café",
    "": "",
}


def test_own_words() -> None:
    assert words.own_words(list(CAPTIONS)) == list(CAPTIONS.values())


@pytest.mark.skipif(words.java() is None, reason="Stanford's tokenizer needs Java")
def test_treebank_words() -> None:
    assert words.treebank_words(list(CAPTIONS)) == list(CAPTIONS.values())


def test_without_java_the_published_tokenizer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "java", lambda: None)
    with pytest.raises(RuntimeError, match="needs Java"):
        words.treebank_words(["a cat"])


def test_a_java_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "java", lambda: "false")
    with pytest.raises(RuntimeError, match="tokenizer failed"):
        words.treebank_words(["a cat"])
