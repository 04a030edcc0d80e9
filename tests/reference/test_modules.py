"""What the golden numbers leave open: dropout and drop path in training, refused inputs, ties after loading."""

from __future__ import annotations

import pytest
import torch

from blip_fast.config import BlipConfig
from blip_fast.reference import BlipCaptioner, BlipPretrain
from blip_fast.reference.text import TextEncoder
from blip_fast.reference.vit import DropPath, VisionTransformer

CONFIG = BlipConfig.tiny(vocab_size=200, queue_size=16, drop_path=0.5)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[101, 7, 8, 102, 0], [101, 9, 10, 11, 102]])
    return torch.randn(2, 3, 64, 64), ids, (ids > 0).long()


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    branch = torch.ones(20_000, 2, 3)
    dropped = DropPath(0.25).train()(branch)
    per_sample = dropped.flatten(1)
    assert ((per_sample == 0).all(dim=1) | (per_sample == 1 / 0.75).all(dim=1)).all()
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert DropPath(0.25).eval()(branch) is branch


def test_drop_path_grows_with_depth() -> None:
    rates = [block.drop_path.probability for block in VisionTransformer(CONFIG).blocks]
    assert rates == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5])


def test_momentum_encoders_follow_the_mode() -> None:
    """Dropout acts on the momentum features in training, as published, and not in evaluation."""
    model, inputs = BlipPretrain(CONFIG), batch()
    for training in (True, False):
        model.train(training)
        first, second = model.momentum_features(*inputs), model.momentum_features(*inputs)
        assert all(torch.equal(a, b) != training for a, b in zip(first, second, strict=True))


def test_temperature_is_clamped() -> None:
    model = BlipPretrain(CONFIG)
    for value, expected in ((0.7, 0.5), (1e-5, 0.001), (0.07, 0.07)):
        model.temp.data.fill_(value)
        model(*batch(), alpha=0.0)
        assert float(model.temp.detach()) == pytest.approx(expected)


def test_padding_changes_nothing() -> None:
    encoder, (_, ids, mask) = TextEncoder(CONFIG).eval(), batch()
    padded = encoder(ids[:1], mask[:1], mode="text")[:, :4]
    torch.testing.assert_close(padded, encoder(ids[:1, :4], mask[:1, :4], mode="text"))


def test_inputs_are_refused() -> None:
    encoder, (image, ids, mask) = TextEncoder(CONFIG), batch()
    with pytest.raises(ValueError, match=r"image has shape .* expected \(B, 3, 64, 64\)"):
        VisionTransformer(CONFIG)(image[..., :32])
    with pytest.raises(ValueError, match="max_position_embeddings=64"):
        encoder(torch.ones(1, 65, dtype=torch.long), torch.ones(1, 65), mode="text")
    with pytest.raises(ValueError, match="needs them"):
        encoder(ids, mask)
    captioner = BlipCaptioner(CONFIG)
    with pytest.raises(ValueError, match=r"prompt_ids has shape \(3, 4\)"):
        captioner.generate_ids(image, torch.full((3, 4), 101))
    with pytest.raises(ValueError, match=r"expected \[CLS\]=101"):
        captioner.generate_ids(image, torch.tensor([7, 8]))
    with pytest.raises(ValueError, match="num_beams=0"):
        captioner.generate_ids(image, torch.tensor([101, 7, 102]), num_beams=0)
    with pytest.raises(ValueError, match="max_length=3 leaves no room"):
        captioner.generate_ids(image, torch.tensor([101, 7, 8, 102]), max_length=3)
