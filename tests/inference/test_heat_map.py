"""Heat maps of texts and words, and the picture under them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from blip_fast.inference.heat_map import overlay, scaled, text_heat
from tests.inference.common import build, picture


def test_words_of_a_text(tmp_path) -> None:
    heat = text_heat(build("BlipITM", text_layers=3), Image.open(picture(tmp_path / "a.png")), "a Zebra, red?")
    assert [word for word, _ in heat.words] == ["a", "zebra", "red"]  # "zebra" is five pieces, punctuation is no word
    for found in (heat.whole, *(word_heat for _, word_heat in heat.words)):
        assert found.shape == (4, 4)
        assert found.amin() >= 0
        assert found.amax() == 1


def test_overlay() -> None:
    heat = torch.zeros(4, 4)
    heat[0, 0] = 1
    shown = overlay(Image.new("RGB", (40, 20), (0, 0, 255)), heat)
    assert shown.size == (512, 256)
    pixels = np.asarray(shown).astype(int)
    assert tuple(pixels[-1, -1]) == (0, 0, 255)  # cold: the picture
    assert pixels[0, 0, 2] < 160 < 255
    assert pixels[0, 0, 0] > 40


def test_overlay_of_a_line() -> None:
    assert overlay(Image.new("RGB", (2000, 1)), torch.ones(4, 4)).size == (512, 1)


def test_no_heat_at_all() -> None:
    assert not scaled(torch.zeros(2, 2)).any()
