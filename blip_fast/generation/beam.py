"""Beam search, with the stopping rule and the length norms of the published code and of transformers.

Of a beam's vocabulary only the log of the softmax's denominator and the 2K best logits are taken: the log-probabilities of
the other tokens are never written down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.generation.hypotheses import Candidate, ImageSearch
from blip_fast.generation.options import Options
from blip_fast.generation.prompts import Prompts
from blip_fast.generation.scores import GeneratedIds
from blip_fast.generation.session import DecodingSession
from blip_fast.generation.texts import Limits, Texts, sequences


def beam_search(session: DecodingSession, prompts: Prompts, limits: Limits, options: Options) -> GeneratedIds:
    """The ``options.num_return_sequences`` best texts for each of B prompts, best first; the session holds K copies.

    An image leaves the session when its search ends.
    """
    beams = options.num_beams
    searches = [ImageSearch(beams, length, options.length_norm) for length in prompts.lengths.tolist()]
    running = list(searches)
    texts = Texts.begin(prompts, limits)
    scores = torch.zeros(len(running), 1, device=texts.ids.device)  # all beams of an image begin as one
    logits, first = session.prefill(prompts), True
    while True:
        ranked = rank_candidates(logits, texts, scores, limits, 2 * beams)
        chosen = [search.advance(image, texts, limits) for search, image in zip(running, ranked, strict=True)]
        flat = [candidate for image in chosen for candidate in image]
        parents = texts.ids.new_tensor([candidate.row for candidate in flat])
        tokens = texts.ids.new_tensor([candidate.token for candidate in flat])
        logprobs = scores.new_tensor([candidate.logprob for candidate in flat])
        texts = texts.select(parents).append(tokens, logprobs)
        for place, (search, image) in enumerate(zip(running, chosen, strict=True)):
            if search.length == limits.max_length and not search.closed:
                search.cut_off(image, texts, place * beams)
        left = [place for place, search in enumerate(running) if not search.closed]
        if not left:
            return best_texts(searches, limits, options.num_return_sequences)
        if not first:
            session.reorder(parents)
        scores = scores.new_tensor([[candidate.score for candidate in chosen[place]] for place in left])
        if len(left) < len(running):
            rows = (parents.new_tensor(left)[:, None] * beams + torch.arange(beams, device=parents.device)).flatten()
            session.keep(rows)
            texts, tokens = texts.select(rows), tokens.index_select(0, rows)
            running = [running[place] for place in left]
        logits, first = session.step(tokens), False


def rank_candidates(logits: Tensor, texts: Texts, running: Tensor, limits: Limits, count: int) -> list[list[Candidate]]:
    """The ``count`` best continuations of each image's beams, best first.

    Logits (B * k, V) of the next tokens of the texts, ``running`` (B, k) their summed log-probabilities.
    """
    batch, beams = running.shape
    logits = logits.float()
    normaliser = logits.logsumexp(dim=1, keepdim=True)
    if limits.repetition_penalty == 1.0:
        best = texts.allowed(logits, limits).topk(count, dim=1)
        values = best.values - normaliser
    else:  # the penalty acts on log-probabilities
        best = texts.allowed(logits - normaliser, limits).topk(count, dim=1)
        values = best.values
    totals = (values + running.view(-1, 1)).view(batch, beams * count).topk(count, dim=1)
    rows = torch.arange(batch, device=logits.device)[:, None] * beams + totals.indices // count
    tokens = best.indices.view(batch, -1).gather(1, totals.indices)
    logprobs = (logits.gather(1, best.indices) - normaliser).view(batch, -1).gather(1, totals.indices)
    columns = (totals.values, tokens, logprobs, rows)
    images = zip(*(column.tolist() for column in columns), strict=True)
    return [[Candidate(*values) for values in zip(*image, range(count), strict=True)] for image in images]


def best_texts(searches: list[ImageSearch], limits: Limits, count: int) -> GeneratedIds:
    """The best ``count`` texts of each image."""
    texts = [found.text(limits) for search in searches for found in search.best(count)]
    fields = zip(*(vars(text).values() for text in texts), strict=True)
    return sequences(Texts(*(torch.cat(tensors) for tensors in fields)))
