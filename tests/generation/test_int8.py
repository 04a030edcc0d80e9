"""int8 weights: scores close to those of fp32, models that generate only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blip_fast import models
from blip_fast.generation import to_int8
from tests.generation.common import IMAGES, PROMPTS, captioner, teacher_forced
from tests.models.common import pair, texts


def test_scores_agree():
    model, small = captioner(), to_int8(captioner())
    kept = {name for name, module in small.named_modules() if type(module) is nn.Linear}
    assert kept
    assert all(".crossattention.self." in name for name in kept)
    result = small.generate_ids(IMAGES, PROMPTS, return_scores=True)
    with torch.no_grad():
        for row in range(3):
            length = int((result.ids[row] != 0).sum())
            exact = teacher_forced(model, IMAGES[row : row + 1], result.ids[row : row + 1, :length])[0]
            new = result.generated[row, :length]
            assert (result.token_logprobs[row, :length] - exact)[new].abs().mean() < 0.1
    assert type(model.text_decoder.cls.predictions.decoder) is nn.Linear


def test_answers_are_generated_and_ranked():
    model = pair(models.BlipVQA, models.BlipVQA)[0].eval()
    small, (ids, mask), candidates = to_int8(model), texts(3, 9), texts(7, 5, generator=2)
    assert small.generate_ids(IMAGES, ids, mask).shape[0] == 3
    exact, rounded = (m.rank_ids(IMAGES, ids, mask, *candidates, k=7) for m in (model, small))
    scores = [ranking.scores.gather(1, ranking.kept.argsort(dim=1)) for ranking in (exact, rounded)]
    torch.testing.assert_close(*scores, rtol=0.02, atol=0.3)


def test_refused():
    with pytest.raises(ValueError, match="model is a BlipITM; int8 weights are for models that generate text"):
        to_int8(pair(models.BlipITM, models.BlipITM)[0])


def test_the_model_stays_as_it_is():
    model = pair(models.BlipCaptioner, models.BlipCaptioner)[0].train()
    small = to_int8(model)
    assert model.training
    assert model.text_decoder.training
    assert not small.training
    assert type(model.text_decoder.cls.predictions.decoder) is nn.Linear
