"""VQA by ranking, k=128 of 3,129 answers: as published, and with one set of keys per question and no padding.

The images' states are given, as the image encoder does the same work in both. Question encoding, the choice of 128 answers by
their first token, and their losses are timed, in fp32 on a GPU too: in bf16 other answers might be chosen.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from blip_fast import models, reference
from blip_fast.config import BlipConfig

from ..captions import padded_texts
from ..job import Aim, Case, Setting, Variant
from ..weights import same_weights
from .counts import count_flops

PLACE = 80
TOKENS = (480 // 16) ** 2 + 1
QUESTIONS = (7, 8, 9, 12)  # tokens; most VQA questions have four to ten words (arXiv 1505.00468, section 4)
K = 128
# How many of the 3,129 answers that occur at least nine times in VQA v2 have how many BERT tokens, [CLS] and [SEP] included.
ANSWER_LENGTHS = {2: 1, 3: 1927, 4: 764, 5: 378, 6: 46, 7: 12, 8: 1}
FIRST_ANSWER_WORD = 2000
AIMS = (Aim(3.0, over="reference"),)
NO_RANKING = "transformers' BlipForQuestionAnswering generates answers and ranks none"


class GivenStates(nn.Module):
    """An image encoder for what is encoded already: the "images" are states."""

    blocks = ()

    def forward(self, states: Tensor) -> Tensor:
        return states

    embed = norm = forward


def cases(setting: Setting) -> Iterable[Case]:
    """Two layers; with ``--full`` all twelve."""
    yield _case(BlipConfig.base(text_layers=2, vit_depth=1), setting.device)
    if not setting.quick:
        yield _case(BlipConfig.base(vit_depth=1), setting.device)


def _case(config: BlipConfig, device: torch.device) -> Case:
    torch.manual_seed(0)
    published = reference.BlipVQA(config).to(device).eval()
    published.visual_encoder = GivenStates()
    fast = same_weights(published, models.BlipVQA)
    answer_ids, answer_mask = answers(config)

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        states = torch.randn(len(QUESTIONS), TOKENS, config.vit_width, generator=generator, device=device)
        ids, mask = padded_texts(torch.tensor(QUESTIONS), max(QUESTIONS), config, seed)
        return states, ids.to(device), mask, answer_ids.to(device), answer_mask

    def run(model: reference.BlipVQA, states: Tensor, ids: Tensor, mask: Tensor, *candidates: Tensor) -> Tensor:
        if model is published:
            mask, candidates = mask.to(device), tuple(candidate.to(device) for candidate in candidates)
        ranking = model.rank_ids(states, ids, mask, *candidates, k=K)
        return torch.zeros(len(states), len(answer_ids), device=device).scatter(1, ranking.kept, ranking.scores)

    first = inputs(0)
    return Case(
        name=f"{config.text_layers} layers, {len(QUESTIONS)} questions, k={K}, 480 px",
        inputs=inputs,
        variants=[
            Variant("reference", lambda *args: run(published, *args), role="baseline"),
            Variant("transformers", run, unavailable=NO_RANKING),
            Variant("blip_fast", lambda *args: run(fast, *args), role="ours"),
        ],
        tolerance=1e-5,
        flops=sum(count_flops(lambda: run(fast, *first)).values()),
        aims=AIMS,
        items=(len(QUESTIONS), "questions"),
        input_sets=2,
    )


def answers(config: BlipConfig) -> tuple[Tensor, Tensor]:
    """Ids and mask of the candidates. No two begin with the same word: which of two equals is kept would be chance."""
    lengths = torch.tensor([length for length, count in ANSWER_LENGTHS.items() for _ in range(count)])
    lengths = lengths[torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))]
    ids, mask = padded_texts(lengths, int(lengths.max()), config, seed=0)
    first = torch.arange(FIRST_ANSWER_WORD, FIRST_ANSWER_WORD + len(ids))
    ids[:, 1] = torch.where(lengths > 2, first, ids[:, 1])
    return ids, mask
