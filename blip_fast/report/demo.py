"""The demo's page: numbers, held-out pictures with captions, retrieval examples, matching scores, loss curves."""

from __future__ import annotations

import difflib
from typing import Any

import torch

from blip_fast.report.figures import curve, score_histogram, score_map
from blip_fast.report.page import inline_svg, picture_uri, render
from blip_fast.tasks.demo import DemoResult
from blip_fast.tasks.evaluation.pairs import target_ranks

_SHOWN_CANDIDATES = 5
_SHOWN_QUERIES = 6


def demo_page(result: DemoResult, environment: dict[str, str]) -> str:
    """The report as HTML; ``environment`` names versions and machine."""
    metrics = result.metrics()
    uris = [picture_uri(result.test_pairs.picture(index)) for index in range(len(result.test_pairs))]
    log = metrics["log"]
    curves = [
        curve(log["itc"], "contrastive loss (ITC)"),
        curve(log["itm"], "matching loss (ITM)"),
        curve(log["lm"], "language-modelling loss (LM)"),
        curve(log["lr"], "learning rate", smooth=1),
    ]
    true, false = split_pairs(result.matching)
    return render(
        "demo.html",
        metrics=metrics,
        parameters=sum(parameter.numel() for parameter in result.model.parameters() if parameter.requires_grad),
        gallery=gallery(result, uris),
        text_queries=text_queries(result, uris),
        image_queries=image_queries(result, uris),
        curves=[inline_svg(svg) for svg in curves],
        score_map=inline_svg(score_map(result.matching.tolist())),
        score_histogram=inline_svg(score_histogram(true, false)),
        environment=environment,
    )


def gallery(result: DemoResult, uris: list[str]) -> list[dict[str, Any]]:
    """One card per held-out picture: true and generated caption, and how well picture and true caption match."""
    return [
        {
            "uri": uri,
            "truth": truth,
            "words": marked_words(truth, caption),
            "exact": exact,
            "match": float(result.matching[index, index]),
        }
        for index, (uri, truth, caption, exact) in enumerate(
            zip(uris, result.test_pairs.captions, result.captions, result.exact, strict=True)
        )
    ]


def text_queries(result: DemoResult, uris: list[str]) -> list[dict[str, Any]]:
    """Captions with the pictures found for them, best first."""
    captions = result.test_pairs.captions
    return [
        {
            "query": captions[query],
            "rank": rank,
            "found": [{"uri": uris[index], "text": captions[index], "right": index == query} for index in candidates],
        }
        for query, rank, candidates in chosen_queries(result.reranked.T)
    ]


def image_queries(result: DemoResult, uris: list[str]) -> list[dict[str, Any]]:
    """Pictures with the captions found for them, best first."""
    captions = result.test_pairs.captions
    return [
        {
            "uri": uris[query],
            "truth": captions[query],
            "match": float(result.matching[query, query]),
            "rank": rank,
            "found": [
                {"text": captions[index], "right": index == query, "match": float(result.matching[query, index])}
                for index in candidates
            ],
        }
        for query, rank, candidates in chosen_queries(result.reranked)
    ]


def chosen_queries(scores: torch.Tensor) -> list[tuple[int, int, list[int]]]:
    """(query, rank of the right candidate, best candidates) of the worst queries and of some right ones, half each.

    Failures come first: a page that shows only what went well teaches nothing.
    """
    ranks = target_ranks(scores).tolist()
    missed = sorted((query for query, rank in enumerate(ranks) if rank > 0), key=lambda query: -ranks[query])
    found = [query for query, rank in enumerate(ranks) if rank == 0]
    spread = found[:: max(len(found) // _SHOWN_QUERIES, 1)]
    half = _SHOWN_QUERIES // 2
    chosen = missed[: max(half, _SHOWN_QUERIES - len(spread))] + spread
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :_SHOWN_CANDIDATES].tolist()
    return [(query, ranks[query], order[query]) for query in chosen[:_SHOWN_QUERIES]]


def split_pairs(scores: torch.Tensor) -> tuple[list[float], list[float]]:
    """Scores (N, N) of true pairs, the diagonal, and of false pairs, the rest."""
    on_diagonal = torch.eye(len(scores), dtype=torch.bool)
    return scores[on_diagonal].tolist(), scores[~on_diagonal].tolist()


def marked_words(truth: str, caption: str) -> list[tuple[str, bool]]:
    """The words of a generated caption, each with whether the true caption has it at that place."""
    words, true_words = caption.split(), truth.split()
    matcher = difflib.SequenceMatcher(a=true_words, b=words, autojunk=False)
    shared = {index for block in matcher.get_matching_blocks() for index in range(block.b, block.b + block.size)}
    return [(word, index in shared) for index, word in enumerate(words)]
