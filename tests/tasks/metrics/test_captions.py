"""Caption metrics: published names, known values, and what is said where a metric is absent."""

from __future__ import annotations

import math

import pytest

from blip_fast.tasks.metrics import captions as metrics
from blip_fast.tasks.metrics.captions import caption_scores
from blip_fast.tasks.metrics.words import java

TRUTH = {
    7: ["a cat sits on a mat", "the cat is on the mat"],
    3: ["a dog runs in a green park", "a brown dog running"],
    12: ["two people ride a red bus"],
}
PERFECT = {image: texts[0] for image, texts in TRUTH.items()}
WITHOUT_JAVA = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "java", lambda: None)


def test_perfect_captions(no_java: None) -> None:
    found = caption_scores(PERFECT, TRUTH)
    assert list(found.metrics) == WITHOUT_JAVA
    for name in WITHOUT_JAVA[:5]:
        assert found.metrics[name] == pytest.approx(1.0, abs=1e-6)
    assert found.metrics["CIDEr"] > 5
    assert found.notes == ("Java is absent: words by blip_fast's own tokenisation, no METEOR, no SPICE",)
    assert caption_scores(PERFECT, TRUTH, use_java=False).metrics == found.metrics


def test_bleu_by_hand(no_java: None) -> None:
    """One word of six wrong, in its middle: 5/6 words, 3/5 pairs; no brevity penalty."""
    found = caption_scores({1: "a cat sits at a mat"}, {1: ["A cat sits on a mat."]}).metrics
    assert found["Bleu_1"] == pytest.approx(5 / 6)
    assert found["Bleu_2"] == pytest.approx(math.sqrt(5 / 6 * 3 / 5))
    assert found["Bleu_4"] < 0.01


def test_better_captions_score_higher(no_java: None) -> None:
    worse = PERFECT | {3: "two people ride a bus"}
    good, bad = caption_scores(PERFECT, TRUTH).metrics, caption_scores(worse, TRUTH).metrics
    assert all(bad[name] < good[name] for name in WITHOUT_JAVA)


@pytest.mark.skipif(java() is None, reason="METEOR needs Java")
def test_with_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_SPICE_JAR", metrics._SPICE_JAR.with_name("absent.jar"))
    found = caption_scores(PERFECT, TRUTH)
    assert list(found.metrics) == [*WITHOUT_JAVA[:4], "METEOR", *WITHOUT_JAVA[4:]]
    assert found.metrics["METEOR"] == pytest.approx(1.0)
    assert len(found.notes) == 1
    assert "get_stanford_models' downloads them" in found.notes[0]


def test_a_java_program_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def compute_score(self, truths: object, candidates: object) -> None:
            raise ValueError("could not convert string to float: ''")

    monkeypatch.setattr(metrics, "java", lambda: "java")
    monkeypatch.setattr(metrics, "treebank_words", metrics.own_words)
    monkeypatch.setattr(metrics, "Meteor", Failing)
    monkeypatch.setattr(metrics, "_SPICE_JAR", metrics._SPICE_JAR.with_name("absent.jar"))
    found = caption_scores(PERFECT, TRUTH)
    assert list(found.metrics) == WITHOUT_JAVA
    assert found.notes[0] == "no METEOR: its Java program failed (could not convert string to float: '')"


def test_images_must_agree() -> None:
    with pytest.raises(ValueError, match="captions has nothing for image 12, one of 1"):
        caption_scores({3: "a", 7: "b"}, TRUTH)
    with pytest.raises(ValueError, match="references has nothing for image 1, one of 1"):
        caption_scores({1: "a", **PERFECT}, TRUTH)
    with pytest.raises(ValueError, match="captions is empty"):
        caption_scores({}, {})
    with pytest.raises(ValueError, match=r"references has \[\] for image 1"):
        caption_scores({1: "a"}, {1: []})
