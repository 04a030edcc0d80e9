"""Caption metrics by pycocoevalcap's scorers, as published: Bleu_1 to Bleu_4, METEOR, ROUGE_L, CIDEr, SPICE.

Without Java the words come from our own tokenisation, and METEOR and SPICE are left out; ``CaptionScores.notes`` says so.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice import get_stanford_models

from blip_fast.tasks.metrics.words import java, own_words, treebank_words

_BLEU = [f"Bleu_{n}" for n in (1, 2, 3, 4)]
_SPICE_JAR = Path(get_stanford_models.SPICEDIR) / get_stanford_models.SPICELIB / f"{get_stanford_models.JAR}.jar"
ImageId = int | str
Words = dict[ImageId, list[str]]


@dataclass(frozen=True)
class CaptionScores:
    """Metrics by their published names, as fractions (CIDEr up to 10), and what a reader must know about them."""

    metrics: dict[str, float]
    notes: tuple[str, ...]


def caption_scores(
    captions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]], use_java: bool = True
) -> CaptionScores:
    """Score one caption per image against its references.

    Args:
        captions: caption of each image id.
        references: the true captions of each image id, at least one; the same ids.
        use_java: as published, where there is Java: its tokenisation, METEOR (some 10 s to start) and SPICE (minutes).

    Raises ValueError where the ids differ or an image has no reference.
    """
    _check(captions, references)
    absent = None if use_java and java() else "Java is absent" if use_java else "Java is not wanted"
    ids = list(captions)
    flat = (own_words if absent else treebank_words)([text for i in ids for text in (captions[i], *references[i])])
    candidates, truths = _unflatten(flat, ids, references)
    bleu = _score(Bleu(4), truths, candidates, _BLEU)
    rest = _score(Rouge(), truths, candidates, ["ROUGE_L"]) | _score(Cider(), truths, candidates, ["CIDEr"])
    if absent:
        return CaptionScores(bleu | rest, (f"{absent}: words by blip_fast's own tokenisation, no METEOR, no SPICE",))
    meteor, meteor_notes = _by_java("METEOR", Meteor, truths, candidates)
    spice, spice_notes = _spice(truths, candidates)
    return CaptionScores(bleu | meteor | rest | spice, meteor_notes + spice_notes)


def _check(captions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]) -> None:
    if not captions:
        raise ValueError("captions is empty; expected a caption for each image")
    for image in references.keys() ^ captions.keys():
        lacking = "captions" if image in references else "references"
        raise ValueError(f"{lacking} has nothing for image {image}, one of {len(references.keys() ^ captions.keys())}; "
                         "expected the same images in captions and references")  # fmt: skip
    for image, texts in references.items():
        if isinstance(texts, str) or not texts:
            raise ValueError(f"references has {texts!r} for image {image}; expected a list of at least one caption")


def _unflatten(flat: list[str], ids: list[ImageId], references: Mapping[ImageId, Sequence[str]]) -> tuple[Words, Words]:
    words = iter(flat)
    candidates, truths = {}, {}
    for image in ids:
        candidates[image] = [next(words)]
        truths[image] = [next(words) for _ in references[image]]
    return candidates, truths


def _score(scorer: Any, truths: Words, candidates: Words, names: list[str]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print
        values, _ = scorer.compute_score(truths, candidates)
    return {name: float(value) for name, value in zip(names, values if len(names) > 1 else [values], strict=True)}


def _spice(truths: Words, candidates: Words) -> tuple[dict[str, float], tuple[str, ...]]:
    """SPICE, or why there is none: its models are downloaded apart, and its parser does not run on every Java."""
    if not _SPICE_JAR.is_file():
        return {}, (f"no SPICE: its models are absent ({_SPICE_JAR.name}); "
                    "'python -m pycocoevalcap.spice.get_stanford_models' downloads them",)  # fmt: skip
    from pycocoevalcap.spice.spice import Spice

    return _by_java("SPICE", Spice, truths, candidates)


def _by_java(
    name: str, scorer: Callable[[], Any], truths: Words, candidates: Words
) -> tuple[dict[str, float], tuple[str, ...]]:
    """The metric, or why there is none: a failing Java program must not stop hours of training."""
    try:
        return _score(scorer(), truths, candidates, [name]), ()
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return {}, (f"no {name}: its Java program failed ({error})",)
